import pytest
import torch

from retinanet_ext.lite.structures import ImageList


@pytest.fixture
def images():
    return [torch.ones(3, 5, 7), torch.ones(3, 6, 4)]


@pytest.mark.parametrize(
    "kwargs, size",
    [
        ({}, (6, 7)),
        ({"size_divisibility": 4}, (8, 8)),
        ({"size_divisibility": 4, "padding_constraints": {"size_divisibility": 32}}, (32, 32)),
        ({"padding_constraints": {"square_size": 16}}, (16, 16)),
        ({"padding_constraints": {"square_size": 10, "size_divisibility": 8}}, (16, 16)),
        ({"size_divisibility": 4, "padding_constraints": {"square_size": 0}}, (8, 8)),
    ],
)
def test_common_size(images, kwargs, size):
    batch = ImageList.from_tensors(images, **kwargs)
    assert batch.tensor.shape == (2, 3, *size)
    assert batch.image_sizes == [(5, 7), (6, 4)]


def test_padding_is_right_and_bottom_and_indexing_removes_it(images):
    batch = ImageList.from_tensors(images, size_divisibility=4, pad_value=2.0)
    expected = torch.full((3, 8, 8), 2.0)
    expected[:, :5, :7] = 1
    assert torch.equal(batch.tensor[0], expected)
    assert len(batch) == 2
    assert all(torch.equal(image, source) for image, source in zip(batch, images, strict=True))


def test_grey_images_and_a_single_image():
    assert ImageList.from_tensors([torch.ones(5, 7), torch.ones(6, 4)]).tensor.shape == (2, 6, 7)
    source = torch.ones(3, 5, 7)
    batch = ImageList.from_tensors([source])
    batch.tensor.zero_()
    assert source.min() == 1  # the batch is a copy


def test_memory_format_of_the_images_is_kept(images):
    def is_channels_last(tensors):
        batch = ImageList.from_tensors(tensors, size_divisibility=4).tensor
        return batch.is_contiguous(memory_format=torch.channels_last)

    channels_last = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in images]
    assert is_channels_last(channels_last)
    assert not is_channels_last(images)
    assert not is_channels_last([channels_last[0], images[1]])


def test_to_moves_the_tensor(images):
    assert ImageList.from_tensors(images).to("meta").device.type == "meta"


@pytest.mark.parametrize(
    "tensors, kwargs, error, message",
    [
        ([], {}, ValueError, "at least one image"),
        ([[1, 2]], {}, TypeError, "image 0 must be a tensor, found list"),
        ([torch.ones(3, 4, 4), torch.ones(1, 4, 4)], {}, ValueError, "image 1 has shape"),
        ([torch.ones(3, 4, 9)], {"padding_constraints": {"square_size": 8}}, ValueError, "square_size 8"),
    ],
)
def test_errors(tensors, kwargs, error, message):
    with pytest.raises(error, match=message):
        ImageList.from_tensors(tensors, **kwargs)

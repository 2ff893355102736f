import tracemalloc

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks

from retinanet_ext.ops.mask_pasting import encode_pasted_masks, paste_masks, paste_masks_reference

SIZE = (37, 53)


def random_masks(generator, count=40, side=28, size=SIZE):
    """Smooth masks, and boxes that lie inside the image, over its border, and beyond."""
    coarse = torch.rand(count, 1, 5, 5, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")[:, 0]
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]]) * 1.4 - 8
    extent = torch.rand(count, 2, generator=generator) ** 2 * torch.tensor([size[1], size[0]])
    return masks, torch.cat([corner, corner + extent], dim=1)


def coco_rles(dense):
    return [coco_masks.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in dense]


def test_by_hand():
    """A 2x2 mask in a box of 4x4 pixels: centres at 0.5, 1.5, ... are a quarter cell apart, zeros lie around."""
    mask = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    # In x: weight of the left column at cell positions -0.25, 0.25, 0.75, 1.25: 0.75, 0.75, 0.25, 0; the same in y.
    box = torch.tensor([[1.0, 2.0, 5.0, 6.0]])
    # Value = wx * (wy0 + wy1) with wy0 + wy1 = 0.75, 1, 1, 0.75: 0.5625 in the corners, 0.75 between.
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 1:3] = True
    assert paste_masks(mask, box, (8, 8))[0].equal(expected)
    expected[[2, 5]] = False
    assert paste_masks(mask, box, (8, 8), threshold=0.6)[0].equal(expected)


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.05])
def test_the_fast_form_equals_the_reference(generator, threshold):
    masks, boxes = random_masks(generator, count=160)
    expected = paste_masks_reference(masks, boxes, SIZE, threshold)
    assert expected.any(dim=(1, 2)).sum() > 60  # others lie beyond the image
    assert paste_masks(masks, boxes, SIZE, threshold).equal(expected)
    encoded = encode_pasted_masks(masks, boxes, SIZE, threshold)
    assert encoded.tensor.equal(expected)
    # The same bytes as the encoder of pycocotools writes for the dense masks.
    assert encoded.rles == coco_rles(expected)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_values_exactly_at_the_threshold_do_not_depend_on_the_form(generator, scale):
    """Binary masks in boxes of a multiple of their size: many pixels lie between a 0 and a 1."""
    masks = (torch.rand(30, 8, 8, generator=generator) < 0.5).float()
    corner = torch.randint(0, 20, (30, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + 8 * scale + torch.randint(0, 3, (30, 2), generator=generator)], dim=1)
    assert paste_masks(masks, boxes, SIZE).equal(paste_masks_reference(masks, boxes, SIZE))
    halves = torch.full((30, 8, 8), 0.5)
    assert paste_masks(halves, boxes, SIZE).equal(paste_masks_reference(halves, boxes, SIZE))


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_equals_detectron2(generator, threshold):
    mask_ops = pytest.importorskip("detectron2.layers.mask_ops")
    size = (120, 90)
    masks, boxes = random_masks(generator, count=200, size=size)
    inside = torch.stack([boxes[:, 0].clamp(0, 90), boxes[:, 1].clamp(0, 120)], dim=1)
    outside = torch.stack([boxes[:, 2].clamp(0, 90), boxes[:, 3].clamp(0, 120)], dim=1)
    has_area = (outside > inside).all(dim=1)
    masks, boxes = masks[has_area], torch.cat([inside, outside], dim=1)[has_area]
    expected = mask_ops.paste_masks_in_image(masks, boxes, size, threshold)
    assert len(boxes) > 70
    assert paste_masks(masks, boxes, size, threshold).equal(expected)
    assert encode_pasted_masks(masks, boxes, size, threshold).tensor.equal(expected)


def test_areas_and_ious_are_those_of_pycocotools_on_dense_masks(generator):
    masks, boxes = random_masks(generator)
    encoded = encode_pasted_masks(masks, boxes, SIZE)
    dense = coco_rles(paste_masks_reference(masks, boxes, SIZE))
    assert encoded.areas().tolist() == coco_masks.area(dense).tolist()
    crowd = [0] * len(dense)
    np.testing.assert_array_equal(coco_masks.iou(encoded.rles, dense, crowd), coco_masks.iou(dense, dense, crowd))


def test_boxes_that_give_no_mask():
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor([
        [10.0, 10, 10, 20], [20, 10, 10, 20], [nan, 0, 10, 10], [0, 0, inf, 10], [-inf, 0, 10, 10],
        [60, 5, 70, 20], [5, -30, 20, -3], [1e30, 0, 2e30, 10],
    ])  # fmt: skip
    masks = torch.ones(len(boxes), 7, 7)
    for dense in (paste_masks(masks, boxes, SIZE), paste_masks_reference(masks, boxes, SIZE)):
        assert not dense.any()
    encoded = encode_pasted_masks(masks, boxes, SIZE)
    assert len(encoded) == len(boxes) and not encoded.nonempty().any()


def test_a_box_smaller_than_a_pixel_holds_its_pixel_or_none():
    """The box [10.4, 10.6] contains the centre of pixel 10; [10.6, 10.9] contains no centre."""
    boxes = torch.tensor([[10.4, 5.4, 10.6, 5.6], [10.6, 5.6, 10.9, 5.9]])
    dense = paste_masks(torch.ones(2, 28, 28), boxes, SIZE)
    assert dense[0].nonzero().tolist() == [[5, 10]] and not dense[1].any()
    assert encode_pasted_masks(torch.ones(2, 28, 28), boxes, SIZE).areas().tolist() == [1, 0]


def test_a_mask_over_the_whole_image_is_one_run():
    boxes = torch.tensor([[-40.0, -40.0, 93.0, 77.0]])
    rle = encode_pasted_masks(torch.ones(1, 28, 28), boxes, SIZE).rles[0]
    assert rle == coco_rles(torch.ones(1, *SIZE, dtype=torch.bool))[0]


def test_probabilities_that_are_not_a_number_reach_as_far_as_in_the_reference(generator):
    masks, boxes = random_masks(generator, count=6)
    masks[:3, 10, 12] = float("nan")
    masks[3, 5, 5] = float("inf")
    assert paste_masks(masks, boxes, SIZE).equal(paste_masks_reference(masks, boxes, SIZE))


def test_no_masks():
    masks, boxes = torch.zeros(0, 28, 28), torch.zeros(0, 4)
    assert paste_masks(masks, boxes, SIZE).shape == paste_masks_reference(masks, boxes, SIZE).shape == (0, *SIZE)
    assert len(encode_pasted_masks(masks, boxes, SIZE)) == 0


def test_strips_join(monkeypatch, generator):
    masks, boxes = random_masks(generator)
    boxes[:10, [1, 3]] = torch.tensor([-60.0, 90.0])  # full columns, so that runs go on from strip to strip
    expected = paste_masks_reference(masks, boxes, SIZE)
    monkeypatch.setattr("retinanet_ext.ops.mask_pasting.PIXELS_OF_STRIP", 100)
    assert paste_masks(masks, boxes, SIZE).equal(expected)
    assert encode_pasted_masks(masks, boxes, SIZE).rles == coco_rles(expected)


def test_memory_does_not_grow_with_the_image():
    """100 masks of 4000x6000 pixels are 2.4 GB as bools. The largest box alone would take 96 MB in float32."""
    corner = torch.rand(100, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([5800.0, 3800.0])
    boxes = torch.cat([corner, corner + 150], dim=1)
    boxes[0] = torch.tensor([0.0, 0.0, 6000.0, 4000.0])
    encode_pasted_masks(torch.ones(1, 28, 28), boxes[1:2], (4000, 6000))
    tracemalloc.start()
    encoded = encode_pasted_masks(torch.ones(100, 28, 28), boxes, (4000, 6000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert encoded.areas()[0] > 0.99 * 24e6
    assert peak < 30e6


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"\(2, 1, 28, 28\).*must be \(M, S, S\)"):
        paste_masks(torch.zeros(2, 1, 28, 28), torch.zeros(2, 4), SIZE)
    with pytest.raises(ValueError, match="threshold is 0; it must be above 0"):
        encode_pasted_masks(torch.zeros(2, 28, 28), torch.zeros(2, 4), SIZE, threshold=0)

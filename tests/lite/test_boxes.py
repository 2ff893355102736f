import numpy as np
import pytest
import torch

from retinanet_ext.lite.structures import Boxes, BoxMode


def test_constructor_normalises_dtype_and_empty_shape():
    assert Boxes([[1, 2, 3, 4]]).tensor.dtype == torch.float32
    assert Boxes(torch.zeros(2, 4, dtype=torch.float64)).tensor.dtype == torch.float32
    for empty in ([], torch.zeros(0), torch.zeros(0, 4), np.zeros((0, 4))):
        assert Boxes(empty).tensor.shape == (0, 4)


@pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 2, 4)])
def test_constructor_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        Boxes(torch.zeros(shape))


def test_area_centers_and_nonempty():
    boxes = Boxes([[0, 0, 4, 2], [1, 1, 1, 5], [3, 3, 2, 2]])
    assert boxes.area().tolist() == [8, 0, 1]  # the last box has two negative sides
    assert boxes.get_centers().tolist() == [[2, 1], [1, 3], [2.5, 2.5]]
    assert boxes.nonempty().tolist() == [True, False, False]
    assert boxes.nonempty(threshold=2).tolist() == [False, False, False]


def test_clip_takes_height_and_width_and_leaves_the_source_alone():
    source = torch.tensor([[-1.0, -2.0, 30.0, 40.0]])
    boxes = Boxes(source)
    boxes.clip((10, 20))
    assert boxes.tensor.tolist() == [[0, 0, 20, 10]]
    assert source.tolist() == [[-1, -2, 30, 40]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_clip_names_the_boxes_that_are_not_finite(bad):
    with pytest.raises(ValueError, match=r"boxes \[1\] of 2"):
        Boxes([[0, 0, 1, 1], [0, bad, 1, 1]]).clip((5, 5))


def test_inside_box_is_half_open():
    boxes = Boxes([[0, 0, 9, 9], [0, 0, 10, 9], [-1, 0, 9, 9]])
    assert boxes.inside_box((10, 10)).tolist() == [True, False, False]
    assert boxes.inside_box((10, 10), boundary_threshold=1).tolist() == [True, True, True]


def test_scale_in_place():
    boxes = Boxes([[1, 2, 3, 4]])
    boxes.scale(2, 10)
    assert boxes.tensor.tolist() == [[2, 20, 6, 40]]


def test_indexing_keeps_rows():
    boxes = Boxes(torch.arange(12.0).view(3, 4))
    assert boxes[-1].tensor.tolist() == [[8, 9, 10, 11]]
    assert boxes[np.int64(0)].tensor.tolist() == [[0, 1, 2, 3]]
    assert len(boxes[1:]) == len(boxes[torch.tensor([True, False, True])]) == len(boxes[[0, 2]]) == 2
    with pytest.raises(IndexError):
        boxes[3]
    with pytest.raises(ValueError, match="by row only"):
        boxes[:, 0]
    assert [row.tolist() for row in boxes][1] == [4, 5, 6, 7]


def test_cat():
    boxes = Boxes([[1, 2, 3, 4]])
    assert Boxes.cat([boxes, Boxes([]), boxes]).tensor.tolist() == [[1, 2, 3, 4]] * 2
    assert Boxes.cat([]).tensor.shape == (0, 4)
    with pytest.raises(TypeError, match="list of Boxes"):
        Boxes.cat([boxes.tensor])


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor, lambda b: torch.tensor([b]).float()])
def test_box_mode_converts_and_keeps_type_and_input(make):
    box = make([10, 20, 5, 6])
    corners = BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert type(corners) is type(box)
    assert np.asarray(corners).ravel().tolist() == [10, 20, 15, 26]
    assert np.asarray(box).ravel().tolist() == [10, 20, 5, 6]
    back = BoxMode.convert(corners, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    assert np.asarray(back).tolist() == np.asarray(box).tolist()


def test_box_mode_errors():
    with pytest.raises(ValueError, match="XYXY_REL"):
        BoxMode.convert([0, 0, 1, 1], BoxMode.XYXY_REL, BoxMode.XYXY_ABS)
    for bad in ([1, 2, 3], [[1, 2, 3, 4]], np.zeros((2, 5))):
        with pytest.raises(ValueError, match="4 numbers"):
            BoxMode.convert(bad, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)

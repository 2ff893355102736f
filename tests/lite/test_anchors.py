import math

import pytest
import torch

from retinanet_ext.lite.anchors import DefaultAnchorGenerator, build_anchor_generator
from retinanet_ext.lite.cfg_node import get_cfg
from retinanet_ext.lite.layers import ShapeSpec


def test_cell_anchors_have_the_area_and_the_ratio_asked_for():
    cell = DefaultAnchorGenerator.generate_cell_anchors((32, 50), (0.5, 1.0, 2.0))
    width, height = (cell[:, 2:] - cell[:, :2]).unbind(1)
    torch.testing.assert_close(width * height, torch.tensor([32.0**2] * 3 + [50.0**2] * 3))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1, 2] * 2))
    torch.testing.assert_close(cell[:, :2], -cell[:, 2:])


def test_order_is_row_column_cell():
    generator = DefaultAnchorGenerator(sizes=[[2, 4]], aspect_ratios=[[1.0]], strides=[8], offset=0.5)
    (boxes,) = generator([torch.zeros(1, 1, 2, 2)])
    # Centres are half a stride into each cell: 4 and 12.
    expected = [[x - h, y - h, x + h, y + h] for y in (4, 12) for x in (4, 12) for h in (1, 2)]
    assert boxes.tensor.tolist() == expected


def test_retinanet_octave_steps():
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[x * 2 ** (i / 3) for i in range(3)] for x in (32, 64)]
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=8), ShapeSpec(stride=16)])
    assert generator.num_cell_anchors == [9, 9]
    anchors = generator([torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 2, 2)])
    assert [len(boxes) for boxes in anchors] == [3 * 4 * 9, 2 * 2 * 9]
    assert generator.offset == 0
    assert math.isclose(anchors[1].area().max().item(), 64**2 * 2 ** (4 / 3), rel_tol=1e-6)


def test_one_list_serves_all_levels():
    generator = DefaultAnchorGenerator(sizes=[[8], [16]], aspect_ratios=[1.0, 2.0], strides=[4, 8])
    assert generator.num_cell_anchors == [2, 2]
    assert [len(cell) for cell in generator.cell_anchors] == [2, 2]


def test_anchors_move_with_the_module_but_are_not_saved():
    generator = DefaultAnchorGenerator(sizes=[8], aspect_ratios=[1.0], strides=[4])
    assert generator.state_dict() == {}
    assert generator.to("meta").cell_anchors[0].device.type == "meta"


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"offset": 1.0}, r"\[0, 1\), found 1.0"),
        ({"sizes": []}, "sizes must be a non-empty list"),
        ({"sizes": 32}, "sizes must be a non-empty list"),
        ({"sizes": [[1], [2], [3]]}, "2 levels"),
        ({"aspect_ratios": [[1.0], []]}, "2 levels"),
    ],
)
def test_errors(kwargs, message):
    arguments = {"sizes": [[8]], "aspect_ratios": [[1.0]], "strides": [4, 8], **kwargs}
    with pytest.raises(ValueError, match=message):
        DefaultAnchorGenerator(**arguments)


def test_number_of_features_must_fit():
    generator = DefaultAnchorGenerator(sizes=[8], aspect_ratios=[1.0], strides=[4])
    with pytest.raises(ValueError, match="features of 1 levels, found 2"):
        generator([torch.zeros(1, 1, 1, 1)] * 2)

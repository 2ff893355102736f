"""The best overlap with a grid of anchors, against all anchors of the grid one by one."""

import pytest
import torch

from retinanet_ext.ops.box_math import pairwise_iou
from retinanet_ext.ops.grid_anchors import best_grid_iou

# Not centred, as a generator of a user's own may make them; wide and tall; larger and smaller than the stride.
CELLS = torch.tensor([[-16.0, -16, 16, 16], [-45, -11, 45, 11], [-3, -20, 4, 29], [0, 0, 9, 7]])


def all_anchors(stride, offset, columns, rows):
    x = torch.arange(columns).float() * stride + offset * stride
    y = torch.arange(rows).float() * stride + offset * stride
    centers = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2)
    return (torch.cat([centers, centers], dim=2).reshape(-1, 1, 4) + CELLS).reshape(-1, 4)


def random_boxes(count, width, height, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    size = torch.exp(torch.rand(count, 2, generator=generator) * 4.5)
    boxes = torch.cat([corner, torch.minimum(corner + size, torch.tensor([width, height]).float())], dim=1)
    boxes[::7] = boxes[::7].round()  # boxes of annotation files are often whole pixels, with ties
    return boxes


@pytest.mark.parametrize("stride, offset", [(8, 0.0), (16, 0.5), (32, 0.25), (7, 0.9)])
def test_one_position_is_as_good_as_all_of_them(stride, offset):
    columns, rows = 9, 6
    boxes = random_boxes(400, columns * stride, rows * stride, seed=stride)
    best = best_grid_iou(boxes, CELLS, stride, offset, torch.tensor([[columns, rows]]).expand(len(boxes), 2))
    brute_force = pairwise_iou(boxes, all_anchors(stride, offset, columns, rows)).amax(dim=1)
    torch.testing.assert_close(best, brute_force, rtol=0, atol=1e-6)
    assert (brute_force > 0.3).float().mean() > 0.1


def test_each_box_has_the_grid_of_its_image():
    boxes = random_boxes(60, 200, 100, seed=1)
    grids = torch.tensor([[3, 2], [12, 6]]).repeat(30, 1)
    best = best_grid_iou(boxes, CELLS, 16, 0.0, grids)
    for box, (columns, rows), value in zip(boxes, grids.tolist(), best):
        brute_force = pairwise_iou(box[None], all_anchors(16, 0.0, columns, rows)).max()
        torch.testing.assert_close(value, brute_force, rtol=0, atol=1e-6)


@pytest.mark.parametrize("margin", [0, 5, 40])
def test_anchors_beyond_the_bounds_do_not_count(margin):
    width, height = 9 * 16, 6 * 16
    boxes = random_boxes(300, width, height, seed=margin)
    bounds = torch.tensor([-margin, -margin, width + margin, height + margin]).float()
    grids = torch.tensor([[9, 6]]).expand(len(boxes), 2)
    best = best_grid_iou(boxes, CELLS, 16, 0.5, grids, bounds.expand(len(boxes), 4))
    anchors = all_anchors(16, 0.5, 9, 6)
    counts = (anchors[:, :2] >= bounds[:2]).all(dim=1) & (anchors[:, 2:] < bounds[2:]).all(dim=1)
    torch.testing.assert_close(best, pairwise_iou(boxes, anchors[counts]).amax(dim=1), rtol=0, atol=1e-6)
    assert margin or counts.sum() < 0.6 * len(anchors)


def test_nothing_overlaps_what_has_no_area_or_no_anchor():
    boxes = torch.tensor([[10.0, 10, 10, 30], [0, 0, 20, 20]])
    grids = torch.tensor([[4, 4], [4, 4]])
    assert best_grid_iou(boxes, CELLS, 16, 0.0, grids)[0] == 0
    nowhere = torch.tensor([[100.0, 100, 101, 101]]).expand(2, 4)
    assert best_grid_iou(boxes, CELLS, 16, 0.0, grids, nowhere).tolist() == [0, 0]
    assert best_grid_iou(torch.zeros(0, 4), CELLS, 16, 0.0, torch.zeros(0, 2).long()).shape == (0,)

"""The best overlap of boxes with the anchors of a feature map, without a look at each anchor of the map.

The same anchor stands at every position of a regular grid, and the IoU of a box with it grows with their intersection,
the product of an overlap along x and one along y. The two overlaps do not depend on each other, and neither grows with
the distance between the two centres. So the best position is the one whose anchor has its centre nearest to that of the
box, in x and in y, and one IoU for each box and kind of anchor gives the maximum over the map.
"""

import torch

from .box_math import box_columns, iou_of_columns

# IoUs in memory at a time: with their temporaries about 60 MB.
_BLOCK_ENTRIES = 2**20


def best_grid_iou(
    boxes: torch.Tensor,
    cell_anchors: torch.Tensor,
    stride: float,
    offset: float,
    grid_size: torch.Tensor,
    bounds: torch.Tensor | None = None,
) -> torch.Tensor:
    """The largest IoU of each box with any anchor of a level.

    Args:
        boxes: ``(N, 4)`` float32, xyxy in pixels of the network's input.
        cell_anchors: ``(A, 4)`` float32, the anchors around (0, 0).
        stride: pixels from one position of the level to the next, in x and in y.
        offset: place of the first position, as a fraction of the stride.
        grid_size: ``(N, 2)`` int64, columns and rows of the level in the image of each box.
        bounds: ``(N, 4)`` float32, only anchors with x1 >= bounds[0], y1 >= bounds[1], x2 < bounds[2] and
            y2 < bounds[3] count; None: all.

    Returns:
        ``(N,)`` float32; 0 for a box without area, and where no anchor counts. Each value is the IoU, to the last bit,
        that :func:`~retinanet_ext.ops.box_math.iou_of_columns` gives for the anchor at the best position.
    """
    size = max(1, _BLOCK_ENTRIES // max(len(cell_anchors), 1))
    limits = [None] * len(boxes) if bounds is None else bounds.split(size)
    parts = zip(boxes.split(size), grid_size.split(size), limits)
    best = [_best_of_block(part, cell_anchors, stride, offset, grid, limit) for part, grid, limit in parts]
    return torch.cat(best) if best else boxes.new_zeros(0)


def _best_of_block(boxes, cell_anchors, stride, offset, grid_size, bounds):
    cells = cell_anchors.double()
    # In float64, so that rounding does not choose a neighbour: (N, A, 2).
    distance = (boxes[:, None, :2].double() + boxes[:, None, 2:].double() - cells[:, :2] - cells[:, 2:]) / 2
    index = (distance / stride - offset).round()
    low, high = torch.zeros_like(index), (grid_size[:, None] - 1).to(index).expand_as(index)
    if bounds is not None:
        first, last = _positions_inside(cells, bounds.double(), stride, offset)
        low, high = torch.maximum(low, first), torch.minimum(high, last)
    index = torch.maximum(torch.minimum(index, high), low)
    # The coordinates as generators compute them, in float32.
    centers = index.float() * stride + offset * stride
    anchors = torch.cat([centers, centers], dim=2) + cell_anchors
    iou = iou_of_columns(box_columns(boxes)[:, :, None], box_columns(anchors))
    return iou.masked_fill((low > high).any(dim=2), 0).amax(dim=1)


def _positions_inside(cells, bounds, stride, offset):
    """First and last index ``(N, A, 2)`` at which an anchor lies inside the bounds."""
    first = torch.ceil((bounds[:, None, :2] - cells[:, :2]) / stride - offset)
    # The upper bounds themselves are outside.
    last = torch.ceil((bounds[:, None, 2:] - cells[:, 2:]) / stride - offset) - 1
    return first, last

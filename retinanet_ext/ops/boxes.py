"""Areas and overlaps of boxes."""

import math

import torch


def box_areas(boxes: torch.Tensor) -> torch.Tensor:
    """Areas ``(M,)`` in square pixels of ``boxes`` ``(M, 4)``, xyxy."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def pairwise_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every box of one set with every box of the other.

    The readable form, kept as the truth that :func:`iou_of_columns` is tested against.

    Args:
        boxes1: ``(M, 4)``, xyxy.
        boxes2: ``(N, 4)``, xyxy.

    Returns:
        ``(M, N)`` in [0, 1]; 0 where the boxes do not overlap, also where both have no area.
    """
    upper_left = torch.max(boxes1[:, None, :2], boxes2[:, :2])
    lower_right = torch.min(boxes1[:, None, 2:], boxes2[:, 2:])
    intersection = (lower_right - upper_left).clamp_(min=0).prod(dim=2)
    union = box_areas(boxes1)[:, None] + box_areas(boxes2) - intersection
    return torch.where(intersection > 0, intersection / union, 0.0)


def box_columns(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes as :func:`iou_of_columns` wants them: x1, y1, x2, y2 and the area, each contiguous.

    Args:
        boxes: ``(..., 4)``, xyxy. One without area, or with a NaN, becomes a point of area 1, which makes its IoU with
            everything 0 without a look at the union.

    Returns:
        ``(5, ...)``.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    area = (x2 - x1) * (y2 - y1)
    has_area = (x2 > x1) & (y2 > y1) & (area > 0)
    columns = torch.stack([x1, y1, x2, y2, area])
    columns[:4].masked_fill_(~has_area, 0)
    columns[4].masked_fill_(~has_area, 1)
    return columns


def iou_of_columns(boxes1: torch.Tensor, boxes2: torch.Tensor, scratch: torch.Tensor | None = None) -> torch.Tensor:
    """Intersection over union of boxes in columns, equal to :func:`pairwise_iou` in every bit, without a gradient.

    Args:
        boxes1, boxes2: ``(5, ...)`` from :func:`box_columns`, with shapes that broadcast to one another.
        scratch: at least three times as many numbers as the result has; the result lies in it. By default new
            memory, which costs as much time as the computation when it is large.

    Returns:
        The broadcast shape without the 5, in [0, 1].
    """
    shape = torch.broadcast_shapes(boxes1.shape[1:], boxes2.shape[1:])
    size = math.prod(shape)
    if scratch is None:
        scratch = boxes1.new_empty(3 * size)
    result, height, other = scratch[: 3 * size].view(3, *shape)
    _overlap_of_spans(boxes1[0], boxes1[2], boxes2[0], boxes2[2], result, other)
    _overlap_of_spans(boxes1[1], boxes1[3], boxes2[1], boxes2[3], height, other)
    intersection = result.mul_(height)
    union = torch.add(boxes1[4], boxes2[4], out=other).sub_(intersection)
    return intersection.div_(union)


def _overlap_of_spans(low1, high1, low2, high2, result: torch.Tensor, other: torch.Tensor) -> None:
    """Lengths that two intervals share, into ``result``; ``other`` is overwritten."""
    torch.minimum(high1, high2, out=result)
    torch.maximum(low1, low2, out=other)
    result.sub_(other).clamp_(min=0)

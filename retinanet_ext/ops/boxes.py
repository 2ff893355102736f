"""Areas and overlaps of boxes."""

import torch


def box_areas(boxes: torch.Tensor) -> torch.Tensor:
    """Areas ``(M,)`` in square pixels of ``boxes`` ``(M, 4)``, xyxy."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def pairwise_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every box of one set with every box of the other.

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

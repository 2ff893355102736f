"""Losses of a predicted box against its ground truth box that are built on their overlap.

GIoU: Rezatofighi et al. 2019. DIoU and CIoU: Zheng et al. 2020, eq. 7 and 10. Boxes are ``(x1, y1, x2, y2)`` in
pixels, row i of one against row i of the other.
"""

import math
from typing import NamedTuple

import torch

from .reduction import reduce_loss, upcast

# Keeps the ratios finite for boxes without area; the value Detectron2 and fvcore use, so that losses agree.
EPS = 1e-7


class _Overlap(NamedTuple):
    """Per-row quantities shared by the three losses, each of shape ``(M,)``."""

    iou: torch.Tensor
    union: torch.Tensor
    hull_wh: torch.Tensor  # (M, 2), of the smallest box around both


def _overlap(boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float) -> _Overlap:
    if boxes1.shape != boxes2.shape or boxes1.shape[-1] != 4:
        raise ValueError(f"boxes of one shape (M, 4) expected, got {tuple(boxes1.shape)} and {tuple(boxes2.shape)}")
    intersection_wh = torch.min(boxes1[..., 2:], boxes2[..., 2:]) - torch.max(boxes1[..., :2], boxes2[..., :2])
    intersection = intersection_wh.clamp(min=0).prod(dim=-1)
    union = _area(boxes1) + _area(boxes2) - intersection
    hull_wh = torch.max(boxes1[..., 2:], boxes2[..., 2:]) - torch.min(boxes1[..., :2], boxes2[..., :2])
    return _Overlap(intersection / (union + eps), union, hull_wh)


def _area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)


def _center_distance(boxes1: torch.Tensor, boxes2: torch.Tensor, hull_wh: torch.Tensor, eps: float) -> torch.Tensor:
    """Squared distance of the centres over the squared diagonal of the hull, ``(M,)``."""
    centers1 = (boxes1[..., :2] + boxes1[..., 2:]) / 2
    centers2 = (boxes2[..., :2] + boxes2[..., 2:]) / 2
    return (centers1 - centers2).square().sum(dim=-1) / (hull_wh.square().sum(dim=-1) + eps)


def giou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor, reduction: str = "none", eps: float = EPS) -> torch.Tensor:
    """``1 - IoU + (hull - union) / hull``: 0 for equal boxes, up to 2 for boxes far apart.

    Args:
        boxes1, boxes2: ``(M, 4)``, xyxy, ``x2 >= x1`` and ``y2 >= y1``. Half precision is raised to float32.
        reduction: ``none`` gives ``(M,)``; ``mean`` and ``sum`` a scalar.
        eps: added to the denominators.
    """
    boxes1, boxes2 = upcast(boxes1), upcast(boxes2)
    iou, union, hull_wh = _overlap(boxes1, boxes2, eps)
    hull = hull_wh.prod(dim=-1)
    return reduce_loss(1 - iou + (hull - union) / (hull + eps), reduction)


def diou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor, reduction: str = "none", eps: float = EPS) -> torch.Tensor:
    """``1 - IoU + d^2 / c^2``, with d the distance of the centres and c the hull's diagonal; arguments as GIoU's."""
    boxes1, boxes2 = upcast(boxes1), upcast(boxes2)
    iou, _, hull_wh = _overlap(boxes1, boxes2, eps)
    return reduce_loss(1 - iou + _center_distance(boxes1, boxes2, hull_wh, eps), reduction)


def ciou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor, reduction: str = "none", eps: float = EPS) -> torch.Tensor:
    """DIoU plus ``a v``, v the difference of the aspect angles; arguments as GIoU's.

    ``v = (4 / pi^2) (atan(w2 / h2) - atan(w1 / h1))^2`` and ``a = v / (1 - IoU + v)``, which is a weight and
    carries no gradient (paper, section "CIoU loss").
    """
    boxes1, boxes2 = upcast(boxes1), upcast(boxes2)
    iou, _, hull_wh = _overlap(boxes1, boxes2, eps)
    w1, h1 = (boxes1[..., 2:] - boxes1[..., :2]).unbind(dim=-1)
    w2, h2 = (boxes2[..., 2:] - boxes2[..., :2]).unbind(dim=-1)
    v = (4 / math.pi**2) * (torch.atan2(w2, h2) - torch.atan2(w1, h1)).square()
    with torch.no_grad():
        weight = v / (1 - iou + v + eps)
    return reduce_loss(1 - iou + _center_distance(boxes1, boxes2, hull_wh, eps) + weight * v, reduction)

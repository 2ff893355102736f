"""Box losses: smooth L1 on encoded boxes, and the losses that are built on the overlap of decoded boxes.

Smooth L1: Girshick, "Fast R-CNN", eq. 3, with the transition point as a parameter. GIoU: Rezatofighi et al. 2019. DIoU
and CIoU: Zheng et al. 2020, eq. 7 and 10. Boxes are ``(x1, y1, x2, y2)`` in pixels; row i of one tensor is compared
with row i of the other. The formulas come first, and training runs them as they are; then come the modules that apply
them to the foreground anchors.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from retinanet_ext.ops.box_math import box_areas, box_centers
from retinanet_ext.registry import check_registered

from .loss_interface import BOX_LOSS_REGISTRY, DensePredictions, DenseTargets, reduce_loss, sum_per_image, upcast

# Keeps the ratios finite for boxes without area; the value Detectron2 and fvcore use, so that losses agree.
EPS = 1e-7


def smooth_l1_loss(
    inputs: torch.Tensor, targets: torch.Tensor, beta: float = 0.0, reduction: str = "none"
) -> torch.Tensor:
    """``0.5 d^2 / beta`` where ``d = |inputs - targets| < beta``, else ``d - 0.5 beta``.

    ``beta = 0`` is the L1 loss, ``beta = 1`` the Huber loss of Fast R-CNN.

    Args:
        inputs, targets: any shape, the same for both, floating point; half precision is raised to float32.
        beta: where the parabola meets the line, >= 0, in the units of the inputs.
        reduction: ``none`` keeps the shape; ``mean`` and ``sum`` give a scalar.

    Raises:
        ValueError: shapes differ, ``beta`` is negative, or ``reduction`` is unknown.
    """
    if inputs.shape != targets.shape:
        raise ValueError(f"targets have shape {tuple(targets.shape)}, inputs {tuple(inputs.shape)}; they must agree")
    if beta < 0:
        raise ValueError(f"beta is {beta}; smooth L1 needs beta >= 0 (0 is L1)")
    distance = (upcast(inputs) - upcast(targets)).abs()
    # Dividing by a tiny beta would give NaN gradients through torch.where; below 1e-5 the parabola is negligible.
    if beta < 1e-5:
        return reduce_loss(distance, reduction)
    loss = torch.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)
    return reduce_loss(loss, reduction)


def l1_loss(inputs: torch.Tensor, targets: torch.Tensor, reduction: str = "none") -> torch.Tensor:
    """``|inputs - targets|`` of any shape; arguments and errors as for :func:`smooth_l1_loss`."""
    return smooth_l1_loss(inputs, targets, beta=0.0, reduction=reduction)


class _Overlap(NamedTuple):
    """Per-row quantities that the three losses share, ``(M,)`` unless noted."""

    iou: torch.Tensor
    union: torch.Tensor
    hull_wh: torch.Tensor  # (M, 2), width and height of the smallest box around both


def _overlap(boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float) -> _Overlap:
    if boxes1.shape != boxes2.shape or boxes1.shape[-1] != 4:
        raise ValueError(f"boxes of one shape (M, 4) expected, got {tuple(boxes1.shape)} and {tuple(boxes2.shape)}")
    intersection_wh = torch.min(boxes1[..., 2:], boxes2[..., 2:]) - torch.max(boxes1[..., :2], boxes2[..., :2])
    intersection = intersection_wh.clamp(min=0).prod(dim=-1)
    union = box_areas(boxes1) + box_areas(boxes2) - intersection
    hull_wh = torch.max(boxes1[..., 2:], boxes2[..., 2:]) - torch.min(boxes1[..., :2], boxes2[..., :2])
    return _Overlap(intersection / (union + eps), union, hull_wh)


def _center_distance(boxes1: torch.Tensor, boxes2: torch.Tensor, hull_wh: torch.Tensor, eps: float) -> torch.Tensor:
    """Squared distance of the centres over the squared diagonal of the hull, ``(M,)``."""
    distance = (box_centers(boxes1) - box_centers(boxes2)).square().sum(dim=-1)
    return distance / (hull_wh.square().sum(dim=-1) + eps)


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
    """``1 - IoU + d^2 / c^2``: d is the centres' distance, c the hull's diagonal. Boxes ``(M, 4)``, as for GIoU."""
    boxes1, boxes2 = upcast(boxes1), upcast(boxes2)
    iou, _, hull_wh = _overlap(boxes1, boxes2, eps)
    return reduce_loss(1 - iou + _center_distance(boxes1, boxes2, hull_wh, eps), reduction)


def ciou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor, reduction: str = "none", eps: float = EPS) -> torch.Tensor:
    """DIoU plus ``a v``, where v compares the aspect angles. Boxes ``(M, 4)`` and other arguments as for GIoU.

    ``v = (4 / pi^2) (atan(w2 / h2) - atan(w1 / h1))^2`` and ``a = v / (1 - IoU + v)``; ``a`` is a weight and
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


class DeltaLoss(nn.Module):
    """Smooth L1 between predicted and encoded ground truth deltas (Fast R-CNN); ``beta`` 0 is L1."""

    def __init__(self, *, beta: float = 0.0):
        super().__init__()
        self.beta = beta

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        """The loss of each image, ``(N,)``."""
        deltas = predictions.deltas[targets.image_index, targets.anchor_index]
        gt_deltas = predictions.encode(predictions.anchors[targets.anchor_index], targets.gt_boxes)
        return sum_per_image(smooth_l1_loss(deltas, gt_deltas, self.beta).sum(dim=1), targets)


class OverlapLoss(nn.Module):
    """A loss between decoded boxes and ground truth boxes, such as GIoU."""

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
        """
        Args:
            loss: ``(boxes (M, 4), gt_boxes (M, 4)) -> (M,)``.
        """
        super().__init__()
        self.loss = loss

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        """The loss of each image, ``(N,)``."""
        deltas = predictions.deltas[targets.image_index, targets.anchor_index]
        boxes = predictions.decode(deltas, predictions.anchors[targets.anchor_index])
        return sum_per_image(self.loss(boxes, targets.gt_boxes), targets)


OVERLAP_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def make_box_loss(name: str, smooth_l1_beta: float = 0.0) -> nn.Module:
    """The box loss called ``name``: ``smooth_l1``, ``l1``, ``giou``, ``diou`` or ``ciou``.

    Raises:
        ValueError: ``name`` is none of these.
    """
    if name in OVERLAP_LOSSES:
        return OverlapLoss(OVERLAP_LOSSES[name])
    if name in ("smooth_l1", "l1"):
        return DeltaLoss(beta=smooth_l1_beta if name == "smooth_l1" else 0.0)
    raise ValueError(f"box loss is {name!r}; legal values: smooth_l1, l1, {', '.join(OVERLAP_LOSSES)}")


def _register(name: str) -> None:
    BOX_LOSS_REGISTRY.register(lambda cfg: make_box_loss(name), name=name)


for _name in ("l1", *OVERLAP_LOSSES):
    _register(_name)


# Only this builder reads SMOOTH_L1_LOSS_BETA: keys that nothing reads are reported to the user.
@BOX_LOSS_REGISTRY.register(name="smooth_l1")
def _build_smooth_l1(cfg) -> nn.Module:
    return make_box_loss("smooth_l1", cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA)


def box_loss_name(section: Any, path: str) -> str:
    """The name in BOX_LOSS_REGISTRY that a section of a config chooses.

    Args:
        section: with ``BOX_LOSS.NAME``, and Detectron2's ``BBOX_REG_LOSS_TYPE``, which decides if the first is empty.
        path: the section's place in the config, such as ``MODEL.RETINANET``.

    Raises:
        KeyError: there is no such loss; the message lists the registered names.
        ValueError: the two keys name different losses.
    """
    name, detectron2_name = section.BOX_LOSS.NAME, section.BBOX_REG_LOSS_TYPE
    if name and detectron2_name not in ("smooth_l1", name):
        raise ValueError(
            f"{path}.BOX_LOSS.NAME is {name!r} and BBOX_REG_LOSS_TYPE is {detectron2_name!r}; set only one"
        )
    key = "BOX_LOSS.NAME" if name else "BBOX_REG_LOSS_TYPE"
    check_registered(f"{path}.{key}", name or detectron2_name, BOX_LOSS_REGISTRY)
    return name or detectron2_name

"""Focal losses with a target between 0 and 1: the IoU of an anchor's predicted box with its ground truth box.

Quality focal: Li et al. 2020, "Generalized Focal Loss", eq. 2. Varifocal: Zhang et al. 2021, "VarifocalNet", eq. 2.

First come the formulas, which training runs for foreground entries; then the losses over all anchors of a batch. Every
background entry has the target 0, for which both losses are the focal loss, up to a factor. So one pass over the logits
handles all background entries, and only the foreground entries use the formulas of this file.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from retinanet_ext.ops.box_math import box_columns, iou_of_columns

from .focal import check_alpha_gamma, check_shapes, focal_of_margin
from .loss_interface import CLS_LOSS_REGISTRY, DensePredictions, DenseTargets, reduce_loss, sum_per_image, upcast
from .one_pass import sums_and_entries


def quality_focal_loss(
    logits: torch.Tensor, targets: torch.Tensor, gamma: float = 2.0, reduction: str = "none"
) -> torch.Tensor:
    """Cross entropy to a target ``y`` in [0, 1], weighted by the distance to it. With ``s = sigmoid(x)``::

        QFL = -|y - s|^gamma ((1 - y) log(1 - s) + y log(s))

    The paper calls the exponent beta. For ``gamma > 0`` the loss is 0 at ``s = y``.

    Limits: for ``y`` 0 or 1 it is the focal loss without alpha; ``gamma = 0`` is cross entropy to a soft target.

    Args:
        logits: any shape, floating point; half precision is raised to float32.
        targets: same shape, values in [0, 1].
        gamma: exponent, >= 0.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        The loss, of the logits' shape for ``none`` and a scalar otherwise. Loss and gradient are finite for
        every finite logit.

    Raises:
        ValueError: shapes differ, ``gamma`` is negative, or ``reduction`` is unknown.
    """
    check_alpha_gamma(-1, gamma)
    check_shapes(logits, targets)
    logits = upcast(logits)
    targets = targets.to(logits.dtype)
    # y - s in a form that stays accurate near 0 for y in {0, 1}; clamped because d**gamma with gamma < 1 has an
    # infinite derivative at 0.
    distance = targets * torch.sigmoid(-logits) - (1 - targets) * torch.sigmoid(logits)
    distance = distance.abs().clamp(min=torch.finfo(distance.dtype).tiny)
    return reduce_loss(distance**gamma * _cross_entropy(logits, targets), reduction)


def varifocal_loss(
    logits: torch.Tensor, targets: torch.Tensor, alpha: float = 0.75, gamma: float = 2.0, reduction: str = "none"
) -> torch.Tensor:
    """Cross entropy to a target ``q`` in [0, 1], weighted by ``q``; focal only at 0. With ``p = sigmoid(x)``::

        VFL = -q (q log(p) + (1 - q) log(1 - p))   for q > 0
        VFL = -alpha p^gamma log(1 - p)            for q = 0

    Limits: for ``q = 1`` it is cross entropy; for ``q = 0``, ``alpha`` times the unweighted focal loss. The loss
    jumps where ``q`` becomes 0.

    Args:
        logits: any shape, floating point; half precision is raised to float32.
        targets: same shape, values in [0, 1].
        alpha: weight of entries with target 0, >= 0. Unlike the focal loss's alpha, it leaves the others alone.
        gamma: focusing exponent of entries with target 0, >= 0.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        The loss, of the logits' shape for ``none`` and a scalar otherwise. Loss and gradient are finite for
        every finite logit.

    Raises:
        ValueError: shapes differ, ``alpha`` or ``gamma`` is negative, or ``reduction`` is unknown.
    """
    check_varifocal(alpha, gamma)
    check_shapes(logits, targets)
    logits = upcast(logits)
    targets = targets.to(logits.dtype)
    positive = targets * _cross_entropy(logits, targets)
    negative = alpha * focal_of_margin(-logits, gamma)
    return reduce_loss(torch.where(targets > 0, positive, negative), reduction)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy to soft targets, elementwise, for two tensors of any one shape."""
    # PyTorch's own function subtracts nearly equal numbers for targets near 0, so that small losses lose their digits.
    return -targets * F.logsigmoid(logits) - (1 - targets) * F.logsigmoid(-logits)


def dense_background_focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    image_index: torch.Tensor,
    anchor_index: torch.Tensor,
    gamma: float = 2.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The unweighted focal loss of all background entries, and the logits of the foreground entries, so that another
    loss can be applied to them. Both results share one gradient tensor.

    Args:
        logits: ``(N, R, K)``.
        labels: ``(N, R)`` int64, as for :func:`~retinanet_ext.losses.dense_focal_loss`.
        image_index, anchor_index: ``(M,)`` int64, the anchors that have a class.
        gamma: focusing exponent, >= 0.

    Returns:
        Sums of the images, ``(N,)``; and the logits of these anchors at their classes, ``(M,)``, in the logits' dtype.

    Raises:
        ValueError: as :func:`~retinanet_ext.losses.dense_focal_loss`.
    """
    check_alpha_gamma(0.0, gamma)
    index = (image_index, anchor_index, labels[image_index, anchor_index])
    # With alpha 0, foreground entries have weight 0 and background entries weight 1.
    return sums_and_entries("focal", [gamma], logits, labels, 0.0, *index)


class DenseQualityFocalLoss(nn.Module):
    """The quality focal loss over all anchors of a batch (Li et al. 2020).

    The target of a foreground anchor, at its class, is the IoU of its predicted box with its ground truth box;
    all other targets are 0. No gradient reaches the boxes.
    """

    def __init__(self, *, gamma: float = 2.0):
        """
        Args:
            gamma: exponent of the distance to the target, >= 0.
        """
        super().__init__()
        check_alpha_gamma(-1, gamma)
        self.gamma = gamma

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        """The loss of each image, ``(N,)``."""
        background, logits = dense_background_focal_loss(
            predictions.logits, targets.labels, targets.image_index, targets.anchor_index, self.gamma
        )
        loss = quality_focal_loss(logits, _predicted_ious(predictions, targets), self.gamma)
        return background + sum_per_image(loss, targets)


class DenseVarifocalLoss(nn.Module):
    """The varifocal loss over all anchors of a batch (Zhang et al. 2021); targets as for the quality focal loss."""

    def __init__(self, *, alpha: float = 0.75, gamma: float = 2.0):
        """
        Args:
            alpha: weight of the background entries, >= 0; the weight of a foreground entry is its IoU.
            gamma: focusing exponent of the background entries, >= 0.
        """
        super().__init__()
        check_varifocal(alpha, gamma)
        self.alpha, self.gamma = alpha, gamma

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        """The loss of each image, ``(N,)``."""
        background, logits = dense_background_focal_loss(
            predictions.logits, targets.labels, targets.image_index, targets.anchor_index, self.gamma
        )
        loss = varifocal_loss(logits, _predicted_ious(predictions, targets), self.alpha, self.gamma)
        return self.alpha * background + sum_per_image(loss, targets)


@torch.no_grad()
def _predicted_ious(predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
    """IoUs of the foreground anchors' predicted boxes with their ground truth boxes: ``(M,)``."""
    deltas = predictions.deltas[targets.image_index, targets.anchor_index]
    boxes = predictions.decode(deltas, predictions.anchors[targets.anchor_index])
    return iou_of_columns(box_columns(boxes), box_columns(targets.gt_boxes.to(boxes.dtype)))


@CLS_LOSS_REGISTRY.register(name="quality_focal")
def _build_quality_focal(cfg) -> DenseQualityFocalLoss:
    return DenseQualityFocalLoss(gamma=cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA)


@CLS_LOSS_REGISTRY.register(name="varifocal")
def _build_varifocal(cfg) -> DenseVarifocalLoss:
    retinanet = cfg.MODEL.RETINANET
    return DenseVarifocalLoss(alpha=retinanet.CLS_LOSS.VARIFOCAL.ALPHA, gamma=retinanet.FOCAL_LOSS_GAMMA)


def check_varifocal(alpha: float, gamma: float) -> None:
    """
    Raises:
        ValueError: ``alpha`` or ``gamma`` is negative or not finite.
    """
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha is {alpha}; the varifocal loss needs a finite alpha >= 0, the weight of background")
    check_alpha_gamma(-1, gamma)

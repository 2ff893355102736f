"""Classification losses over dense predictions."""

from collections.abc import Sequence

import torch
from torch import nn

from retinanet_ext.ops import (
    check_alpha_gamma,
    check_focal_star,
    check_margin,
    dense_background_focal_loss,
    dense_focal_loss,
    dense_focal_star_loss,
    dense_hinge_loss,
)
from retinanet_ext.ops.boxes import box_columns, iou_of_columns

from .dense import CLS_LOSS_REGISTRY, DensePredictions, DenseTargets, sum_per_image
from .quality import check_varifocal, quality_focal_loss, varifocal_loss


class DenseFocalLoss(nn.Module):
    """The focal loss over all anchors of a batch (RetinaNet paper, section 4.1 "Focal Loss")."""

    def __init__(self, *, alpha: float | Sequence[float] = 0.25, gamma: float = 2.0):
        """
        Args:
            alpha: weight of the foreground in [0, 1]; negative switches the weighting off. A sequence holds one in
                [0, 1] for each class.
            gamma: focusing exponent, >= 0; 0 is alpha-balanced cross entropy.
        """
        super().__init__()
        check_alpha_gamma(alpha, gamma)
        _keep_alpha(self, alpha)
        self.gamma = gamma

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        return dense_focal_loss(
            predictions.logits, targets.labels, alpha=self.alpha, gamma=self.gamma, reduction="per_image"
        )


class DenseFocalStarLoss(nn.Module):
    """FL* over all anchors of a batch (RetinaNet paper, appendix A)."""

    def __init__(self, *, alpha: float | Sequence[float] = 0.25, gamma: float = 2.0, beta: float = 1.0):
        """
        Args:
            alpha: as for :class:`DenseFocalLoss`.
            gamma: steepness, > 0.
            beta: shift.
        """
        super().__init__()
        check_focal_star(alpha, gamma, beta)
        _keep_alpha(self, alpha)
        self.gamma, self.beta = gamma, beta

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        return dense_focal_star_loss(
            predictions.logits, targets.labels, self.alpha, self.gamma, self.beta, reduction="per_image"
        )


class DenseHingeLoss(nn.Module):
    """The hinge loss on p_t over all anchors of a batch (RetinaNet paper, section 5.1)."""

    def __init__(self, *, margin: float = 0.5):
        """
        Args:
            margin: the ``p_t`` from which on there is no loss, in (0, 1].
        """
        super().__init__()
        check_margin(margin)
        self.margin = margin

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        return dense_hinge_loss(predictions.logits, targets.labels, self.margin, reduction="per_image")


class DenseQualityFocalLoss(nn.Module):
    """The quality focal loss over all anchors of a batch (Li et al. 2020).

    The target of a foreground anchor, at its class, is the IoU of the box that it predicts with its ground truth box;
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
        background, logits = _background_and_foreground(predictions, targets, self.gamma)
        loss = quality_focal_loss(logits, _predicted_ious(predictions, targets), self.gamma)
        return background + sum_per_image(loss, targets)


class DenseVarifocalLoss(nn.Module):
    """The varifocal loss over all anchors of a batch (Zhang et al. 2021); targets as for the quality focal loss."""

    def __init__(self, *, alpha: float = 0.75, gamma: float = 2.0):
        """
        Args:
            alpha: weight of the background entries, >= 0; foreground entries weigh what their IoU is.
            gamma: focusing exponent of the background entries, >= 0.
        """
        super().__init__()
        check_varifocal(alpha, gamma)
        self.alpha, self.gamma = alpha, gamma

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        background, logits = _background_and_foreground(predictions, targets, self.gamma)
        loss = varifocal_loss(logits, _predicted_ious(predictions, targets), self.alpha, self.gamma)
        return self.alpha * background + sum_per_image(loss, targets)


def _keep_alpha(module: nn.Module, alpha: float | Sequence[float]) -> None:
    if isinstance(alpha, (int, float)):
        module.alpha = alpha
    else:  # moves with the module, so that it is not copied to the device every time
        module.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float32), persistent=False)


def _background_and_foreground(
    predictions: DensePredictions, targets: DenseTargets, gamma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Focal loss of the background ``(N,)``, and the logits ``(M,)`` of the foreground anchors at their classes."""
    return dense_background_focal_loss(
        predictions.logits, targets.labels, targets.image_index, targets.anchor_index, gamma
    )


@torch.no_grad()
def _predicted_ious(predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
    """IoUs of the boxes that the foreground anchors predict with their ground truth boxes: ``(M,)``."""
    deltas = predictions.deltas[targets.image_index, targets.anchor_index]
    boxes = predictions.decode(deltas, predictions.anchors[targets.anchor_index])
    return iou_of_columns(box_columns(boxes), box_columns(targets.gt_boxes.to(boxes.dtype)))


@CLS_LOSS_REGISTRY.register(name="focal")
def _build_focal(cfg) -> DenseFocalLoss:
    return DenseFocalLoss(alpha=_alpha_of(cfg), gamma=cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA)


@CLS_LOSS_REGISTRY.register(name="focal_star")
def _build_focal_star(cfg) -> DenseFocalStarLoss:
    retinanet = cfg.MODEL.RETINANET
    return DenseFocalStarLoss(
        alpha=_alpha_of(cfg), gamma=retinanet.FOCAL_LOSS_GAMMA, beta=retinanet.CLS_LOSS.FOCAL_STAR.BETA
    )


# Every builder reads the keys of its loss and no other: keys that nothing reads are reported to the user.
@CLS_LOSS_REGISTRY.register(name="cross_entropy")
def _build_cross_entropy(cfg) -> DenseFocalLoss:
    return DenseFocalLoss(alpha=-1, gamma=0)


@CLS_LOSS_REGISTRY.register(name="balanced_cross_entropy")
def _build_balanced_cross_entropy(cfg) -> DenseFocalLoss:
    return DenseFocalLoss(alpha=_alpha_of(cfg), gamma=0)


@CLS_LOSS_REGISTRY.register(name="hinge")
def _build_hinge(cfg) -> DenseHingeLoss:
    return DenseHingeLoss(margin=cfg.MODEL.RETINANET.CLS_LOSS.HINGE.MARGIN)


@CLS_LOSS_REGISTRY.register(name="quality_focal")
def _build_quality_focal(cfg) -> DenseQualityFocalLoss:
    return DenseQualityFocalLoss(gamma=cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA)


@CLS_LOSS_REGISTRY.register(name="varifocal")
def _build_varifocal(cfg) -> DenseVarifocalLoss:
    retinanet = cfg.MODEL.RETINANET
    return DenseVarifocalLoss(alpha=retinanet.CLS_LOSS.VARIFOCAL.ALPHA, gamma=retinanet.FOCAL_LOSS_GAMMA)


def _alpha_of(cfg) -> float | Sequence[float]:
    """``FOCAL_LOSS_ALPHA``, or in its place one alpha for each class."""
    retinanet = cfg.MODEL.RETINANET
    values = retinanet.CLS_LOSS.CLASS_ALPHAS
    if not values:
        return retinanet.FOCAL_LOSS_ALPHA
    if len(values) != retinanet.NUM_CLASSES:
        raise ValueError(
            f"MODEL.RETINANET.CLS_LOSS.CLASS_ALPHAS has {len(values)} values, and MODEL.RETINANET.NUM_CLASSES is "
            f"{retinanet.NUM_CLASSES}; give one alpha for each class, or [] for FOCAL_LOSS_ALPHA in all"
        )
    return values

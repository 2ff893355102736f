"""Losses: pure functions of tensors, and the small modules that apply them to dense predictions."""

from .box_iou import ciou_loss, diou_loss, giou_loss
from .box_regression import DeltaLoss, OverlapLoss
from .classification import (
    DenseFocalLoss,
    DenseFocalStarLoss,
    DenseHingeLoss,
    DenseQualityFocalLoss,
    DenseVarifocalLoss,
)
from .dense import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY, DensePredictions, DenseTargets, sum_per_image
from .focal import sigmoid_focal_loss
from .focal_star import sigmoid_focal_star_loss
from .hinge import sigmoid_hinge_loss
from .ohem import OHEMLoss
from .quality import quality_focal_loss, varifocal_loss
from .reduction import reduce_loss
from .smooth_l1 import l1_loss, smooth_l1_loss

__all__ = [
    "BOX_LOSS_REGISTRY",
    "CLS_LOSS_REGISTRY",
    "DeltaLoss",
    "DenseFocalLoss",
    "DenseFocalStarLoss",
    "DenseHingeLoss",
    "DensePredictions",
    "DenseQualityFocalLoss",
    "DenseTargets",
    "DenseVarifocalLoss",
    "OHEMLoss",
    "OverlapLoss",
    "ciou_loss",
    "diou_loss",
    "giou_loss",
    "l1_loss",
    "quality_focal_loss",
    "reduce_loss",
    "sigmoid_focal_loss",
    "sigmoid_focal_star_loss",
    "sigmoid_hinge_loss",
    "smooth_l1_loss",
    "sum_per_image",
    "varifocal_loss",
]

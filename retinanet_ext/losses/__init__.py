"""Losses: pure functions of tensors, and the small modules that apply them to dense predictions."""

from .box_iou import ciou_loss, diou_loss, giou_loss
from .box_regression import DeltaLoss, OverlapLoss
from .classification import DenseFocalLoss
from .dense import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY, DensePredictions, DenseTargets, sum_per_image
from .focal import sigmoid_focal_loss
from .ohem import OHEMLoss
from .reduction import reduce_loss
from .smooth_l1 import l1_loss, smooth_l1_loss

__all__ = [
    "BOX_LOSS_REGISTRY",
    "CLS_LOSS_REGISTRY",
    "DeltaLoss",
    "DenseFocalLoss",
    "DensePredictions",
    "DenseTargets",
    "OHEMLoss",
    "OverlapLoss",
    "ciou_loss",
    "diou_loss",
    "giou_loss",
    "l1_loss",
    "reduce_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "sum_per_image",
]

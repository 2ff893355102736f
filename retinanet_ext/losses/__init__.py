"""Losses of a dense detector. Imports torch, the box operations of `ops` and the registry, but no engine.

In reading order:

- ``loss_interface.py``: what a loss sees and returns, and the two registries
- ``focal.py``: the focal loss on one page: formula, plain form, and the fast form that training runs
- ``one_pass.py``: how such a loss and its gradient are computed in one pass over a batch
- ``focal_triton.py``: the same for the focal loss, as one CUDA kernel
- ``focal_star.py``: FL*, the paper's alternate focal loss
- ``hinge.py``: the hinge loss on p_t
- ``quality.py``: focal losses whose target is an IoU
- ``ohem.py``: cross entropy on the hardest anchors only
- ``box_losses.py``: smooth L1, GIoU, DIoU and CIoU
- ``triplet.py``: the triplet loss of embeddings
"""

from .box_losses import DeltaLoss, OverlapLoss, ciou_loss, diou_loss, giou_loss, l1_loss, smooth_l1_loss
from .focal import DenseFocalLoss, dense_focal_loss, sigmoid_focal_loss
from .focal_star import DenseFocalStarLoss, dense_focal_star_loss, sigmoid_focal_star_loss
from .hinge import DenseHingeLoss, dense_hinge_loss, sigmoid_hinge_loss
from .loss_interface import (
    BOX_LOSS_REGISTRY,
    CLS_LOSS_REGISTRY,
    DensePredictions,
    DenseTargets,
    reduce_loss,
    sum_per_image,
)
from .ohem import OHEMLoss
from .quality import DenseQualityFocalLoss, DenseVarifocalLoss, quality_focal_loss, varifocal_loss
from .triplet import selected_triplet_loss, triplet_loss

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
    "dense_focal_loss",
    "dense_focal_star_loss",
    "dense_hinge_loss",
    "diou_loss",
    "giou_loss",
    "l1_loss",
    "quality_focal_loss",
    "reduce_loss",
    "selected_triplet_loss",
    "sigmoid_focal_loss",
    "sigmoid_focal_star_loss",
    "sigmoid_hinge_loss",
    "smooth_l1_loss",
    "sum_per_image",
    "triplet_loss",
    "varifocal_loss",
]

"""Tensor operations of the detectors. Knows only torch.

Boxes are ``(x1, y1, x2, y2)`` in continuous pixel coordinates: a box from pixel 3 to pixel 5 inclusive is
``[3, 6)``, has width 3, and the centre of the image's first pixel lies at 0.5.
"""

from .boxes import box_areas, pairwise_iou
from .dense_focal_reference import focal_of_margin
from .dense_margin import (
    check_alpha_gamma,
    check_focal_star,
    check_margin,
    dense_background_focal_loss,
    dense_focal_loss,
    dense_focal_star_loss,
    dense_hinge_loss,
)
from .nms import batched_nms

__all__ = [
    "batched_nms",
    "box_areas",
    "check_alpha_gamma",
    "check_focal_star",
    "check_margin",
    "dense_background_focal_loss",
    "dense_focal_loss",
    "dense_focal_star_loss",
    "dense_hinge_loss",
    "focal_of_margin",
    "pairwise_iou",
]

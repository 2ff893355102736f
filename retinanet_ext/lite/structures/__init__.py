"""Containers for boxes, per-image instances and padded image batches."""

from .boxes import Boxes, BoxMode
from .image_list import ImageList
from .instances import Instances

__all__ = ["BoxMode", "Boxes", "ImageList", "Instances"]

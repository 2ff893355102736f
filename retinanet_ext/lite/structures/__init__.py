"""Containers for boxes, per-image instances and padded image batches.

In reading order:

- ``boxes.py``: boxes, and what their numbers mean
- ``instances.py``: what is known about the objects of one image
- ``image_list.py``: images of different sizes in one tensor
"""

from .boxes import Boxes, BoxMode
from .image_list import ImageList
from .instances import Instances

__all__ = ["BoxMode", "Boxes", "ImageList", "Instances"]

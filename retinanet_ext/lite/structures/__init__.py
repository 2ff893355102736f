"""Containers for boxes, masks, keypoints, per-image instances and padded image batches.

In reading order:

- ``boxes.py``: boxes, and what their numbers mean
- ``masks.py``: masks as polygons and as bits
- ``keypoints.py``: keypoints
- ``instances.py``: what is known about the objects of one image
- ``image_list.py``: images of different sizes in one tensor
"""

from .boxes import Boxes, BoxMode
from .image_list import ImageList
from .instances import Instances
from .keypoints import Keypoints
from .masks import BitMasks, PolygonMasks, polygons_to_bitmask

__all__ = ["BitMasks", "BoxMode", "Boxes", "ImageList", "Instances", "Keypoints", "PolygonMasks", "polygons_to_bitmask"]

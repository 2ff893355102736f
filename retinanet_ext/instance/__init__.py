"""Detectors of instances: boxes, masks and keypoints.

In reading order:

- ``roi_align.py``: bilinear samples of a region, averaged or maximal: the reference, and the fast average
- ``roi_align_max.py``: the fast maximum
- ``single_threads.py``: many small tensor operations on all cores
- ``roi_layers.py``: RoIAlign, RoIWarp and RoIPool on one feature map
- ``pooler.py``: RoIs pooled from the levels of a feature pyramid; the registry of RoI layers
"""

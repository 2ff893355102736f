"""Instance masks and keypoints: the parts of Mask R-CNN (He et al., 2017), for one stage and two stages.

In reading order:

- ``shared_count.py``: the count that a loss is divided by, shared by all processes
"""

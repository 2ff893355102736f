"""Detectors of instances: boxes, masks and keypoints.

In reading order:

- ``rpn.py``: the first stage: where there may be objects
- ``proposals.py``: from the first stage's raw outputs to the boxes that the second stage looks at
- ``sampling.py``: which anchors or boxes take part in a loss
- ``stage_losses.py``: the losses of both stages, by config
"""

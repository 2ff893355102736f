"""Detectors of instances: boxes, masks and keypoints, in two stages (He et al., "Mask R-CNN", 2017).

In reading order:

- ``rpn.py``: the first stage: where there may be objects
- ``proposals.py``: from the first stage's raw outputs to the boxes that the second stage looks at
- ``sampling.py``: which anchors or boxes take part in a loss
- ``stage_losses.py``: the losses of both stages, by config
- ``pooler.py``: RoIs pooled from the levels of a feature pyramid; the registry of RoI layers
- ``roi_layers.py``: RoIAlign, RoIWarp and RoIPool on one feature map
- ``roi_align.py``: bilinear samples of a region, averaged or maximal: the reference, and the fast average
- ``roi_align_max.py``: the fast maximum
- ``mask_head.py``: from the features of RoIs to masks: convolutional, fully connected, with a softmax over classes
- ``mask_loss.py``: losses of masks, and the masks they are compared with
- ``keypoint_head.py``: from the features of RoIs to a heatmap for each keypoint, and its loss
- ``keypoint_heatmaps.py``: keypoints as positions in a heatmap, and back
- ``shared_count.py``: the count that a loss is divided by, shared by all processes
"""

"""Instance masks and keypoints: the parts of Mask R-CNN (He et al., 2017), for one stage and two stages.

In reading order:

- ``mask_head.py``: from the features of RoIs to masks: convolutional, fully connected, with a softmax over classes
- ``mask_loss.py``: losses of masks, and the masks they are compared with
- ``keypoint_head.py``: from the features of RoIs to a heatmap for each keypoint, and its loss
- ``keypoint_heatmaps.py``: keypoints as positions in a heatmap, and back
- ``shared_count.py``: the count that a loss is divided by, shared by all processes
"""

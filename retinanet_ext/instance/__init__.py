"""Detectors of instances: boxes, masks, keypoints and embeddings, in one stage and in two.

Masks and keypoints as in He et al., "Mask R-CNN", 2017.

In reading order:

- ``one_stage.py``: RetinaNet with masks, keypoints and embeddings on its detections
- ``two_stage.py``: Mask R-CNN: the steps of training and inference
- ``branches.py``: the branches beside the boxes, for one stage and two
- ``rpn.py``: the first stage: where there may be objects
- ``proposals.py``: from the first stage's raw outputs to the boxes that the second stage looks at
- ``sampling.py``: which anchors or boxes take part in a loss; the matcher of a stage
- ``roi_heads.py``: the second stage with a head per task: boxes, masks, keypoints
- ``res5_roi_heads.py``: the second stage on a C4 backbone, with one stage of the ResNet for all tasks
- ``roi_targets.py``: what each proposal should predict, and which ones train the second stage
- ``pooler.py``: RoIs pooled from the levels of a feature pyramid; the registry of RoI layers
- ``roi_layers.py``: RoIAlign, RoIWarp and RoIPool on one feature map
- ``roi_align.py``: bilinear samples of a region, averaged or maximal: the reference, and the fast average
- ``roi_align_max.py``: the fast maximum
- ``single_threads.py``: many small tensor operations on all cores
- ``box_head.py``: the box branch: head, predictor, losses
- ``box_detections.py``: from class scores and box offsets to detections: the method, and its fast form
- ``mask_head.py``: from the features of RoIs to masks: convolutional, fully connected, with a softmax over classes
- ``mask_loss.py``: losses of masks, and the masks they are compared with
- ``keypoint_head.py``: from the features of RoIs to a heatmap for each keypoint, and its loss
- ``embedding_head.py``: from the features of RoIs to embeddings that tell identities apart, and their loss
- ``keypoint_heatmaps.py``: keypoints as positions in a heatmap, and back
- ``stage_losses.py``: the losses of both stages, by config
- ``shared_count.py``: the count that a loss is divided by, shared by all processes
- ``micro_batch_shares.py``: what the losses of a micro-batch are multiplied by
- ``ground_truth_parts.py``: checks of the masks, keypoints and identities of a training batch
- ``postprocess.py``: detections at the size of the user's image, with masks as pixels or run lengths
"""

from retinanet_ext.d2 import META_ARCH_REGISTRY

from .one_stage import InstanceRetinaNet
from .res5_roi_heads import Res5ROIHeads
from .roi_heads import StandardROIHeads
from .two_stage import MaskRCNN

if "GeneralizedRCNN" not in META_ARCH_REGISTRY:
    # On `lite`, a config for Detectron2's own class builds this one, which computes the same.
    META_ARCH_REGISTRY.register(MaskRCNN, name="GeneralizedRCNN")

__all__ = ["InstanceRetinaNet", "MaskRCNN", "Res5ROIHeads", "StandardROIHeads"]

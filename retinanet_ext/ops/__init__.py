"""Operations on boxes, masks and keypoints. Imports no engine.

Boxes are ``(x1, y1, x2, y2)`` in continuous pixel coordinates: a box from pixel 3 to pixel 5 inclusive is
``[3, 6)`` and has width 3; the centre of the image's first pixel lies at 0.5.

In reading order:

- ``box_math.py``: areas, overlaps, and boxes as offsets from anchors
- ``grid_anchors.py``: the best overlap of boxes with the anchors of a feature map
- ``nms.py``: non-maximum suppression: class-wise, and of many boxes in blocks
- ``mask_pasting.py``: predicted masks put into the image: the method, and its fast forms
- ``scaled_detections.py``: detections scaled to another image size
- ``encoded_masks.py``: the masks of an image as run lengths
- ``coco_rle.py``: the run lengths of one mask: encoded, compressed, decoded, as JSON
- ``coco_keypoints.py``: the labelled keypoints of one object
"""

from .box_math import Box2BoxTransform, box_areas, pairwise_iou
from .encoded_masks import EncodedMasks
from .mask_pasting import encode_pasted_masks, paste_masks
from .nms import batched_nms, nms_in_blocks, nms_of_valid

__all__ = [
    "Box2BoxTransform",
    "EncodedMasks",
    "batched_nms",
    "box_areas",
    "dense_focal_loss",
    "encode_pasted_masks",
    "nms_in_blocks",
    "nms_of_valid",
    "pairwise_iou",
    "paste_masks",
]


def __getattr__(name: str):
    # The focal loss lives beside its formula. Its name here is part of the public interface.
    if name == "dense_focal_loss":
        from retinanet_ext.losses import dense_focal_loss

        return dense_focal_loss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

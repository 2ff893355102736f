"""RetinaNet: from images to losses in training, and to detections at inference.

In reading order:

- ``retinanet.py``: the meta-architecture: the steps of training and inference
- ``head.py``: the two subnets that classify and regress every anchor
- ``targets.py``: what every anchor should predict
- ``matcher.py``: which ground truth box each anchor is matched to: the rule, and its fast forms
- ``atss_matcher.py``: another rule, with one IoU threshold per ground truth box
- ``normalizer.py``: what the summed losses are divided by
- ``decoding.py``: from raw outputs to detections: the method, and its fast form
- ``micro_batches.py``: what must be known about a micro-batch before it runs
- ``convolutions.py``: frozen batch norms folded into convolutions; a defect of PyTorch avoided
- ``gradient_checkpointing.py``: training with less memory and more time
- ``missing_keys.py``: a config without the keys of this package
- ``class_metadata.py``: class names where Detectron2's tools look for them
- ``training_picture.py``: a picture of ground truth and predictions during training
- ``p5_backbone.py``: an FPN whose P6 is made from P5
"""

from retinanet_ext.d2 import META_ARCH_REGISTRY
from retinanet_ext.ops import Box2BoxTransform

from . import p5_backbone  # noqa: F401  (registers a backbone builder)
from .atss_matcher import ATSSMatcher
from .decoding import decode_batch, decode_image
from .head import DENSE_HEAD_REGISTRY, RetinaNetHead
from .matcher import ANCHOR_MATCHER_REGISTRY, IoUMatcher
from .normalizer import EMANormalizer, ForegroundNormalizer
from .retinanet import FocalRetinaNet
from .targets import label_anchors

if "RetinaNet" not in META_ARCH_REGISTRY:
    # On `lite`, a config for Detectron2's own class builds this one, which computes the same.
    META_ARCH_REGISTRY.register(FocalRetinaNet, name="RetinaNet")

__all__ = [
    "ANCHOR_MATCHER_REGISTRY",
    "DENSE_HEAD_REGISTRY",
    "ATSSMatcher",
    "Box2BoxTransform",
    "EMANormalizer",
    "FocalRetinaNet",
    "ForegroundNormalizer",
    "IoUMatcher",
    "RetinaNetHead",
    "decode_batch",
    "decode_image",
    "label_anchors",
]

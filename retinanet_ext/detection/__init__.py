"""RetinaNet: box coding, matching, targets, head, decoding, and the meta-architecture that runs them."""

from . import backbone  # noqa: F401  (registers a backbone builder)
from .atss_matcher import ATSSMatcher
from .box_coding import Box2BoxTransform
from .decoding import decode_batch, decode_image
from .head import DENSE_HEAD_REGISTRY, RetinaNetHead
from .matcher import ANCHOR_MATCHER_REGISTRY, IoUMatcher
from .normalizer import EMANormalizer, ForegroundNormalizer
from .retinanet import FocalRetinaNet
from .targets import label_anchors
from .tta import DenseDetectorWithTTA

__all__ = [
    "ANCHOR_MATCHER_REGISTRY",
    "DENSE_HEAD_REGISTRY",
    "ATSSMatcher",
    "Box2BoxTransform",
    "DenseDetectorWithTTA",
    "EMANormalizer",
    "FocalRetinaNet",
    "ForegroundNormalizer",
    "IoUMatcher",
    "RetinaNetHead",
    "decode_batch",
    "decode_image",
    "label_anchors",
]

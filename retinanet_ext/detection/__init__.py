"""RetinaNet: box coding, matching, targets, head, decoding, and the meta-architecture that runs them."""


from retinanet_ext.ops import Box2BoxTransform

from . import p5_backbone  # noqa: F401  (registers a backbone builder)
from .atss_matcher import ATSSMatcher
from .decoding import decode_batch, decode_image
from .head import DENSE_HEAD_REGISTRY, RetinaNetHead
from .matcher import ANCHOR_MATCHER_REGISTRY, IoUMatcher
from .normalizer import EMANormalizer, ForegroundNormalizer
from .retinanet import FocalRetinaNet
from .targets import label_anchors

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

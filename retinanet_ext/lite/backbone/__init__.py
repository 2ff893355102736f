"""Feature extractors: ResNet and ResNeXt, and feature pyramids on top of them."""

from .backbone_base import BACKBONE_REGISTRY, Backbone, build_backbone

# These two register their builders.
from .fpn import FPN, LastLevelP6P7, build_retinanet_resnet_fpn_backbone
from .resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet, build_resnet_backbone

__all__ = [
    "BACKBONE_REGISTRY",
    "FPN",
    "Backbone",
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "LastLevelP6P7",
    "ResNet",
    "build_backbone",
    "build_resnet_backbone",
    "build_retinanet_resnet_fpn_backbone",
]

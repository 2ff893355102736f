"""Feature extractors: ResNet and ResNeXt, and feature pyramids on top of them.

In reading order:

- ``backbone_base.py``: what a backbone is, and how a config names one
- ``resnet.py``: ResNet and ResNeXt
- ``fpn.py``: the feature pyramid, and the levels on top: RetinaNet's two, or one for proposals
"""

from .backbone_base import BACKBONE_REGISTRY, Backbone, build_backbone

# Importing these two modules registers their builders.
from .fpn import (
    FPN,
    LastLevelMaxPool,
    LastLevelP6P7,
    build_resnet_fpn_backbone,
    build_retinanet_resnet_fpn_backbone,
)
from .resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet, build_resnet_backbone

__all__ = [
    "BACKBONE_REGISTRY",
    "FPN",
    "Backbone",
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "ResNet",
    "build_backbone",
    "build_resnet_backbone",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
]

"""What a backbone is, and how a config names one."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod

import torch
from torch import nn

from retinanet_ext.registry import Registry

from ..cfg_node import CfgNode
from ..layers import ShapeSpec

BACKBONE_REGISTRY = Registry("BACKBONE")
"""Functions `f(cfg, input_shape: ShapeSpec) -> Backbone`, chosen by MODEL.BACKBONE.NAME."""


class Backbone(nn.Module, metaclass=ABCMeta):
    """Maps images to named feature maps.

    Subclasses set three attributes, which `output_shape` reads.

    Attributes:
        _out_features: names of the outputs, in order.
        _out_feature_channels, _out_feature_strides: number of channels and stride (input pixels) by name.
    """

    def __init__(self):
        super().__init__()
        self._out_features: list[str] = []
        self._out_feature_channels: dict[str, int] = {}
        self._out_feature_strides: dict[str, int] = {}

    @abstractmethod
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (N, C, H, W) to features by name, each (N, channels, about H / stride, about W / stride)."""

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of this; 0: any size."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further requirements on the input size, in the form that `ImageList.from_tensors` takes."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """The backbone that MODEL.BACKBONE.NAME names. By default its input has one channel per value of
    MODEL.PIXEL_MEAN."""
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    return BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)

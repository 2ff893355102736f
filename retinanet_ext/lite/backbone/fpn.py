"""Feature pyramid (Lin et al., "Feature Pyramid Networks for Object Detection"), with P6 for proposals on top of it, or
RetinaNet's P6 and P7 (Lin et al., "Focal Loss for Dense Object Detection")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..cfg_node import CfgNode
from ..layers import Conv2d, ShapeSpec, fill_xavier_, get_norm
from .backbone_base import BACKBONE_REGISTRY, Backbone
from .resnet import build_resnet_backbone


class FPN(Backbone):
    """Adds a top-down path to a backbone. A feature of stride 2^k becomes the output `p<k>`.

    Args:
        bottom_up: the backbone below.
        in_features: outputs of `bottom_up` to use, highest resolution first; each stride is twice the one before.
        out_channels: channels of every output.
        norm: norm after every convolution, see `get_norm`; with "" the convolutions have a bias instead.
        top_block: module that computes further levels from one feature. It has `in_feature` (the name of an output
            of `bottom_up` or of this class) and `num_levels`, and returns that many maps.
        fuse_type: "sum" or "avg" (average) of the lateral and the top-down map.

    Raises:
        ValueError: features that are missing or whose strides do not double, or an unknown `fuse_type`.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        norm="",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
    ):
        super().__init__()
        if fuse_type not in ("sum", "avg"):
            raise ValueError(f"fuse_type must be sum or avg, found {fuse_type!r}")
        shapes = bottom_up.output_shape()
        levels = _levels(shapes, in_features)
        self.in_features = tuple(in_features)
        self._levels = levels
        self._fuse_type = fuse_type
        self._size_divisibility = 2 ** levels[-1]

        bias = norm == ""
        for level, name in zip(levels, in_features, strict=True):
            lateral = Conv2d(shapes[name].channels, out_channels, 1, bias=bias, norm=get_norm(norm, out_channels))
            output = Conv2d(out_channels, out_channels, 3, padding=1, bias=bias, norm=get_norm(norm, out_channels))
            fill_xavier_(lateral)
            fill_xavier_(output)
            setattr(self, f"fpn_lateral{level}", lateral)
            setattr(self, f"fpn_output{level}", output)
        self.top_block = top_block
        self.bottom_up = bottom_up

        extra = 0 if top_block is None else top_block.num_levels
        all_levels = levels + [levels[-1] + 1 + i for i in range(extra)]
        self._out_features = [f"p{level}" for level in all_levels]
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._out_feature_strides = {f"p{level}": 2**level for level in all_levels}

    @property
    def size_divisibility(self) -> int:
        """The largest stride in use: only multiples of it give upsampled and lateral maps the same size."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """No requirement beyond `size_divisibility`: batches need not be square."""
        return {"square_size": 0}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (N, C, H, W) to {"p3": (N, out_channels, H / 8, W / 8), ...}, highest resolution first."""
        bottom_up_features = self.bottom_up(x)
        outputs: dict[str, torch.Tensor] = {}
        top_down = None
        for level, name in zip(reversed(self._levels), reversed(self.in_features), strict=True):
            merged = getattr(self, f"fpn_lateral{level}")(bottom_up_features[name])
            if top_down is not None:
                merged = merged + F.interpolate(top_down, scale_factor=2.0, mode="nearest")
                if self._fuse_type == "avg":
                    merged = merged / 2
            outputs[f"p{level}"] = getattr(self, f"fpn_output{level}")(merged)
            top_down = merged
        if self.top_block is not None:
            source = self.top_block.in_feature
            feature = bottom_up_features[source] if source in bottom_up_features else outputs[source]
            extra_names = self._out_features[len(self._levels) :]
            outputs.update(zip(extra_names, self.top_block(feature), strict=True))
        return {name: outputs[name] for name in self._out_features}


def _levels(shapes: dict[str, ShapeSpec], in_features: list[str]) -> list[int]:
    """log2 of the stride of each feature."""
    if not in_features or not set(in_features) <= set(shapes):
        raise ValueError(f"in_features must be among {list(shapes)}, found {list(in_features)}")
    strides = [shapes[name].stride for name in in_features]
    finest = strides[0].bit_length() - 1
    levels = list(range(finest, finest + len(strides)))
    if strides != [2**level for level in levels]:
        raise ValueError(f"strides of {list(in_features)} must be consecutive powers of 2; found {strides}")
    return levels


class LastLevelMaxPool(nn.Module):
    """The level P6 of two-stage models: every second pixel of P5 in both directions, without parameters."""

    def __init__(self):
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, p5: torch.Tensor) -> list[torch.Tensor]:
        """(N, C, H, W) to P6 (N, C, H / 2, W / 2), rounded up."""
        return [F.max_pool2d(p5, kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """RetinaNet's levels P6 and P7: 3x3 convolutions of stride 2, the second one after a ReLU.

    Args:
        in_channels: channels of the feature that P6 is computed from.
        out_channels: channels of P6 and of P7.
        in_feature: "res5", as in the paper, or "p5".
    """

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5"):
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            fill_xavier_(conv)

    def forward(self, c5: torch.Tensor) -> list[torch.Tensor]:
        """(N, in_channels, H, W) to P6 (N, out_channels, H / 2, W / 2) and P7 at half of that, rounded up."""
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet, FPN over MODEL.FPN.IN_FEATURES, and P6 subsampled from P5."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    fpn = cfg.MODEL.FPN
    return FPN(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM, LastLevelMaxPool(), fpn.FUSE_TYPE)


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet, FPN over MODEL.FPN.IN_FEATURES, and P6 and P7 computed from res5."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    fpn = cfg.MODEL.FPN
    shapes = bottom_up.output_shape()
    if "res5" not in shapes:
        raise ValueError(f"MODEL.RESNETS.OUT_FEATURES must contain res5, the input of P6; found {list(shapes)}")
    top_block = LastLevelP6P7(shapes["res5"].channels, fpn.OUT_CHANNELS)
    return FPN(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM, top_block, fpn.FUSE_TYPE)

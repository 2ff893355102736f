"""ResNet (He et al., "Deep Residual Learning for Image Recognition") and ResNeXt (Xie et al., "Aggregated
Residual Transformations for Deep Neural Networks")."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..cfg_node import CfgNode
from ..layers import Conv2d, FrozenBatchNorm2d, ShapeSpec, fill_msra_, get_norm
from .backbone_base import BACKBONE_REGISTRY, Backbone

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Table 1 of the ResNet paper, by depth."""

FIRST_STAGE = 2  # stages are numbered as in the paper: the stem is 1, so the first stage is res2


class ResNetBlock(nn.Module):
    """A part of a ResNet that can be frozen.

    Attributes:
        in_channels, out_channels: number of channels.
        stride: input pixels per output pixel.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> ResNetBlock:
        """Stops training: parameters need no gradient, batch norms become `FrozenBatchNorm2d`."""
        self.requires_grad_(False)
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self

    def _init_convolutions(self) -> None:
        # conv1, conv2, ..., shortcut: Detectron2's order, so that equal seeds give equal weights.
        for _, conv in sorted(self.named_children()):
            fill_msra_(conv)

    def _make_shortcut(self, norm) -> None:
        """Adds the projection if input and output channels differ. It comes first in a block's state dict."""
        self.shortcut = None
        if self.in_channels != self.out_channels:
            self.shortcut = _conv(self.in_channels, self.out_channels, 1, norm, stride=self.stride)


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm, dilation: int = 1, **kwargs) -> Conv2d:
    """A convolution that keeps the size at stride 1; the norm supplies the bias."""
    kwargs.update(padding=dilation * (kernel_size // 2), dilation=dilation, norm=get_norm(norm, out_channels))
    return Conv2d(in_channels, out_channels, kernel_size, bias=False, **kwargs)


class BasicStem(ResNetBlock):
    """7x7 convolution and max pooling: (N, in_channels, H, W) to (N, out_channels, H / 4, W / 4), rounded up."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm="BN"):
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2)
        self._init_convolutions()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu_(self.conv1(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class BasicBlock(ResNetBlock):
    """Two 3x3 convolutions: the block of ResNet-18 and 34.

    Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm="BN"):
        super().__init__(in_channels, out_channels, stride)
        self._make_shortcut(norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = _conv(out_channels, out_channels, 3, norm)
        self._init_convolutions()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu_(self.conv1(x))
        out = self.conv2(out)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class BottleneckBlock(ResNetBlock):
    """1x1, 3x3 and 1x1 convolution: the block of ResNet-50, 101, 152, and with `num_groups` > 1 of ResNeXt.

    Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up.

    Args:
        bottleneck_channels: channels of the 3x3 convolution.
        stride_in_1x1: whether the first convolution has the stride, rather than the 3x3 convolution.
        dilation: dilation of the 3x3 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm="BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ):
        super().__init__(in_channels, out_channels, stride)
        first_stride = stride if stride_in_1x1 else 1
        self._make_shortcut(norm)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm, stride=first_stride)
        self.conv2 = _conv(
            bottleneck_channels,
            bottleneck_channels,
            3,
            norm,
            dilation=dilation,
            stride=stride // first_stride,
            groups=num_groups,
        )
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm)
        self._init_convolutions()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu_(self.conv1(x))
        out = F.relu_(self.conv2(out))
        out = self.conv3(out)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class ResNet(Backbone):
    """A stem and residual stages, named `stem`, `res2`, `res3`, ...

    Args:
        stem: module from images to the input of the first stage.
        stages: blocks of each stage. Stages after the last name in `out_features` are left out.
        out_features: names of the outputs; by default only the last part.
        freeze_at: see `freeze`.

    Raises:
        ValueError: `out_features` is empty, or has a name that is not one of the parts.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: list[list[nn.Module]],
        *,
        out_features: list[str] | None = None,
        freeze_at: int = 0,
    ):
        super().__init__()
        names = [f"res{index}" for index in range(FIRST_STAGE, FIRST_STAGE + len(stages))]
        legal = ["stem", *names]
        self._out_features = list(legal[-1:] if out_features is None else out_features)
        if not self._out_features or not set(self._out_features) <= set(legal):
            raise ValueError(f"out_features must be among {legal}, found {self._out_features}")
        names = names[: max(legal.index(name) for name in self._out_features)]

        self.stem = stem
        self.stage_names = tuple(names)
        stride = stem.stride
        self._out_feature_channels = {"stem": stem.out_channels}
        self._out_feature_strides = {"stem": stride}
        for name, blocks in zip(names, stages, strict=False):
            setattr(self, name, nn.Sequential(*blocks))
            for block in blocks:
                stride *= block.stride
            self._out_feature_channels[name] = blocks[-1].out_channels
            self._out_feature_strides[name] = stride
        self.freeze(freeze_at)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (N, C, H, W) to features by name."""
        if x.dim() != 4:
            raise ValueError(f"ResNet takes images of shape (N, C, H, W), found {tuple(x.shape)}")
        outputs = {}
        for name in ("stem", *self.stage_names):
            x = getattr(self, name)(x)
            outputs[name] = x
        return {name: outputs[name] for name in outputs if name in self._out_features}

    def freeze(self, freeze_at: int = 0) -> ResNet:
        """Freezes the first parts: 0 none, 1 the stem, 2 the stem and res2, and so on."""
        parts = [[self.stem]] + [getattr(self, name) for name in self.stage_names]
        for blocks in parts[:freeze_at]:
            for block in blocks:
                block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[nn.Module], num_blocks: int, *, in_channels: int, out_channels: int, **kwargs: Any
    ) -> list[nn.Module]:
        """Blocks of one stage: the first takes `in_channels`, the others take `out_channels`.

        Args:
            kwargs: further arguments of `block_class`; `<name>_per_block` is a list with one value per block.

        Raises:
            ValueError: such a list has not one value per block, or `<name>` is given as well.
        """
        per_block: dict[str, list] = {}
        for key in [key for key in kwargs if key.endswith("_per_block")]:
            name, values = key.removesuffix("_per_block"), kwargs.pop(key)
            if name in kwargs or len(values) != num_blocks:
                raise ValueError(f"{key} needs {num_blocks} values, without {name} beside it; found {values}")
            per_block[name] = values
        blocks = []
        for index in range(num_blocks):
            block_kwargs = {name: values[index] for name, values in per_block.items()}
            blocks.append(block_class(in_channels, out_channels, **kwargs, **block_kwargs))
            in_channels = out_channels
        return blocks


def _blocks_per_stage(depth: int) -> tuple[int, ...]:
    if depth not in BLOCKS_PER_STAGE:
        raise ValueError(f"ResNet depth {depth} does not exist; legal: {', '.join(map(str, BLOCKS_PER_STAGE))}")
    return BLOCKS_PER_STAGE[depth]


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """A ResNet from MODEL.RESNETS and MODEL.BACKBONE.FREEZE_AT.

    Raises:
        ValueError: a setting that is unknown, not supported, or does not exist at this depth.
    """
    _check_config(cfg)
    resnets = cfg.MODEL.RESNETS
    is_bottleneck = resnets.DEPTH >= 50
    stage_names = [f"res{FIRST_STAGE + index}" for index in range(4)]
    last = max(["stem", *stage_names].index(name) for name in resnets.OUT_FEATURES)

    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, resnets.NORM)
    stages = []
    in_channels = resnets.STEM_OUT_CHANNELS
    for index, num_blocks in enumerate(_blocks_per_stage(resnets.DEPTH)):
        dilation = resnets.RES5_DILATION if stage_names[index] == "res5" else 1
        first_stride = 1 if index == 0 or dilation == 2 else 2
        kwargs = {}
        if is_bottleneck:
            kwargs = {
                "bottleneck_channels": resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * 2**index,
                "num_groups": resnets.NUM_GROUPS,
                "stride_in_1x1": resnets.STRIDE_IN_1X1,
                "dilation": dilation,
            }
        blocks = ResNet.make_stage(
            BottleneckBlock if is_bottleneck else BasicBlock,
            num_blocks,
            in_channels=in_channels,
            out_channels=resnets.RES2_OUT_CHANNELS * 2**index,
            stride_per_block=[first_stride] + [1] * (num_blocks - 1),
            norm=resnets.NORM,
            **kwargs,
        )
        stages.append(blocks)
        in_channels = blocks[-1].out_channels
    # Stages beyond the last output are built and dropped: their draws of random weights let the layers after the
    # backbone start with Detectron2's weights.
    return ResNet(stem, stages[:last], out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def _check_config(cfg: CfgNode) -> None:
    resnets = cfg.MODEL.RESNETS
    _blocks_per_stage(resnets.DEPTH)
    legal = ["stem", "res2", "res3", "res4", "res5"]
    if not resnets.OUT_FEATURES or not set(resnets.OUT_FEATURES) <= set(legal):
        raise ValueError(f"MODEL.RESNETS.OUT_FEATURES must be among {legal}, found {resnets.OUT_FEATURES}")
    if any(resnets.DEFORM_ON_PER_STAGE):
        raise ValueError(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE: the lite engine has no deformable convolutions; "
            "set all to False, or run on Detectron2"
        )
    if resnets.RES5_DILATION not in (1, 2):
        raise ValueError(f"MODEL.RESNETS.RES5_DILATION must be 1 or 2, found {resnets.RES5_DILATION}")
    if resnets.DEPTH < 50:
        for key, needed in (("RES2_OUT_CHANNELS", 64), ("RES5_DILATION", 1), ("NUM_GROUPS", 1)):
            if resnets[key] != needed:
                raise ValueError(
                    f"MODEL.RESNETS.{key} must be {needed} for DEPTH {resnets.DEPTH}, found {resnets[key]}"
                )

"""NN2, NN3, NN4, NNS1 and NNS2: Inception networks with L2 pooling (FaceNet paper, table 2 and section 3.3)."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from retinanet_ext.d2 import BACKBONE_REGISTRY, Backbone, ShapeSpec

from .network_layers import MaxoutLinear, convolution, flattened_map, l2_pool, local_response_norm, max_pool

POOLS = {"max": max_pool, "l2": l2_pool}


@dataclass(frozen=True)
class Row:
    """A row of table 2: output channels of each convolution of a block; 0 for none."""

    name: str
    conv1x1: int
    reduce3x3: int
    conv3x3: int
    reduce5x5: int
    conv5x5: int
    pool: str = ""  # "max", "l2", or "" for a block without pooling
    projection: int = 0  # of the pooled map; 0 with a pool: the pooled map itself
    stride: int = 1


NN2 = (
    Row("2", 0, 64, 192, 0, 0),
    Row("3a", 64, 96, 128, 16, 32, "max", 32),
    Row("3b", 64, 96, 128, 32, 64, "l2", 64),
    Row("3c", 0, 128, 256, 32, 64, "max", 0, stride=2),
    Row("4a", 256, 96, 192, 32, 64, "l2", 128),
    Row("4b", 224, 112, 224, 32, 64, "l2", 128),
    Row("4c", 192, 128, 256, 32, 64, "l2", 128),
    Row("4d", 160, 144, 288, 32, 64, "l2", 128),
    Row("4e", 0, 160, 256, 64, 128, "max", 0, stride=2),
    Row("5a", 384, 192, 384, 48, 128, "l2", 128),
    Row("5b", 384, 192, 384, 48, 128, "max", 128),
)
"""Table 2 of the paper, but for its first row, conv1."""

NN4 = tuple(replace(row, reduce5x5=0, conv5x5=0) if row.name in ("4e", "5a", "5b") else row for row in NN2)
"""NN2 without 5x5 convolutions "in the higher layers", which the paper does not name.

Without those of 4e, 5a and 5b the network has 285M multiply-adds at 96x96, which the paper gives for NN4, and 6.6M
parameters, the paper's smallest number for an Inception network. Leaving them out from 5a on gives 289M, and from 4d on
282M.
"""

NNS1 = (
    Row("2", 0, 48, 96, 0, 0),
    Row("3a", 24, 32, 48, 8, 16, "max", 16),
    Row("3b", 24, 32, 48, 16, 24, "l2", 24),
    Row("3c", 0, 48, 96, 16, 24, "max", 0, stride=2),
    Row("4a", 96, 32, 72, 16, 24, "l2", 48),
    Row("4c", 72, 48, 96, 16, 24, "l2", 48),
    Row("4e", 0, 64, 96, 24, 48, "max", 0, stride=2),
    Row("5a", 144, 72, 144, 16, 48, "l2", 48),
)
"""Layers of our own for the paper's "mini Inception", of which it prints 26M parameters and 220M multiply-adds only.

Most blocks have 3/8 of NN2's channels, and 4b, 4d and 5b are left out. So few multiply-adds for so many parameters need
a fully connected layer, which has 25M of them: maxout, as in NN1.
"""

NNS2 = (
    Row("2", 0, 16, 32, 0, 0),
    Row("3c", 0, 32, 64, 8, 16, "max", 0, stride=2),
    Row("4a", 64, 24, 48, 8, 16, "l2", 32),
    Row("4e", 0, 40, 64, 16, 32, "max", 0, stride=2),
    Row("5a", 96, 48, 96, 16, 32, "l2", 32),
    Row("5b", 96, 48, 96, 16, 32, "max", 32),
)
"""Layers of our own for the paper's "tiny Inception" (4.3M parameters, 20M multiply-adds), as NNS1: 1/4 of NN2."""


class InceptionBlock(nn.Module):
    """A row of table 2: up to four branches on one map, whose outputs are concatenated.

    Maps ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``, rounded up.
    """

    def __init__(self, in_channels: int, row: Row, norm: str):
        super().__init__()
        self.row = row
        if row.conv1x1:
            self.conv1x1 = convolution(in_channels, row.conv1x1, 1, norm)
        if row.conv3x3:
            self.conv3x3_reduce = convolution(in_channels, row.reduce3x3, 1, norm)
            self.conv3x3 = convolution(row.reduce3x3, row.conv3x3, 3, norm, stride=row.stride)
        if row.conv5x5:
            self.conv5x5_reduce = convolution(in_channels, row.reduce5x5, 1, norm)
            self.conv5x5 = convolution(row.reduce5x5, row.conv5x5, 5, norm, stride=row.stride)
        if row.projection:
            self.projection = convolution(in_channels, row.projection, 1, norm)
        pooled = (row.projection or in_channels) if row.pool else 0
        self.out_channels = row.conv1x1 + row.conv3x3 + row.conv5x5 + pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        row, branches = self.row, []
        if row.conv1x1:
            branches.append(self.conv1x1(x))
        if row.conv3x3:
            branches.append(self.conv3x3(self.conv3x3_reduce(x)))
        if row.conv5x5:
            branches.append(self.conv5x5(self.conv5x5_reduce(x)))
        if row.pool:
            pooled = POOLS[row.pool](x, row.stride)
            branches.append(self.projection(pooled) if row.projection else pooled)
        return torch.cat(branches, dim=1) if len(branches) > 1 else branches[0]


class Inception(Backbone):
    """Maps images ``(N, in_channels, H, W)`` to ``{NAME: map}``.

    NAME is the last block's, such as ``inception_5b``, whose map is ``(N, C, H / 32, W / 32)``, rounded up; or with a
    fully connected layer ``fc``, and the map is ``(N, num_outputs, 1, 1)``.

    Args:
        in_channels: channels of the images.
        rows: the blocks; the first one runs at stride 4, before a pooling.
        conv1_channels, conv1_kernel: of the first convolution, which has stride 2.
        norm: as ``MODEL.FACENET.NORM``. If empty, convolutions have biases, and local response normalisation stands
            where table 2 has "norm".
        num_outputs: outputs of a maxout layer after the last block; 0 for no such layer.
        map_size: height and width of the last block's map, which that layer needs.
    """

    def __init__(
        self,
        in_channels: int,
        rows: tuple[Row, ...],
        *,
        conv1_channels: int = 64,
        conv1_kernel: int = 7,
        norm: str = "",
        num_outputs: int = 0,
        map_size: tuple[int, int] = (0, 0),
    ):
        super().__init__()
        self.has_lrn = not norm
        self.map_size = map_size
        self.conv1 = convolution(in_channels, conv1_channels, conv1_kernel, norm, stride=2)
        channels = conv1_channels
        self.block_names = [f"inception_{row.name}" for row in rows]
        for name, row in zip(self.block_names, rows, strict=True):
            block = InceptionBlock(channels, row, norm)
            self.add_module(name, block)
            channels = block.out_channels
        self.fc = MaxoutLinear(channels * map_size[0] * map_size[1], num_outputs) if num_outputs else None
        name = "fc" if num_outputs else self.block_names[-1]
        self._out_features = [name]
        self._out_feature_channels = {name: num_outputs or channels}
        self._out_feature_strides = {name: 32 * max(map_size) if num_outputs else 32}

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self._norm(max_pool(self.conv1(images)))
        x = max_pool(self._norm(getattr(self, self.block_names[0])(x)))
        for name in self.block_names[1:]:
            x = getattr(self, name)(x)
        if self.fc is not None:
            x = self.fc(flattened_map(x, self.map_size, images))[:, :, None, None]
        return {self._out_features[0]: x}

    def _norm(self, maps: torch.Tensor) -> torch.Tensor:
        return local_response_norm(maps) if self.has_lrn else maps


@BACKBONE_REGISTRY.register()
def build_facenet_nn2_backbone(cfg, input_shape: ShapeSpec) -> Inception:
    """NN2, for 224x224 images or any other size; NN3 is this network at 160x160. 7.5M parameters."""
    return Inception(input_shape.channels, NN2, norm=cfg.MODEL.FACENET.NORM)


@BACKBONE_REGISTRY.register()
def build_facenet_nn4_backbone(cfg, input_shape: ShapeSpec) -> Inception:
    """NN4, for 96x96 images or any other size: 6.6M parameters, 285M multiply-adds."""
    return Inception(input_shape.channels, NN4, norm=cfg.MODEL.FACENET.NORM)


@BACKBONE_REGISTRY.register()
def build_facenet_nns1_backbone(cfg, input_shape: ShapeSpec) -> Inception:
    """NNS1, for 165x165 images: 26M parameters, 220M multiply-adds."""
    options = {"conv1_channels": 48, "num_outputs": 912, "map_size": (6, 6)}
    return Inception(input_shape.channels, NNS1, norm=cfg.MODEL.FACENET.NORM, **options)


@BACKBONE_REGISTRY.register()
def build_facenet_nns2_backbone(cfg, input_shape: ShapeSpec) -> Inception:
    """NNS2, for images of height 140 and width 116: 4.3M parameters, 20M multiply-adds."""
    options = {"conv1_channels": 16, "conv1_kernel": 3, "num_outputs": 384, "map_size": (5, 4)}
    return Inception(input_shape.channels, NNS2, norm=cfg.MODEL.FACENET.NORM, **options)

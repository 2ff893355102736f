"""The two subnets of RetinaNet (paper, section 4 "Classification Subnet" and "Box Regression Subnet")."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from retinanet_ext.d2 import ShapeSpec, build_anchor_generator, configurable, get_norm
from retinanet_ext.registry import Registry

DENSE_HEAD_REGISTRY = Registry("DENSE_HEAD", config_key="MODEL.RETINANET.HEAD.NAME")
DENSE_HEAD_REGISTRY.__doc__ = """
Heads of dense detectors, named by ``MODEL.RETINANET.HEAD.NAME``.

A registered object is called as ``obj(cfg, input_shape)``, where ``input_shape`` is a list of ``ShapeSpec``, one per
level. It returns a module that is called with the list of feature maps and returns two lists: logits
``(N, A*K, H, W)`` and deltas ``(N, A*4, H, W)``. The module has an attribute ``num_anchors``: A, the same on every
level.
"""


class PerLevelBatchNorm(nn.ModuleList):
    """Batch norm of a map ``(N, C, H, W)`` in a subnet that all levels share.

    The levels share scale and shift; each level has its own statistics.
    """

    def __init__(self, num_levels: int, norm: str, num_channels: int):
        per_level = [get_norm(norm, num_channels) for _ in range(num_levels)]
        for level_norm in per_level:
            level_norm.affine, level_norm.weight, level_norm.bias = False, None, None
        super().__init__(per_level)
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: torch.Tensor, level: int) -> torch.Tensor:
        norm = self[level]
        if self.training and isinstance(norm, nn.SyncBatchNorm):
            return norm(x) * self.weight[:, None, None] + self.bias[:, None, None]
        # One fused call instead of three passes over the map.
        if self.training:
            norm.num_batches_tracked.add_(1)
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, self.weight, self.bias, self.training, norm.momentum, norm.eps
        )


class _Subnet(nn.Sequential):
    """Convolutions shared by all levels; only the batch norms need to know which level they see."""

    def forward(self, x: torch.Tensor, level: int) -> torch.Tensor:
        for module in self:
            x = module(x, level) if isinstance(module, PerLevelBatchNorm) else module(x)
        return x


@DENSE_HEAD_REGISTRY.register()
class RetinaNetHead(nn.Module):
    """Classifies and regresses the A anchors at every position; the two subnets share no parameters."""

    @configurable
    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        conv_dims: Sequence[int],
        norm: str = "",
        prior_prob: float = 0.01,
    ):
        """
        Args:
            input_shape: channels of each level; all equal.
            num_classes: K, without background.
            num_anchors: A, at each position of every level.
            conv_dims: output channels of the convolutions of each subnet.
            norm: layer after each convolution: ``""`` (none), ``GN``, ``BN``, ``SyncBN`` or ``FrozenBN``.
            prior_prob: probability that the classifier predicts for every class at initialisation, in (0, 1). The
                paper's 0.01 keeps the background from dominating the first steps; 0.5 is the plain initialisation.

        Raises:
            ValueError: ``prior_prob`` outside (0, 1), or levels with different channels.
        """
        super().__init__()
        if not 0 < prior_prob < 1:
            raise ValueError(f"MODEL.RETINANET.PRIOR_PROB is {prior_prob}; it must lie between 0 and 1")
        channels = {shape.channels for shape in input_shape}
        if len(channels) != 1:
            raise ValueError(f"the head is shared by all levels, but their channels differ: {sorted(channels)}")
        in_channels = channels.pop()
        self.num_anchors = num_anchors

        self.cls_subnet = _make_subnet(in_channels, conv_dims, norm, len(input_shape))
        self.bbox_subnet = _make_subnet(in_channels, conv_dims, norm, len(input_shape))
        out_channels = conv_dims[-1] if conv_dims else in_channels
        self.cls_score = nn.Conv2d(out_channels, num_anchors * num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(out_channels, num_anchors * 4, kernel_size=3, padding=1)
        self._initialize(prior_prob)

    def _initialize(self, prior_prob: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        # sigmoid(bias) = prior_prob (paper, section 4.1 "Initialization").
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    @classmethod
    def from_config(cls, cfg, input_shape: Sequence[ShapeSpec]):
        num_anchors = build_anchor_generator(cfg, input_shape).num_cell_anchors
        if len(set(num_anchors)) != 1:
            raise ValueError(
                f"the head is shared by all levels, but MODEL.ANCHOR_GENERATOR gives {list(num_anchors)} anchors per "
                "position on the levels; give every level the same number of SIZES times ASPECT_RATIOS"
            )
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "num_anchors": num_anchors[0],
            "conv_dims": [input_shape[0].channels] * cfg.MODEL.RETINANET.NUM_CONVS,
            "norm": cfg.MODEL.RETINANET.NORM,
            "prior_prob": cfg.MODEL.RETINANET.PRIOR_PROB,
        }

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """
        Args:
            features: per level ``(N, C, H, W)``.

        Returns:
            Per level logits ``(N, A*K, H, W)`` and deltas ``(N, A*4, H, W)``.
        """
        logits, deltas = [], []
        for level, feature in enumerate(features):
            logits.append(self.cls_score(self.cls_subnet(feature, level)))
            deltas.append(self.bbox_pred(self.bbox_subnet(feature, level)))
        return logits, deltas


def _make_subnet(in_channels: int, conv_dims: Sequence[int], norm: str, num_levels: int) -> _Subnet:
    layers: list[nn.Module] = []
    for out_channels in conv_dims:
        layers.append(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1))
        if norm in ("BN", "SyncBN"):
            layers.append(PerLevelBatchNorm(num_levels, norm, out_channels))
        elif norm:
            layers.append(get_norm(norm, out_channels))
        # In place is safe: no layer before it needs its output for the gradient.
        layers.append(nn.ReLU(inplace=True))
        in_channels = out_channels
    return _Subnet(*layers)


def shapes_of_features(key: str, names: Sequence[str], shapes: Mapping[str, ShapeSpec]) -> list[ShapeSpec]:
    """The shapes of the feature maps that a config key names.

    Args:
        key: the config key, such as ``MODEL.RETINANET.IN_FEATURES``.
        names: its value.
        shapes: all maps that may be named.

    Raises:
        ValueError: no name, or a name without a map; the message lists the maps.
    """
    missing = [name for name in names if name not in shapes]
    if missing or not names:
        found = f"names {missing}, which do not exist" if missing else "is empty"
        raise ValueError(f"{key} {found}; name one or more of the feature maps {', '.join(sorted(shapes))}")
    return [shapes[name] for name in names]

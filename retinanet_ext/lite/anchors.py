"""Anchors: the reference boxes that a dense detector classifies and adjusts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from retinanet_ext.registry import Registry

from .cfg_node import CfgNode, configurable
from .layers import ShapeSpec
from .structures import Boxes

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
"""Classes or functions `f(cfg, input_shape: list[ShapeSpec])`, chosen by MODEL.ANCHOR_GENERATOR.NAME."""


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Places one anchor per size and aspect ratio of a level at every feature pixel.

    Args:
        sizes: square roots of the anchor areas in input pixels: one list for each level, or one list for all
            (`[[32], [64]]` or `[32, 64]`).
        aspect_ratios: height / width, in the same form.
        strides: input pixels per feature pixel, for each level.
        offset: position of the first anchor centre as a fraction of the stride, in [0, 1).

    Attributes:
        cell_anchors: for each level the anchors around (0, 0), shape (A, 4), sizes outermost.

    Raises:
        ValueError: a list is empty, the number of lists is neither 1 nor that of the levels, or the offset is
            outside [0, 1).
    """

    box_dim = 4
    """Numbers per box."""

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence,
        aspect_ratios: Sequence,
        strides: Sequence[int],
        offset: float = 0.5,
    ):
        super().__init__()
        if not 0.0 <= offset < 1.0:
            raise ValueError(f"offset must be in [0, 1), found {offset}")
        self.strides = list(strides)
        self.offset = offset
        sizes = _per_level(sizes, len(self.strides), "sizes")
        aspect_ratios = _per_level(aspect_ratios, len(self.strides), "aspect_ratios")
        # Not saved: the config determines the anchors, and Detectron2's checkpoints have none either.
        for level, (level_sizes, level_ratios) in enumerate(zip(sizes, aspect_ratios, strict=True)):
            cell = self.generate_cell_anchors(level_sizes, level_ratios)
            self.register_buffer(f"_cell_anchors_{level}", cell, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict:
        anchors = cfg.MODEL.ANCHOR_GENERATOR
        return {
            "sizes": anchors.SIZES,
            "aspect_ratios": anchors.ASPECT_RATIOS,
            "strides": [shape.stride for shape in input_shape],
            "offset": anchors.OFFSET,
        }

    @property
    def cell_anchors(self) -> list[torch.Tensor]:
        return [getattr(self, f"_cell_anchors_{level}") for level in range(len(self.strides))]

    @property
    def num_cell_anchors(self) -> list[int]:
        """Anchors at one feature pixel, for each level."""
        return [len(cell) for cell in self.cell_anchors]

    @staticmethod
    def generate_cell_anchors(
        sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> torch.Tensor:
        """Anchors around (0, 0): float32 (len(sizes) * len(aspect_ratios), 4), x0, y0, x1, y1.

        An anchor of size s and ratio r has area s^2, and its height is r times its width.
        """
        anchors = []
        for size in sizes:
            for ratio in aspect_ratios:
                width = (size**2 / ratio) ** 0.5
                height = ratio * width
                anchors.append([-width / 2, -height / 2, width / 2, height / 2])
        return torch.tensor(anchors)

    def forward(self, features: list[torch.Tensor]) -> list[Boxes]:
        """All anchors of an image.

        Args:
            features: one map of shape (N, C, H, W) for each level; only H and W are used.

        Returns:
            For each level, boxes of shape (H * W * A, 4) in input pixels, ordered by row, column, cell anchor.
            Boxes may reach beyond the image.
        """
        if len(features) != len(self.strides):
            raise ValueError(f"this generator needs features of {len(self.strides)} levels, found {len(features)}")
        return [
            Boxes(self._grid_anchors(feature.shape[-2:], stride, cell))
            for feature, stride, cell in zip(features, self.strides, self.cell_anchors, strict=True)
        ]

    def _grid_anchors(self, size_hw: Sequence[int], stride: int, cell: torch.Tensor) -> torch.Tensor:
        height, width = size_hw
        y, x = (
            torch.arange(length, dtype=torch.float32, device=cell.device) * stride + self.offset * stride
            for length in (height, width)
        )
        y, x = torch.meshgrid(y, x, indexing="ij")
        centers = torch.stack((x, y, x, y), dim=2).reshape(-1, 1, 4)
        return (centers + cell).reshape(-1, 4)


def _per_level(values: Sequence, num_levels: int, name: str) -> list:
    """One list per level, from any of the forms that the class documents."""
    if not isinstance(values, Sequence) or len(values) == 0:
        raise ValueError(f"anchor {name} must be a non-empty list, found {values!r}")
    levels = list(values) if isinstance(values[0], Sequence) else [values]
    if len(levels) == 1:
        levels = levels * num_levels
    if len(levels) != num_levels or not all(isinstance(level, Sequence) and len(level) for level in levels):
        raise ValueError(f"anchor {name} must be one list, or a list for each of {num_levels} levels; found {values!r}")
    return levels


def build_anchor_generator(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """The generator that MODEL.ANCHOR_GENERATOR.NAME names, for features of these shapes."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)

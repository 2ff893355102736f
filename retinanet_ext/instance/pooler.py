"""RoIs pooled from the levels of a feature pyramid (FPN, section 4.2).

A RoI is pooled from the level that fits its size: a box of ``canonical_box_size`` pixels a side from level
``canonical_level``, a box twice as large from the next coarser one. ``ROI_POOLER_REGISTRY`` names the layers that
``MODEL.ROI_*_HEAD.POOLER_TYPE`` may choose. Register a layer of your own there: a callable
``(output_size=(h, w), spatial_scale=1/stride, sampling_ratio=int)`` that returns a callable from features
``(N, C, H, W)`` and RoIs ``(M, 5)`` (image index, x1, y1, x2, y2) to ``(M, C, h, w)``.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from retinanet_ext.d2 import Boxes
from retinanet_ext.registry import Registry

from .roi_align import LevelRegions, average_samples
from .roi_layers import (
    ROIAlign,
    ROIAlignMax,
    ROIAlignV2,
    ROIPool,
    ROIWarp,
    ROIWarpMax,
    pair_of_bins,
    runs_on_cpu,
    wide_rois,
)

ROI_POOLER_REGISTRY = Registry("ROI_POOLER", config_key="POOLER_TYPE (of MODEL.ROI_*_HEAD)")
for _layer in (ROIAlignV2, ROIAlign, ROIAlignMax, ROIPool, ROIWarp, ROIWarpMax):
    ROI_POOLER_REGISTRY.register(_layer)

AVERAGES = (ROIAlign, ROIAlignV2, ROIWarp)


def assign_levels(
    box_lists: Sequence[Boxes], min_level: int, max_level: int, canonical_box_size: int, canonical_level: int
) -> torch.Tensor:
    """The level of each box, ``(M,)`` int64 with 0 for ``min_level``, for the boxes of all images in order.

    ``floor(canonical_level + log2(sqrt(area) / canonical_box_size + 1e-8))``, clamped to the levels (FPN paper,
    equation 1). A box of exactly twice the canonical side is already on the next level; one without area on the finest.
    """
    # The level of a box that is not finite must exist; the RoI layer then reports the box.
    areas = torch.cat([boxes.area() for boxes in box_lists]).nan_to_num().clamp(min=0)
    levels = torch.floor(canonical_level + torch.log2(areas.sqrt() / canonical_box_size + 1e-8))
    return levels.clamp(min_level, max_level).long() - min_level


class ROIPooler(nn.Module):
    """Pools RoIs, each from the level of its size. Arguments, numbers and call as Detectron2's ``ROIPooler``."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        scales: Sequence[float],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ):
        """
        Args:
            output_size: bins (h, w), or one number for both.
            scales: 1 / stride of each level, finest first: powers of two, each half of the one before.
            sampling_ratio: samples per bin and axis; 0: the bin's size in cells, rounded up.
            pooler_type: a name of ``ROI_POOLER_REGISTRY``.
            canonical_box_size: side in pixels of a box that belongs to ``canonical_level``.
            canonical_level: the level whose stride is ``2 ** canonical_level``.

        Raises:
            KeyError: unknown ``pooler_type``.
            ValueError: an argument that is not legal, named in the message.
        """
        super().__init__()
        self.output_size = pair_of_bins(output_size)
        self.min_level, self.max_level = _levels_of_scales(scales)
        if canonical_box_size <= 0:
            raise ValueError(f"canonical_box_size is {canonical_box_size}; legal are pixels above 0")
        self.canonical_box_size, self.canonical_level = canonical_box_size, canonical_level
        factory = ROI_POOLER_REGISTRY.get(pooler_type)
        layers = [
            factory(output_size=self.output_size, spatial_scale=scale, sampling_ratio=sampling_ratio)
            for scale in scales
        ]
        # A registered layer may be any callable.
        self.level_poolers = nn.ModuleList(layers) if all(isinstance(x, nn.Module) for x in layers) else layers

    def forward(self, x: Sequence[torch.Tensor], box_lists: Sequence[Boxes]) -> torch.Tensor:
        """Pool all boxes, in the order of the images.

        Args:
            x: maps ``(N, C, H_l, W_l)``, finest first, one for each scale.
            box_lists: the boxes ``(M_n, 4)`` of each of the N images: x1, y1, x2, y2 in pixels of the padded input.

        Returns:
            ``(M, C, h, w)`` in the maps' dtype, M = M_1 + ... + M_N. Without boxes ``(0, C, h, w)``, still in the
            graph of every map.

        Raises:
            ValueError: not one map for each scale, or not one list of boxes for each image.
        """
        self._check_inputs(x, box_lists)
        if len(box_lists) == 0:
            box_lists = [Boxes(torch.zeros((0, 4), device=x[0].device))]
        rois = rois_of_boxes(box_lists)
        if len(self.level_poolers) == 1:
            return self.level_poolers[0](x[0], rois)
        levels = assign_levels(box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level)
        if type(self.level_poolers[0]) in AVERAGES and runs_on_cpu(x[0]):
            return self._average(x, wide_rois(x[0], rois), levels)
        # One wait for the device, for the counts of all levels.
        counts = (levels[:, None] == torch.arange(len(x), device=levels.device)).sum(0).tolist()
        rows = levels.argsort(stable=True).split(counts)
        pooled = [layer(features, rois[part]) for layer, features, part in zip(self.level_poolers, x, rows)]
        return _InOrder.apply(rows, *pooled)

    def _average(self, maps: Sequence[torch.Tensor], rois: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """All levels at once: the RoIs of each are written where they belong in the result."""
        chosen = [(levels == level).nonzero()[:, 0] for level in range(len(maps))]
        regions = [LevelRegions(layer.regions(rois[rows]), rows) for layer, rows in zip(self.level_poolers, chosen)]
        return average_samples(maps, regions, self.output_size, self.level_poolers[0].sampling_ratio)

    def _check_inputs(self, maps: Sequence[torch.Tensor], box_lists: Sequence[Boxes]) -> None:
        if isinstance(maps, torch.Tensor) or len(maps) != len(self.level_poolers):
            found = "a tensor" if isinstance(maps, torch.Tensor) else f"{len(maps)} maps"
            raise ValueError(
                f"x is {found}; legal is a list of {len(self.level_poolers)} maps, one for each of the scales"
            )
        if len(box_lists) != maps[0].shape[0]:
            raise ValueError(
                f"box_lists has the boxes of {len(box_lists)} images; legal are {maps[0].shape[0]}, "
                "one list for each image of the maps"
            )


def rois_of_boxes(box_lists: Sequence[Boxes]) -> torch.Tensor:
    """The boxes of all images as RoIs ``(M, 5)``: image index, x1, y1, x2, y2."""
    return torch.cat(
        [nn.functional.pad(boxes.tensor, (1, 0), value=float(image)) for image, boxes in enumerate(box_lists)]
    )


def _levels_of_scales(scales: Sequence[float]) -> tuple[int, int]:
    """The finest and the coarsest level, log2 of their strides."""
    if len(scales) == 0 or min(scales) <= 0:
        raise ValueError(f"scales is {list(scales)}; legal are one or more numbers above 0 (1 / stride)")
    levels = [-math.log2(scale) for scale in scales]
    first = round(levels[0])
    if any(not math.isclose(level, first + i, abs_tol=1e-6) for i, level in enumerate(levels)):
        raise ValueError(
            f"scales is {list(scales)}; legal are powers of two, finest first, each half of the one before, "
            "as [1/4, 1/8, 1/16, 1/32]"
        )
    return first, first + len(levels) - 1


class _InOrder(torch.autograd.Function):
    """Rows pooled level by level, ``(M_l, C, h, w)`` each, put into one tensor in the order of the RoIs."""

    @staticmethod
    def forward(ctx, rows, *pooled):
        ctx.rows = rows
        result = pooled[0].new_empty((sum(map(len, rows)), *pooled[0].shape[1:]))
        for part, values in zip(rows, pooled):
            result[part] = values
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return None, *(gradient[part] for part in ctx.rows)

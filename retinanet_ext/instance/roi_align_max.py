"""Maximal bilinear samples of a region (Mask R-CNN, Table 2c), for a block of RoIs at once, one sample after another.

The reference is :func:`retinanet_ext.instance.roi_align.pool_samples_reference`. Memory is bounded by
``BLOCK_VALUES``: a running maximum of a block, and the four cells of one sample per bin. The backward pass finds the
maximal samples again, so that only the regions and the map are kept.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .roi_align import AxisSamples, accumulation_dtype, samples_along_axis

BLOCK_VALUES = 1 << 22


def maximal_samples(
    features: torch.Tensor, regions: torch.Tensor, output_size: tuple[int, int], sampling_ratio: int
) -> torch.Tensor:
    """The largest sample of each bin and channel: ``(M, C, h, w)`` in channels-last memory.

    Args:
        features: ``(N, C, H, W)``.
        regions: ``(M, 5)``: image index, x, y, width, height in index coordinates (module ``roi_align``); finite.
        sampling_ratio: samples per bin and axis; 0: the bin's size rounded up. A bin without samples gives 0, and so
            does a sample outside the map.
    """
    return _MaximalSamples.apply(features, regions, output_size, sampling_ratio)


class _Corner(NamedTuple):
    """One of the four cells of a sample: its row in the table ``(N*H*W, C)`` and its weight, both ``(B, h, w)``."""

    cells: torch.Tensor
    weights: torch.Tensor


class _MaximalSamples(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, regions, output_size, sampling_ratio):
        ctx.save_for_backward(features, regions)
        ctx.output_size, ctx.sampling_ratio = output_size, sampling_ratio
        pooled = features.new_empty((len(regions), *output_size, features.shape[1]))
        table = _table(features)
        for part in _blocks(len(regions), output_size, features.shape[1]):
            block = _Block(regions[part], features.shape, output_size, sampling_ratio)
            pooled[part] = block.maximum(table)[0].to(pooled.dtype)
        return pooled.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        features, regions = ctx.saved_tensors
        table, channels = _table(features), features.shape[1]
        total = torch.zeros(table.shape, dtype=accumulation_dtype(table.dtype), device=table.device)
        for part in _blocks(len(regions), ctx.output_size, channels):
            block = _Block(regions[part], features.shape, ctx.output_size, ctx.sampling_ratio)
            block.spread(total, gradient[part].permute(0, 2, 3, 1).to(total.dtype), block.maximum(table)[1])
        size = (features.shape[0], *features.shape[2:], channels)
        return total.to(features.dtype).view(size).permute(0, 3, 1, 2), None, None, None


def _table(features: torch.Tensor) -> torch.Tensor:
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def _blocks(num_rois: int, output_size: tuple[int, int], channels: int) -> Iterator[slice]:
    size = max(1, BLOCK_VALUES // max(1, output_size[0] * output_size[1] * channels))
    for begin in range(0, num_rois, size):
        yield slice(begin, begin + size)


class _Block:
    """The samples of B regions, numbered row by row on the finest grid of the block."""

    def __init__(self, regions: torch.Tensor, map_shape: torch.Size, output_size: tuple[int, int], sampling_ratio: int):
        self.shape, self.output_size = map_shape, output_size
        regions = regions.to(accumulation_dtype(regions.dtype))
        self.images = regions[:, 0].long()
        self.along_y = samples_along_axis(regions[:, 2], regions[:, 4], output_size[0], map_shape[2], sampling_ratio)
        self.along_x = samples_along_axis(regions[:, 1], regions[:, 3], output_size[1], map_shape[3], sampling_ratio)

    def maximum(self, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Largest sample of each bin ``(B, h, w, C)`` and its number (int32; -1 without samples)."""
        dtype = accumulation_dtype(table.dtype)
        size = (len(self.images), *self.output_size, table.shape[1])
        best = torch.full(size, float("-inf"), dtype=dtype, device=table.device)
        chosen = torch.full(size, -1, dtype=torch.int32, device=table.device)
        columns = self.along_x.low.shape[2]
        for row in range(self.along_y.low.shape[2]):
            for column in range(columns):
                exists = self.along_y.exists[:, :, row, None] & self.along_x.exists[:, :, column, None]
                value = torch.zeros(size, dtype=dtype, device=table.device)
                for corner in self._corners(row, column):
                    value.addcmul_(table[corner.cells].to(dtype), corner.weights[..., None].to(dtype))
                # NaN counts as largest, as in torch.amax.
                better = ((value > best) | value.isnan()) & exists[..., None]
                best = torch.where(better, value, best)
                chosen.masked_fill_(better, row * columns + column)
        return best.masked_fill_(chosen < 0, 0.0), chosen

    def spread(self, total: torch.Tensor, gradient: torch.Tensor, chosen: torch.Tensor) -> None:
        """Add the gradient ``(B, h, w, C)`` at the cells of the chosen samples to ``total (N*H*W, C)``, in place."""
        columns = self.along_x.low.shape[2]
        for number in range(self.along_y.low.shape[2] * columns):
            part = torch.where(chosen == number, gradient, 0.0)
            for corner in self._corners(number // columns, number % columns):
                weighted = part * corner.weights[..., None].to(part.dtype)
                total.index_add_(0, corner.cells.flatten(), weighted.flatten(0, 2))

    def _corners(self, row: int, column: int) -> Iterator[_Corner]:
        """The four cells of sample (row, column) of all bins."""
        inside = self.along_y.inside[:, :, row, None] & self.along_x.inside[:, None, :, column]
        for y, weight_y in _ends(self.along_y, row):
            for x, weight_x in _ends(self.along_x, column):
                line = self.images[:, None, None] * self.shape[2] + y[:, :, None]
                weights = weight_y[:, :, None] * weight_x[:, None, :] * inside
                yield _Corner(line * self.shape[3] + x[:, None, :], weights)


def _ends(samples: AxisSamples, number: int) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """(cell, weight), each ``(B, b)``, before and after the sample of this number."""
    fraction = samples.fraction[:, :, number]
    return (samples.low[:, :, number], 1 - fraction), (samples.high[:, :, number], fraction)

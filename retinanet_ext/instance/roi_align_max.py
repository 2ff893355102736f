"""Maximal bilinear samples of a region (Mask R-CNN, Table 2c), for a block of RoIs at once, one sample after another.

The reference is :func:`retinanet_ext.instance.roi_align.pool_samples_reference`. Memory is bounded by
``BLOCK_VALUES``: a running maximum of a block, and one sample per bin. The backward pass finds the maximal samples
again, so that only the regions and the map are kept.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .roi_align import AxisSamples, accumulation_dtype, sample_counts, samples_along_axis

# Values of a block's result. On a CPU a block stays in the cache; elsewhere larger blocks need fewer launches.
BLOCK_VALUES, BLOCK_VALUES_ON_CUDA = 1 << 18, 1 << 22


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


class _MaximalSamples(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, regions, output_size, sampling_ratio):
        ctx.save_for_backward(features, regions)
        ctx.output_size, ctx.sampling_ratio = output_size, sampling_ratio
        pooled = features.new_empty((len(regions), *output_size, features.shape[1]))
        table = _table(features)
        for part, block in _blocks(regions, features.shape, output_size, sampling_ratio):
            pooled[part] = block.maximum(table)[0].to(pooled.dtype)
        return pooled.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        features, regions = ctx.saved_tensors
        table, gradient = _table(features), gradient.permute(0, 2, 3, 1)
        total = torch.zeros_like(table)
        for part, block in _blocks(regions, features.shape, ctx.output_size, ctx.sampling_ratio):
            block.spread(total, gradient[part].to(total.dtype), block.maximum(table)[1])
        size = (features.shape[0], *features.shape[2:], features.shape[1])
        return total.to(features.dtype).view(size).permute(0, 3, 1, 2), None, None, None


def _table(features: torch.Tensor) -> torch.Tensor:
    """The map as rows of cells ``(N*H*W, C)``, in the dtype of sums."""
    rows = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    return rows.to(accumulation_dtype(features.dtype)).contiguous()


def _blocks(
    regions: torch.Tensor, map_shape: torch.Size, output_size: tuple[int, int], sampling_ratio: int
) -> Iterator[tuple[torch.Tensor, "_Block"]]:
    """The indices of the regions of each block, and the block, whose regions have similar numbers of samples."""
    counts = [
        sample_counts(sizes, bins, sampling_ratio) for sizes, bins in zip((regions[:, 4], regions[:, 3]), output_size)
    ]
    values = BLOCK_VALUES if regions.device.type == "cpu" else BLOCK_VALUES_ON_CUDA
    size = max(1, values // max(1, output_size[0] * output_size[1] * map_shape[1]))
    if len(regions):
        for part in (counts[0] * counts[1]).argsort().split(size):
            yield part, _Block(regions[part], map_shape, output_size, sampling_ratio)


class _Block:
    """The samples of B regions, numbered row by row on the finest grid of the block."""

    def __init__(self, regions: torch.Tensor, map_shape: torch.Size, output_size: tuple[int, int], sampling_ratio: int):
        self.images, self.output_size = regions[:, 0].long(), output_size
        self.height, self.width = map_shape[2:]
        self.along_y = samples_along_axis(regions[:, 2], regions[:, 4], output_size[0], self.height, sampling_ratio)
        self.along_x = samples_along_axis(regions[:, 1], regions[:, 3], output_size[1], self.width, sampling_ratio)

    def maximum(self, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Largest sample of each bin ``(B, h, w, C)`` and its number (-1 without samples), from ``(N*H*W, C)``."""
        size = (len(self.images), *self.output_size, table.shape[1])
        best = table.new_full(size, float("-inf"))
        chosen = torch.full(size, -1, dtype=torch.int64, device=table.device)
        columns = self.along_x.low.shape[2]
        for row in range(self.along_y.low.shape[2]):
            for column in range(columns):
                exists = self.along_y.exists[:, :, row, None] & self.along_x.exists[:, :, column, None]
                cells, weights = self._corners(row, column)
                value = F.embedding_bag(cells, table, mode="sum", per_sample_weights=weights).view(size)
                # NaN counts as largest, as in torch.amax.
                better = ((value > best) | value.isnan()) & exists[..., None]
                best = torch.where(better, value, best)
                chosen.masked_fill_(better, row * columns + column)
        return best.masked_fill_(chosen < 0, 0.0), chosen

    def spread(self, total: torch.Tensor, gradient: torch.Tensor, chosen: torch.Tensor) -> None:
        """Add the gradient ``(B, h, w, C)`` at the cells of the chosen samples to ``total (N*H*W, C)``, in place."""
        columns, channels = self.along_x.low.shape[2], total.shape[1]
        if columns == 0 or self.along_y.low.shape[2] == 0:
            return
        number = chosen.clamp(min=0)
        region, bin_y, bin_x = (
            torch.arange(size, device=total.device).view([-1 if axis == i else 1 for i in range(4)])
            for axis, size in enumerate(chosen.shape[:3])
        )
        at_y, at_x = (region, bin_y, number // columns), (region, bin_x, number % columns)
        inside = self.along_y.inside[at_y] & self.along_x.inside[at_x] & (chosen >= 0)
        gradient = torch.where(inside, gradient, 0.0)
        channel, first = torch.arange(channels, device=total.device), self.images.view(-1, 1, 1, 1) * self.height
        for y, weight_y in _ends(self.along_y):
            line, part = (first + y[at_y]) * self.width, gradient * weight_y[at_y]
            for x, weight_x in _ends(self.along_x):
                index = (line + x[at_x]) * channels + channel
                total.view(-1).scatter_add_(0, index.flatten(), (part * weight_x[at_x]).flatten())

    def _corners(self, row: int, column: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample (row, column) of each bin: the rows of its four cells in the table and their weights, ``(Bhw, 4)``."""
        inside = self.along_y.inside[:, :, row, None] & self.along_x.inside[:, None, :, column]
        cells, weights = [], []
        for y, weight_y in _ends(self.along_y):
            line = self.images[:, None, None] * self.height + y[:, :, row, None]
            for x, weight_x in _ends(self.along_x):
                cells.append(line * self.width + x[:, None, :, column])
                weights.append(weight_y[:, :, row, None] * weight_x[:, None, :, column] * inside)
        return torch.stack(cells, dim=3).flatten(0, 2), torch.stack(weights, dim=3).flatten(0, 2)


def _ends(samples: AxisSamples) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """(cells, weights), each ``(B, b, S)``, before and after the samples."""
    return (samples.low, 1 - samples.fraction), (samples.high, samples.fraction)

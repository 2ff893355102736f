"""Bilinear samples of a region (RoIAlign: Mask R-CNN, section 3).

The file goes from the method to what runs:

1. :func:`pool_samples_reference` is the method in loops, with average or maximum: a reference. Training does not call
   it; tests compare the fast forms with it.
2. :func:`average_samples` is what runs on a CPU. Bilinear interpolation is separable, so a pooled RoI is
   ``A F B^T`` with small matrices A (h, rows) and B (w, columns), and F the window of the map that the RoI touches:
   two small matrix products per RoI, read in place from the channels-last map. The levels and images run side by side.

N images, C channels, map H x W, M RoIs, output h x w. Regions ``(M, 5)`` are ``(image index, x, y, width, height)`` in
index coordinates: the centre of the map's first cell is (0, 0). A sample farther than one cell outside the map is 0;
the others are moved onto the map, as in torchvision.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .single_threads import run_single_threaded

# Bounds of temporary memory: RoIs handled together, and samples along one axis of all of them.
BLOCK_ROIS, BLOCK_SAMPLES = 64, 1 << 20


class LevelRegions(NamedTuple):
    """Regions ``(R, 5)`` on one map, and the rows ``(R,)`` int64 of the result that they fill."""

    regions: torch.Tensor
    rows: torch.Tensor


def bilinear(image: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """The map ``(C, H, W)`` interpolated at one point: ``(C,)``."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return image[:, 0, 0] * 0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image[:, top, left] * (1 - (x - left)) + image[:, top, right] * (x - left)
    lower = image[:, bottom, left] * (1 - (x - left)) + image[:, bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


def pool_samples_reference(
    features: torch.Tensor,
    regions: torch.Tensor,
    output_size: tuple[int, int],
    sampling_ratio: int,
    reduce: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Bins of regular samples, reduced: ``(M, C, h, w)``. A reference; see the module.

    Args:
        features: ``(N, C, H, W)``.
        regions: ``(M, 5)``, see the module.
        sampling_ratio: samples per bin and axis; 0: the bin's size rounded up. A bin without samples gives 0.
        reduce: from the samples of a bin ``(S, C)`` to ``(C,)``.
    """
    bins_y, bins_x = output_size
    pooled = []
    for number, left, top, width, height in regions.tolist():
        image, step_y, step_x = features[int(number)], height / bins_y, width / bins_x
        count_y = sampling_ratio if sampling_ratio > 0 else max(math.ceil(step_y), 0)
        count_x = sampling_ratio if sampling_ratio > 0 else max(math.ceil(step_x), 0)
        for row in range(bins_y):
            ys = [top + step_y * (row + (i + 0.5) / count_y) for i in range(count_y)]
            for column in range(bins_x):
                xs = [left + step_x * (column + (i + 0.5) / count_x) for i in range(count_x)]
                samples = [bilinear(image, y, x) for y in ys for x in xs]
                pooled.append(reduce(torch.stack(samples)) if samples else image[:, 0, 0] * 0)
    if not pooled:
        return features.sum() * 0 + features.new_zeros((0, features.shape[1], bins_y, bins_x))
    return torch.stack(pooled).view(len(regions), bins_y, bins_x, -1).permute(0, 3, 1, 2)


class AxisSamples(NamedTuple):
    """Samples of R regions along one axis, S at most in each of b bins: tensors ``(R, b, S)``.

    ``low`` int64 is the index of the cell at or before a sample, ``high`` that of the next, ``fraction`` the share of
    ``high``. ``inside`` bool is false where the sample lies outside the map. ``exists`` bool ``(R, 1, S)`` is false
    past the region's number of samples, ``counts (R,)``.
    """

    low: torch.Tensor
    high: torch.Tensor
    fraction: torch.Tensor
    inside: torch.Tensor
    exists: torch.Tensor
    counts: torch.Tensor


def sample_counts(sizes: torch.Tensor, bins: int, sampling_ratio: int) -> torch.Tensor:
    """Samples per bin along one axis ``(R,)``, for regions of these sizes ``(R,)`` in cells."""
    if sampling_ratio > 0:
        return torch.full_like(sizes, sampling_ratio)
    return torch.ceil(sizes / bins).clamp(min=0)


def samples_along_axis(
    starts: torch.Tensor, sizes: torch.Tensor, bins: int, cells: int, sampling_ratio: int
) -> AxisSamples:
    """The samples of regions that begin at ``starts (R,)`` and have ``sizes (R,)``, on an axis of this many cells."""
    counts = sample_counts(sizes, bins, sampling_ratio)
    # On a GPU the maximum waits for the device.
    most = sampling_ratio if sampling_ratio > 0 else int(counts.max()) if len(counts) else 0
    options = {"dtype": starts.dtype, "device": starts.device}
    number = torch.arange(most, **options)
    start, step, count = starts[:, None, None], (sizes / bins)[:, None, None], counts.clamp(min=1)[:, None, None]
    points = start + torch.arange(bins, **options)[:, None] * step + (number + 0.5) * step / count
    inside = (points >= -1) & (points <= cells)
    points = points.clamp(0, cells - 1)
    low = points.long()
    return AxisSamples(
        low, (low + 1).clamp(max=cells - 1), points - low, inside, number < counts[:, None, None], counts
    )


class AxisWeights(NamedTuple):
    """Interpolation along one axis as matrices ``weights (R, b, L)`` over windows of cells.

    The window of a region begins at cell ``first[r]`` and has ``lengths[r] <= L`` cells (0: nothing inside the map).
    """

    weights: torch.Tensor
    first: list[int]
    lengths: list[int]


def weights_along_axis(
    starts: torch.Tensor, sizes: torch.Tensor, bins: int, cells: int, sampling_ratio: int
) -> AxisWeights:
    """The average of the samples of each bin, as weights of cells; ``starts`` and ``sizes`` are ``(R,)``."""
    samples = samples_along_axis(starts, sizes, bins, cells, sampling_ratio)
    used = samples.inside & samples.exists
    if used.numel() == 0:
        return AxisWeights(starts.new_zeros((len(starts), bins, 0)), [0] * len(starts), [0] * len(starts))
    first = samples.low.masked_fill(~used, cells).flatten(1).amin(1)
    lengths = (samples.high.masked_fill(~used, -1).flatten(1).amax(1) - first + 1).clamp(min=0)
    longest = int(lengths.max())
    weights = starts.new_zeros((len(starts), bins, max(longest, 1)))
    share = used.to(starts.dtype) / samples.counts.clamp(min=1)[:, None, None]
    for cell, part in ((samples.low, 1 - samples.fraction), (samples.high, samples.fraction)):
        # Unused samples may lie outside the window; their share is 0.
        weights.scatter_add_(2, (cell - first[:, None, None]).clamp(0, max(longest, 1) - 1), share * part)
    return AxisWeights(weights, first.tolist(), lengths.tolist())


def average_samples(
    maps: Sequence[torch.Tensor], levels: Sequence[LevelRegions], output_size: tuple[int, int], sampling_ratio: int
) -> torch.Tensor:
    """RoIs averaged from several maps at once, on a CPU: ``(M, C, h, w)`` in channels-last memory.

    Only the regions are kept for the backward pass, which computes the weights again. Sums are in float32 (float64 for
    float64 maps), the result has the maps' dtype.

    Args:
        maps: ``(N, C, H_l, W_l)`` each; channels-last maps are read without a copy.
        levels: one for each map; together their rows are 0 .. M-1. Regions must be finite.
        sampling_ratio: samples per bin and axis; 0: the bin's size rounded up.
    """
    return _AverageSamples.apply(levels, output_size, sampling_ratio, *maps)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over values of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _AverageSamples(torch.autograd.Function):
    @staticmethod
    def forward(ctx, levels, output_size, sampling_ratio, *maps):
        ctx.levels, ctx.output_size, ctx.sampling_ratio = levels, output_size, sampling_ratio
        ctx.shapes, ctx.dtype = [features.shape for features in maps], maps[0].dtype
        num_rois, dtype = sum(len(level.rows) for level in levels), accumulation_dtype(maps[0].dtype)
        pooled = maps[0].new_empty((num_rois, *output_size, maps[0].shape[1]))

        def _pool_image(features: torch.Tensor, blocks: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
            table = features.permute(1, 2, 0).to(dtype).contiguous()
            for regions, rows in blocks:
                pooled[rows] = _pool(table, regions.to(dtype), output_size, sampling_ratio).to(pooled.dtype)

        run_single_threaded(
            [
                partial(_pool_image, features[image], blocks)
                for features, level in zip(maps, levels)
                for image, blocks in _blocks_of_images(level, features.shape[0], output_size, sampling_ratio)
            ]
        )
        return pooled.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        gradient, dtype, map_gradients, jobs = gradient.permute(0, 2, 3, 1), accumulation_dtype(ctx.dtype), [], []

        def _spread_image(map_gradient: torch.Tensor, blocks: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
            # In half precision, the sum over many RoIs is rounded once, at its end.
            total = map_gradient.to(dtype)
            for regions, rows in blocks:
                _spread(total, gradient[rows].to(dtype).contiguous(), regions.to(dtype), ctx.sampling_ratio)
            if dtype != ctx.dtype:
                map_gradient.copy_(total)

        for (num_images, channels, *size), level, needed in zip(ctx.shapes, ctx.levels, ctx.needs_input_grad[3:]):
            if not needed:
                map_gradients.append(None)
                continue
            map_gradient = gradient.new_zeros((num_images, *size, channels), dtype=ctx.dtype)
            map_gradients.append(map_gradient.permute(0, 3, 1, 2))
            blocks_of_images = _blocks_of_images(level, num_images, ctx.output_size, ctx.sampling_ratio)
            jobs.extend(partial(_spread_image, map_gradient[image], blocks) for image, blocks in blocks_of_images)
        run_single_threaded(jobs)
        return None, None, None, *map_gradients


def _blocks_of_images(
    level: LevelRegions, num_images: int, output_size: tuple[int, int], sampling_ratio: int
) -> Iterator[tuple[int, list[tuple[torch.Tensor, torch.Tensor]]]]:
    """For each image that has regions: its index, and (regions, rows) in blocks."""
    regions, most = level.regions, 1
    for size, bins in zip((regions[:, 4], regions[:, 3]), output_size):
        if len(regions):
            most = max(most, bins * int(sample_counts(size, bins, sampling_ratio).max()))
    block = max(1, min(BLOCK_ROIS, BLOCK_SAMPLES // most))
    for image in range(num_images):
        members = (regions[:, 0] == image).nonzero()[:, 0]
        if len(members):
            yield image, [(regions[part], level.rows[part]) for part in members.split(block)]


def _weights_of_regions(
    regions: torch.Tensor, map_size: tuple[int, int], output_size: tuple[int, int], sampling_ratio: int
) -> tuple[AxisWeights, AxisWeights]:
    (height, width), (bins_y, bins_x) = map_size, output_size
    return (
        weights_along_axis(regions[:, 2], regions[:, 4], bins_y, height, sampling_ratio),
        weights_along_axis(regions[:, 1], regions[:, 3], bins_x, width, sampling_ratio),
    )


def _windows(along_y: AxisWeights, along_x: AxisWeights) -> Iterator[tuple[int, int, int, int, int]]:
    """(number of the region, top, rows, left, columns) of each window that is not empty."""
    sizes = zip(along_y.first, along_y.lengths, along_x.first, along_x.lengths)
    for number, (top, rows, left, columns) in enumerate(sizes):
        if rows and columns:
            yield number, top, rows, left, columns


def _pool(
    table: torch.Tensor, regions: torch.Tensor, output_size: tuple[int, int], sampling_ratio: int
) -> torch.Tensor:
    """Pooled regions ``(B, h, w, C)`` of one image's map ``(H, W, C)``."""
    (height, width, channels), (bins_y, bins_x) = table.shape, output_size
    along_y, along_x = _weights_of_regions(regions, (height, width), output_size, sampling_ratio)
    pooled, lines = table.new_zeros((len(regions), bins_y, bins_x, channels)), table.view(height, width * channels)
    for number, top, rows, left, columns in _windows(along_y, along_x):
        window = lines[top : top + rows, left * channels : (left + columns) * channels]
        narrowed = torch.mm(along_y.weights[number, :, :rows], window).view(bins_y, columns, channels)
        across = along_x.weights[number, :, :columns].expand(bins_y, bins_x, columns)
        torch.bmm(across, narrowed, out=pooled[number])
    return pooled


def _spread(total: torch.Tensor, gradient: torch.Tensor, regions: torch.Tensor, sampling_ratio: int) -> None:
    """Add the gradient of pooled regions ``(B, h, w, C)`` to that of the map, ``(H, W, C)``, in place."""
    (height, width, channels), (bins_y, bins_x) = total.shape, gradient.shape[1:3]
    along_y, along_x = _weights_of_regions(regions, (height, width), (bins_y, bins_x), sampling_ratio)
    lines = total.view(height, width * channels)
    for number, top, rows, left, columns in _windows(along_y, along_x):
        across = along_x.weights[number, :, :columns].T.expand(bins_y, columns, bins_x)
        widened = torch.bmm(across, gradient[number]).view(bins_y, columns * channels)
        window = lines[top : top + rows, left * channels : (left + columns) * channels]
        window.addmm_(along_y.weights[number, :, :rows].T, widened)

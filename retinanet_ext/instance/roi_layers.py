"""The RoI layers of Mask R-CNN's Table 2c: each pools RoIs from one feature map into bins of a fixed size.

=========  ===========  ============  ========
method     RoI rounded  bins rounded  bilinear
=========  ===========  ============  ========
RoIAlign   no           no            yes
RoIWarp    yes          no            yes
RoIPool    yes          yes           no
=========  ===========  ============  ========

RoIAlign and RoIWarp take regular samples in each bin, and keep their average or their maximum; RoIPool keeps the
largest cell of a bin. :func:`roi_pool_reference` is RoIPool in loops, a reference; training runs torchvision's.

All layers are called with features ``(N, C, H, W)`` and RoIs ``(M, 5)`` (image index, x1, y1, x2, y2, in pixels of the
padded input), and return ``(M, C, h, w)`` in the features' dtype; sums over half precision are in float32. No gradient
flows to the RoIs. A RoI without area and samples outside the map give numbers, never NaN.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from .roi_align import LevelRegions, accumulation_dtype, average_samples
from .roi_align_max import maximal_samples


def round_half_away(values: torch.Tensor) -> torch.Tensor:
    """C's ``round`` (halves away from zero) of a tensor of any shape; ``torch.round`` rounds halves to even numbers."""
    whole = values.trunc()
    return whole + values.sign() * ((values - whole).abs() >= 0.5)


def quantised_boxes(rois: torch.Tensor, spatial_scale: float) -> torch.Tensor:
    """RoIs ``(M, 5)`` in cells as RoIPool rounds them: first cell and the one past the last, at least one cell.

    Both rounded corners belong to the RoI: from 2 to 4 are three cells, ``[2, 5)``.
    """
    corners = round_half_away(rois[:, 1:] * spatial_scale)
    first, last = corners[:, :2], corners[:, 2:]
    return torch.cat([rois[:, :1], first, torch.maximum(last, first) + 1], dim=1)


def roi_pool_reference(
    features: torch.Tensor, rois: torch.Tensor, output_size: tuple[int, int], spatial_scale: float
) -> torch.Tensor:
    """RoIPool in loops: ``(M, C, h, w)`` from ``(N, C, H, W)`` and ``(M, 5)``. A reference; see the module."""
    (height, width), (bins_y, bins_x) = features.shape[2:], output_size
    pooled = []
    for number, left, top, right, bottom in quantised_boxes(rois, spatial_scale).tolist():
        step_y, step_x = (bottom - top) / bins_y, (right - left) / bins_x
        for row in range(bins_y):
            ys = int(top) + math.floor(row * step_y), int(top) + math.ceil((row + 1) * step_y)
            for column in range(bins_x):
                xs = int(left) + math.floor(column * step_x), int(left) + math.ceil((column + 1) * step_x)
                (y1, y2), (x1, x2) = (min(max(y, 0), height) for y in ys), (min(max(x, 0), width) for x in xs)
                cells = features[int(number), :, y1:y2, x1:x2].flatten(1)
                pooled.append(cells.amax(1) if cells.shape[1] else features[int(number), :, 0, 0] * 0)
    if not pooled:
        return features.sum() * 0 + features.new_zeros((0, features.shape[1], bins_y, bins_x))
    return torch.stack(pooled).view(len(rois), bins_y, bins_x, -1).permute(0, 3, 1, 2)


def pair_of_bins(output_size: int | Sequence[int]) -> tuple[int, int]:
    """Bins (h, w) of a pooled RoI, from a pair or one number for both.

    Raises:
        ValueError: not one or two numbers above 0.
    """
    pair = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(pair) != 2 or not all(isinstance(size, int) and size > 0 for size in pair):
        raise ValueError(f"output_size is {output_size!r}; legal are an int above 0, or two of them (h, w)")
    return pair


class ROILayer(nn.Module):
    """Arguments that all RoI layers share."""

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int = 0):
        """
        Args:
            output_size: bins (h, w), or one number for both.
            spatial_scale: cells of the map per pixel of the input: 1 / stride.
            sampling_ratio: samples per bin and axis; 0: the bin's size in cells, rounded up. RoIPool has no samples.
        """
        super().__init__()
        self.output_size = pair_of_bins(output_size)
        self.spatial_scale, self.sampling_ratio = spatial_scale, sampling_ratio


class ROIAlign(ROILayer):
    """RoIAlign, average, without the shift by half a pixel: torchvision's ``roi_align(aligned=False)``, Detectron1's.

    On a CPU the average is two matrix products per RoI (:func:`average_samples`), elsewhere torchvision's kernel.
    """

    half_pixel = False

    def forward(self, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """``(M, C, h, w)``; see the module for shapes."""
        rois = wide_rois(features, rois)
        if not runs_on_cpu(features):
            boxes, scale = self.boxes(rois)
            # Importing torchvision takes about as long as importing torch, and a CPU does not need it here.
            from torchvision.ops import roi_align

            wide = features.to(boxes.dtype)
            pooled = roi_align(wide, boxes, self.output_size, scale, self.sampling_ratio, self.half_pixel)
            return pooled.to(features.dtype)
        level = LevelRegions(self.regions(rois), torch.arange(len(rois)))
        return average_samples([features], [level], self.output_size, self.sampling_ratio)

    def boxes(self, rois: torch.Tensor) -> tuple[torch.Tensor, float]:
        """RoIs ``(M, 5)`` and their scale, as torchvision's kernel takes them."""
        return rois, self.spatial_scale

    def regions(self, rois: torch.Tensor) -> torch.Tensor:
        """The sampled regions ``(M, 5)``: image index, x, y, width, height in index coordinates of the map."""
        boxes, scale = self.boxes(rois)
        corners = boxes[:, 1:] * scale - (0.5 if self.half_pixel else 0.0)
        sizes = corners[:, 2:] - corners[:, :2]
        return torch.cat([boxes[:, :1], corners[:, :2], sizes if self.half_pixel else sizes.clamp(min=1)], dim=1)


class ROIAlignV2(ROIAlign):
    """RoIAlign, average, with cell centres at half a pixel: torchvision's ``roi_align(aligned=True)``."""

    half_pixel = True


class ROIWarp(ROIAlignV2):
    """RoIWarp, average: the RoI is rounded as RoIPool rounds it, then sampled as by RoIAlign (MNC; Table 2c)."""

    def boxes(self, rois: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Rounded RoIs ``(M, 5)`` in cells, and the scale 1."""
        return quantised_boxes(rois, self.spatial_scale), 1.0


class ROIAlignMax(ROIAlignV2):
    """RoIAlign with the largest sample of a bin instead of the average; half-pixel centres (Table 2c)."""

    def forward(self, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """``(M, C, h, w)``; see the module for shapes."""
        regions = self.regions(wide_rois(features, rois))
        return maximal_samples(features, regions, self.output_size, self.sampling_ratio)


class ROIWarpMax(ROIWarp, ROIAlignMax):
    """RoIWarp with the largest sample of a bin instead of the average."""


class ROIPool(ROILayer):
    """RoIPool (Fast R-CNN): RoI and bins rounded, the largest cell of a bin; torchvision's ``roi_pool``."""

    def forward(self, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """``(M, C, h, w)``; see the module for shapes."""
        from torchvision.ops import roi_pool  # here for the reason given in ROIAlign

        rois = wide_rois(features, rois)
        return roi_pool(features.to(rois.dtype), rois, self.output_size, self.spatial_scale).to(features.dtype)


def runs_on_cpu(features: torch.Tensor) -> bool:
    """Whether this map ``(N, C, H, W)`` is on a CPU, and no graph is recorded.

    A traced or compiled graph must not depend on the values of RoIs. On a CPU these choose the matrix products.
    """
    return features.device.type == "cpu" and not torch.jit.is_tracing() and not torch.compiler.is_compiling()


def wide_rois(features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
    """RoIs ``(M, 5)`` in the dtype of sums over ``features (N, C, H, W)``; on a CPU they are checked.

    Elsewhere the check would wait for the device.

    Raises:
        ValueError: a coordinate is not finite, or an image is not in the batch.
    """
    if runs_on_cpu(features) and len(rois):
        if not bool(rois.isfinite().all()):
            raise ValueError("rois hold inf or NaN; legal are finite coordinates. Look for boxes that overflow.")
        first, last, num_images = float(rois[:, 0].min()), float(rois[:, 0].max()), features.shape[0]
        if not 0 <= first <= last < num_images:
            raise ValueError(
                f"the image indices of rois go from {first:g} to {last:g}; legal are 0 to {num_images - 1}, "
                "because the features hold that many images"
            )
    return rois.to(accumulation_dtype(features.dtype))

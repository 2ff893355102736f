"""Puts small predicted masks into the image: the method, its fast form, and the fast form that encodes on the way.

The value of a mask at a pixel is interpolated between the four nearest values of the mask, which lie at the centres of
the box's S x S cells and are surrounded by zeros. Pixels more than one pixel outside the box stay empty. A box that has
no area, or a coordinate that is not finite, gives an empty mask. On a CPU the result is Detectron2's, pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from .coco_rle import compress_rle
from .encoded_masks import EncodedMasks

# The fast form sums in another order. Values nearer than this to the threshold are interpolated again as in the
# reference; the two differ by less than a tenth of it.
ROUNDING = 2e-5
# Pixels interpolated at a time, 4 MB in float32 on a CPU and 100 MB with temporaries on a GPU.
PIXELS_OF_STRIP = 2**20
PIXELS_OF_CHUNK = 2**23


def paste_masks_reference(
    probabilities: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int], threshold: float = 0.5
) -> torch.Tensor:
    """Interpolates every mask ``(M, S, S)`` at the centre of every pixel of the image.

    Same arguments and result as `paste_masks`, which uses it on a GPU, where one large call costs less than many small.
    """
    height, width = image_size
    probabilities, boxes = probabilities.float(), boxes.float()
    rows = torch.arange(height, device=boxes.device, dtype=torch.float32)
    columns = torch.arange(width, device=boxes.device, dtype=torch.float32)
    x0, y0, x1, y1 = boxes[:, None].unbind(dim=2)
    # The box reaches from -1 to 1.
    x = (columns + 0.5 - x0) / (x1 - x0) * 2 - 1
    y = (rows + 0.5 - y0) / (y1 - y0) * 2 - 1
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=3)
    values = F.grid_sample(probabilities[:, None], grid, align_corners=False)[:, 0]
    near_x = (columns >= x0.floor() - 1) & (columns < x1.ceil() + 1)
    near_y = (rows >= y0.floor() - 1) & (rows < y1.ceil() + 1)
    usable = boxes.isfinite().all(dim=1, keepdim=True) & (x1 > x0) & (y1 > y0)
    return (values >= threshold) & near_x[:, None, :] & (near_y & usable)[:, :, None]


def paste_masks(
    probabilities: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int], threshold: float = 0.5
) -> torch.Tensor:
    """Dense masks of the image's size. On a CPU only the pixels of each box are computed.

    Args:
        probabilities: ``(M, S, S)`` in [0, 1].
        boxes: ``(M, 4)``, xyxy in pixels of the image; may reach beyond it.
        image_size: (H, W) in pixels.
        threshold: a pixel belongs to the object if its probability is at least this; above 0.

    Returns:
        bool ``(M, H, W)``, on the device of ``probabilities``.

    Raises:
        ValueError: shapes that do not fit together, or a threshold that is not above 0.
    """
    _check(probabilities, boxes, threshold)
    pasted = torch.zeros(len(boxes), *image_size, dtype=torch.bool, device=probabilities.device)
    if pasted.is_cuda:
        chunk = max(1, PIXELS_OF_CHUNK // max(1, image_size[0] * image_size[1]))
        parts = (pasted.split(chunk), probabilities.split(chunk), boxes.to(pasted.device).split(chunk))
        for result, *masks_and_boxes in zip(*parts, strict=True):
            result.copy_(paste_masks_reference(*masks_and_boxes, image_size, threshold))
        return pasted
    windows = _masks_and_windows(probabilities, boxes, image_size)
    for mask, (values, window) in zip(pasted.numpy(), windows, strict=True):
        for column, bits in _strips(values, window, threshold):
            mask[window.y0 : window.y1, column : column + len(bits)] = bits.T
    return pasted


def encode_pasted_masks(
    probabilities: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int], threshold: float = 0.5
) -> EncodedMasks:
    """The same masks as `paste_masks` gives on a CPU, as run lengths. Makes one strip of one box at a time.

    Arguments and errors are those of `paste_masks`: ``(M, S, S)`` and ``(M, 4)``. On CUDA this waits for the device.
    """
    _check(probabilities, boxes, threshold)
    height, width = int(image_size[0]), int(image_size[1])
    rles = []
    for values, window in _masks_and_windows(probabilities, boxes, (height, width)):
        changes = [_changes(bits, column, window, height) for column, bits in _strips(values, window, threshold)]
        counts = _run_lengths(np.concatenate([np.zeros(0, np.int64), *changes]), height * width)
        rles.append(compress_rle({"size": [height, width], "counts": counts.tolist()}))
    return EncodedMasks(rles, (height, width))


def _check(probabilities: torch.Tensor, boxes: torch.Tensor, threshold: float) -> None:
    if probabilities.dim() != 3 or boxes.shape != (len(probabilities), 4):
        raise ValueError(
            f"masks of shape {tuple(probabilities.shape)} and boxes of shape {tuple(boxes.shape)}; "
            "they must be (M, S, S) and (M, 4)"
        )
    if not threshold > 0:
        raise ValueError(f"the threshold is {threshold}; it must be above 0, because pixels outside the box are 0")


class _Window(NamedTuple):
    """The pixels of the image that a box may fill, rows ``[y0, y1)`` and columns ``[x0, x1)``, and the box."""

    y0: int
    y1: int
    x0: int
    x1: int
    box: np.ndarray


def _masks_and_windows(
    probabilities: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int]
) -> Iterator[tuple[np.ndarray, _Window]]:
    # float32 as in the reference: the same box in another precision has other borders.
    masks = probabilities.detach().float().cpu().numpy()
    corners = boxes.detach().float().cpu().numpy()
    usable = np.isfinite(corners).all(axis=1) & (corners[:, :2] < corners[:, 2:]).all(axis=1)
    limits = np.array([image_size[1], image_size[0]], dtype=np.float64)
    first = np.clip(np.floor(np.where(usable[:, None], corners[:, :2], 0)).astype(np.float64) - 1, 0, limits)
    last = np.clip(np.ceil(np.where(usable[:, None], corners[:, 2:], 0)).astype(np.float64) + 1, 0, limits)
    last = np.where(usable[:, None], last, first)
    for mask, box, (x0, y0), (x1, y1) in zip(masks, corners, first.astype(int), last.astype(int), strict=True):
        yield mask, _Window(int(y0), int(y1), int(x0), int(x1), box)


def _strips(mask: np.ndarray, window: _Window, threshold: float) -> Iterator[tuple[int, np.ndarray]]:
    """Strips of neighbouring columns of a pasted mask ``(S, S)``: the first column, and bool ``(columns, rows)``."""
    rows = window.y1 - window.y0
    if rows <= 0 or window.x1 <= window.x0:
        return
    x = _positions(window.x0, window.x1, window.box[0], window.box[2])
    y = _positions(window.y0, window.y1, window.box[1], window.box[3])
    # Interpolation in x and in y are one matrix product each. The order is that of an RLE: column by column.
    with np.errstate(invalid="ignore", over="ignore"):
        along_x = _weights(x, mask.shape[1]) @ mask.T
        row_weights = np.ascontiguousarray(_weights(y, mask.shape[0]).T)
        step = max(1, PIXELS_OF_STRIP // rows)
        for start in range(0, len(x), step):
            distance = along_x[start : start + step] @ row_weights
            distance -= np.float32(threshold)
            bits = distance >= 0
            np.abs(distance, out=distance)
            # With NaN the comparison is false, and the value unclear.
            unclear = ~(distance > ROUNDING)
            if unclear.any():
                column, row = np.nonzero(unclear)
                bits[column, row] = _values_at(mask, x[start + column], y[row]) >= threshold
            yield window.x0 + start, bits


def _positions(first: int, last: int, start: np.float32, end: np.float32) -> np.ndarray:
    """Centres of the pixels ``[first, last)`` in a box from -1 to 1, float32 ``(pixels,)``."""
    return (np.arange(first, last, dtype=np.float32) + np.float32(0.5) - start) / (end - start) * np.float32(2) - 1


def _weights(positions: np.ndarray, size: int) -> np.ndarray:
    """Weights of the ``size`` values of a mask at positions ``(P,)``: float32 ``(P, size)``."""
    cells = (positions + 1) * np.float32(size / 2) - np.float32(0.5)
    weights = cells[:, None] - np.arange(size, dtype=np.float32)
    np.abs(weights, out=weights)
    np.subtract(1, weights, out=weights)
    return np.maximum(weights, 0, out=weights)


def _values_at(mask: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The reference's values of a mask ``(S, S)`` at points ``(P,)`` in its box."""
    grid = torch.from_numpy(np.stack([x, y], axis=1))[None, None]
    return F.grid_sample(torch.from_numpy(mask)[None, None], grid, align_corners=False)[0, 0, 0].numpy()


def _changes(bits: np.ndarray, column: int, window: _Window, height: int) -> np.ndarray:
    """Pixels, counted column by column, at which a run of the object starts or ends: int64 ``(changes,)``, ascending.

    Every run ends with its column at the latest.
    """
    columns, rows = bits.shape
    # A zero before the first column and one below every column.
    padded = np.zeros(1 + columns * (rows + 1), dtype=bool)
    padded[1:].reshape(columns, rows + 1)[:, :rows] = bits
    column_of, row_of = np.divmod(np.flatnonzero(padded[1:] != padded[:-1]), rows + 1)
    return (column + column_of) * height + window.y0 + row_of


def _run_lengths(changes: np.ndarray, num_pixels: int) -> np.ndarray:
    """Lengths of the runs, background first, from the ascending starts and ends of runs."""
    # A run that ends with its column goes on if the next column begins with one: both changes go.
    differs = np.diff(changes) != 0
    changes = changes[np.append(True, differs) & np.append(differs, True)] if len(changes) else changes
    if len(changes) and changes[-1] == num_pixels:
        changes = changes[:-1]
    return np.diff(changes, prepend=0, append=num_pixels)

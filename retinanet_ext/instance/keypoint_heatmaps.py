"""Keypoints as positions in the heatmap of a RoI, and back: the method, and its fast form.

A RoI is divided into S x S cells. A keypoint belongs to the cell that contains it, with pixel coordinates continuous:
cell c covers ``[c, c + 1) * width / S`` from the left border, and a point on the right border belongs to the last cell.
Back, a heatmap is interpolated (bicubic) to the size of the RoI in pixels, and its maximum is the centre of a pixel.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

# The fast form sums in another order, which changes values by a tenth of this, relative to the heatmap's largest. Where
# two pixels are nearer than this to the maximum, the reference decides between them.
ROUNDING = 1e-5
# Interpolated values at a time: 1 MB on a CPU, and 128 MB on a GPU, where few large calls cost less than many small.
VALUES_OF_CHUNK = {"cpu": 2**18, "cuda": 2**25}


def keypoints_to_heatmap_index(
    keypoints: torch.Tensor, rois: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cell of every keypoint.

    Args:
        keypoints: ``(M, J, 3)``: x, y in pixels, and visibility, 0 for points that are not labelled.
        rois: ``(M, 4)``, xyxy in pixels.
        size: S, cells of a side.

    Returns:
        Index of the cell, ``row * S + column``, int64 ``(M, J)``; and bool ``(M, J)``: whether the point is labelled
        and in the RoI. Where it is not, the index is 0.
    """
    start, end = rois[:, None, :2], rois[:, None, 2:]
    points = keypoints[:, :, :2]
    cells = ((points - start) * (size / (end - start))).floor()
    cells = torch.where(points == end, size - 1, cells)
    # Compare before the conversion: NaN and numbers beyond int64 have no integer.
    inside = ((cells >= 0) & (cells < size)).all(dim=2)
    valid = inside & (keypoints[:, :, 2] > 0)
    column, row = torch.where(valid[:, :, None], cells, 0).long().unbind(dim=2)
    return row * size + column, valid


def _sizes_in_pixels(rois: torch.Tensor) -> tuple[torch.Tensor, list[list[int]]]:
    """Width and height of RoIs, ``(M, 2)``, at least a pixel; and both rounded up, on the host."""
    sizes = (rois[:, 2:] - rois[:, :2]).clamp(min=1)
    return sizes, sizes.ceil().long().tolist()


def _interpolated(heatmaps: torch.Tensor, width: int, height: int) -> torch.Tensor:
    return F.interpolate(heatmaps[None], size=(height, width), mode="bicubic", align_corners=False)[0]


def heatmaps_to_keypoints_reference(heatmaps: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
    """RoI by RoI. Same arguments and result as `heatmaps_to_keypoints`, ``(M, J, 4)``."""
    sizes, pixels = _sizes_in_pixels(rois.float())
    found = heatmaps.new_zeros(*heatmaps.shape[:2], 4, dtype=torch.float32)
    for index, (width, height) in enumerate(pixels):
        values = _interpolated(heatmaps[index].float(), width, height)
        logits, flat = values.flatten(1).max(dim=1)
        shares = (heatmaps[index].float() - logits[:, None, None]).exp().sum(dim=(1, 2))
        x, y = flat % width, flat // width
        found[index, :, 0] = (x + 0.5) * (sizes[index, 0] / width) + rois[index, 0]
        found[index, :, 1] = (y + 0.5) * (sizes[index, 1] / height) + rois[index, 1]
        found[index, :, 2], found[index, :, 3] = logits, 1 / shares
    return found


@torch.no_grad()
def heatmaps_to_keypoints(heatmaps: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
    """The most likely position of every keypoint, as Detectron2 finds it.

    The interpolations of several RoIs are matrix products. On CUDA this waits for the device twice, whatever M is.

    Args:
        heatmaps: logits ``(M, J, S, S)``.
        rois: ``(M, 4)``, xyxy in pixels of the image.

    Returns:
        float32 ``(M, J, 4)``: x, y in pixels of the image; the logit there; and the score, its exponential over the
        sum of the exponentials of the heatmap, in (0, 1] unless interpolation overshoots.
    """
    heatmaps, rois = heatmaps.float(), rois.float()
    sizes, pixels = _sizes_in_pixels(rois)
    logits = heatmaps.new_zeros(heatmaps.shape[:2])
    flat = torch.zeros_like(logits, dtype=torch.long)
    unclear = torch.zeros_like(logits, dtype=torch.bool)
    largest = heatmaps.abs().amax(dim=(2, 3)) if heatmaps.numel() else logits
    with torch.autocast(heatmaps.device.type, enabled=False):
        for chunk in _chunks(pixels, heatmaps.shape[1], heatmaps.device.type):
            index = torch.tensor(chunk, device=heatmaps.device)
            logits[index], flat[index], unclear[index] = _maxima(
                heatmaps[index], [pixels[i] for i in chunk], largest[index]
            )
    widths, heights = sizes.ceil().unsqueeze(1).unbind(dim=2)
    for roi, keypoint in unclear.nonzero().tolist():
        width, height = pixels[roi]
        values = _interpolated(heatmaps[roi, keypoint : keypoint + 1], width, height)
        logits[roi, keypoint], flat[roi, keypoint] = values.flatten().max(dim=0)
    x = (flat % widths.long() + 0.5) * (sizes[:, :1] / widths) + rois[:, :1]
    y = (flat // widths.long() + 0.5) * (sizes[:, 1:] / heights) + rois[:, 1:2]
    scores = 1 / (heatmaps - logits[:, :, None, None]).exp().sum(dim=(2, 3))
    return torch.stack([x, y, logits, scores], dim=2)


def _chunks(pixels: list[list[int]], num_keypoints: int, device: str) -> Iterator[list[int]]:
    """RoIs of similar size together, so that padding them to the largest of their chunk adds little."""
    limit = VALUES_OF_CHUNK.get(device, VALUES_OF_CHUNK["cuda"])
    chunk: list[int] = []
    width = height = 0
    for index in sorted(range(len(pixels)), key=lambda i: pixels[i]):
        wider, higher = max(width, pixels[index][0]), max(height, pixels[index][1])
        if chunk and (len(chunk) + 1) * num_keypoints * wider * higher > limit:
            yield chunk
            chunk, (wider, higher) = [], pixels[index]
        chunk.append(index)
        width, height = wider, higher
    if chunk:
        yield chunk


def _maxima(
    heatmaps: torch.Tensor, pixels: list[list[int]], largest: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Interpolates heatmaps ``(M, J, S, S)`` to the sizes ``pixels`` and finds their maxima.

    Returns the maxima, their flat indices in the RoI, and whether another pixel is too near to it, ``(M, J)`` each.
    """
    widths, heights = torch.tensor(pixels, device=heatmaps.device).unbind(dim=1)
    width, height = max(w for w, _ in pixels), max(h for _, h in pixels)
    num_rois, num_keypoints, rows, columns = heatmaps.shape
    row_weights = _bicubic_weights(heights, height, rows)
    column_weights = _bicubic_weights(widths, width, columns)
    if heatmaps.is_cuda and torch.backends.cuda.matmul.allow_tf32:
        # TF32 has the digits of float16.
        heatmaps, row_weights, column_weights = heatmaps.double(), row_weights.double(), column_weights.double()
    stretched = torch.bmm(heatmaps.reshape(num_rois, -1, columns), column_weights.transpose(1, 2))
    values = row_weights[:, None] @ stretched.view(num_rois, num_keypoints, rows, width)
    if any(size != [width, height] for size in pixels):
        columns_beyond = torch.arange(width, device=values.device) >= widths[:, None]
        rows_beyond = torch.arange(height, device=values.device) >= heights[:, None]
        values.masked_fill_((rows_beyond[:, :, None] | columns_beyond[:, None, :])[:, None], -torch.inf)
    values = values.flatten(2).float()
    logits, flat = values.max(dim=2)
    second = values.scatter_(2, flat.unsqueeze(2), -torch.inf).amax(dim=2)
    # With NaN the comparison is false, and the maximum unclear.
    clear = second < logits - ROUNDING * largest
    return logits, flat // width * widths[:, None] + flat % width, ~clear


def _bicubic_weights(sizes: torch.Tensor, padded: int, size: int) -> torch.Tensor:
    """Weights of S values at the centres of ``sizes`` ``(M,)`` pixels, as in `F.interpolate`: ``(M, padded, S)``."""
    scale = size / sizes.float()
    cells = (torch.arange(padded, device=sizes.device) + 0.5) * scale[:, None] - 0.5
    first = cells.floor()
    after = cells - first
    weights = cells.new_zeros(len(sizes), padded, size)
    a = -0.75
    for tap in (-1, 0, 1, 2):
        distance = (after - tap).abs()
        near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
        far = ((distance - 5) * distance + 8) * distance * a - 4 * a
        # Beyond the border the outermost value goes on.
        index = (first + tap).clamp(0, size - 1).long().unsqueeze(2)
        weights.scatter_add_(2, index, torch.where(distance <= 1, near, far).unsqueeze(2))
    return weights

"""Areas and overlaps of boxes; boxes as offsets from other boxes, and back.

Boxes are ``(x1, y1, x2, y2)`` in pixels. :func:`pairwise_iou` is the readable form of the overlap. The matchers run
:func:`iou_of_columns`, which tests compare with it.
"""

import functools
import math
from collections.abc import Sequence

import torch

# Bounds exp() of the predicted log size, so that one wild prediction cannot overflow: no object is more than 1000/16
# times as large as its anchor. The authors' code and Detectron2 use the same value.
SCALE_CLAMP = math.log(1000.0 / 16)


def box_areas(boxes: torch.Tensor) -> torch.Tensor:
    """Areas ``(...)`` in square pixels of ``boxes`` ``(..., 4)``, xyxy."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_centers(boxes: torch.Tensor) -> torch.Tensor:
    """Centres ``(..., 2)``, x and y, of ``boxes`` ``(..., 4)``, xyxy."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def pairwise_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every box of one set with every box of the other.

    The readable form, which is the reference for tests of :func:`iou_of_columns`.

    Args:
        boxes1: ``(M, 4)``, xyxy.
        boxes2: ``(N, 4)``, xyxy.

    Returns:
        ``(M, N)`` in [0, 1]; 0 where the boxes do not overlap, also where both have no area.
    """
    upper_left = torch.max(boxes1[:, None, :2], boxes2[:, :2])
    lower_right = torch.min(boxes1[:, None, 2:], boxes2[:, 2:])
    intersection = (lower_right - upper_left).clamp_(min=0).prod(dim=2)
    union = box_areas(boxes1)[:, None] + box_areas(boxes2) - intersection
    return torch.where(intersection > 0, intersection / union, 0.0)


def box_columns(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes as :func:`iou_of_columns` takes them: x1, y1, x2, y2 and the area, each contiguous.

    Args:
        boxes: ``(..., 4)``, xyxy. A box without area, or with a NaN, becomes a point of area 1, so that its IoU with
            every box is 0 without a test of the union.

    Returns:
        ``(5, ...)``.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    area = (x2 - x1) * (y2 - y1)
    has_area = (x2 > x1) & (y2 > y1) & (area > 0)
    columns = torch.stack([x1, y1, x2, y2, area])
    columns[:4].masked_fill_(~has_area, 0)
    columns[4].masked_fill_(~has_area, 1)
    return columns


def iou_of_columns(boxes1: torch.Tensor, boxes2: torch.Tensor, scratch: torch.Tensor | None = None) -> torch.Tensor:
    """Intersection over union of boxes in columns, equal to :func:`pairwise_iou` in every bit; no gradient.

    Args:
        boxes1, boxes2: ``(5, ...)`` from :func:`box_columns`, with shapes that broadcast to one another.
        scratch: memory for at least three times as many numbers as the result has; the result lies in it. The default
            is new memory, which takes as much time as the computation if it is large.

    Returns:
        The broadcast shape without the 5, in [0, 1].
    """
    # torch.broadcast_shapes would import PyTorch's compiler, which takes seconds.
    shape = torch.broadcast_tensors(boxes1[0], boxes2[0])[0].shape
    size = math.prod(shape)
    if scratch is None:
        scratch = boxes1.new_empty(3 * size)
    result, height, other = scratch[: 3 * size].view(3, *shape)
    _overlap_of_spans(boxes1[0], boxes1[2], boxes2[0], boxes2[2], result, other)
    _overlap_of_spans(boxes1[1], boxes1[3], boxes2[1], boxes2[3], height, other)
    intersection = result.mul_(height)
    union = torch.add(boxes1[4], boxes2[4], out=other).sub_(intersection)
    return intersection.div_(union)


def _overlap_of_spans(low1, high1, low2, high2, result: torch.Tensor, other: torch.Tensor) -> None:
    """Write the length that two intervals share to ``result``; overwrites ``other``."""
    torch.minimum(high1, high2, out=result)
    torch.maximum(low1, low2, out=other)
    result.sub_(other).clamp_(min=0)


class Box2BoxTransform:
    """Encodes a target box as ``(dx, dy, dw, dh)`` relative to a source box, such as an anchor.

    ``dx = wx (tx - sx) / sw``, ``dw = ww log(tw / sw)`` with centres ``tx, sx`` and widths ``tw, sw`` of target and
    source; likewise for y and h.
    """

    def __init__(self, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), scale_clamp: float = SCALE_CLAMP):
        """
        Args:
            weights: ``(wx, wy, ww, wh)``, factors of the encoded offsets.
            scale_clamp: largest decoded ``dw / ww`` and ``dh / wh``.
        """
        self.weights = tuple(weights)
        if len(self.weights) != 4 or min(self.weights) <= 0:
            raise ValueError(f"BBOX_REG_WEIGHTS is {self.weights}; legal: four numbers above 0, for dx, dy, dw, dh")
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """Encode ``target_boxes`` ``(M, 4)`` against ``src_boxes`` ``(M, 4)``, both xyxy with positive sizes.

        Returns:
            ``(M, 4)`` deltas such that ``apply_deltas(deltas, src_boxes)`` gives the targets back, as long as no
            side is more than ``exp(scale_clamp)`` times the source's.
        """
        src_wh, src_center = _sizes_and_centers(src_boxes)
        target_wh, target_center = _sizes_and_centers(target_boxes)
        deltas = torch.cat([(target_center - src_center) / src_wh, torch.log(target_wh / src_wh)], dim=1)
        return deltas * _constant(self.weights, deltas.dtype, deltas.device)

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Decode ``deltas`` ``(M, 4)`` against ``boxes`` ``(M, 4)``, xyxy. Computed in at least float32.

        Returns:
            ``(M, 4)`` xyxy boxes, not clipped to any image.
        """
        if deltas.dtype in (torch.float16, torch.bfloat16):
            deltas = deltas.float()
        wh, center = _sizes_and_centers(boxes.to(deltas.dtype))
        shift, log_scale = (deltas / _constant(self.weights, deltas.dtype, deltas.device)).split(2, dim=1)
        new_center = shift * wh + center
        half_wh = 0.5 * torch.exp(log_scale.clamp(max=self.scale_clamp)) * wh
        return torch.cat([new_center - half_wh, new_center + half_wh], dim=1)


def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor ``(len(values),)``, made once: making a tensor from Python numbers waits for the device."""
    if torch.jit.is_tracing():  # each trace makes its own, else the first one differs from those after it
        return torch.tensor(values, dtype=dtype, device=device)
    return _cached_constant(values, dtype, device)


@functools.cache
def _cached_constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # training could not use a tensor made in inference mode
        return torch.tensor(values, dtype=dtype, device=device)


def _sizes_and_centers(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wh = boxes[:, 2:] - boxes[:, :2]
    return wh, boxes[:, :2] + 0.5 * wh

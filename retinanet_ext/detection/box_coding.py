"""Boxes as offsets from anchors (R-CNN, appendix C), and back."""

import functools
import math
from collections.abc import Sequence

import torch

# Bounds exp() of the predicted log size, so that one wild prediction cannot overflow: no object is more than
# 1000/16 times as large as the anchor that finds it. The authors' code and Detectron2 use the same value.
SCALE_CLAMP = math.log(1000.0 / 16)


class Box2BoxTransform:
    """Encodes a target box as ``(dx, dy, dw, dh)`` relative to a source box, such as an anchor.

    ``dx = wx (tx - sx) / sw``, ``dw = ww log(tw / sw)`` with centres ``tx, sx`` and widths ``tw, sw`` of target and
    source; likewise for y and h.
    """

    def __init__(self, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), scale_clamp: float = SCALE_CLAMP):
        """
        Args:
            weights: ``(wx, wy, ww, wh)``, multiply the encoded offsets.
            scale_clamp: largest decoded ``dw / ww`` and ``dh / wh``.
        """
        self.weights = tuple(weights)
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


@functools.cache
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Made once: to make a tensor of Python numbers waits for the device."""
    with torch.inference_mode(False):  # or training could not use one that inference made
        return torch.tensor(values, dtype=dtype, device=device)


def _sizes_and_centers(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wh = boxes[:, 2:] - boxes[:, :2]
    return wh, boxes[:, :2] + 0.5 * wh

"""Class-wise non-maximum suppression."""

import torch
import torchvision


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy NMS within each class.

    Args:
        boxes: ``(M, 4)``, xyxy in pixels; compared in float32, because the offsets that keep classes apart lose
            whole pixels in half precision.
        scores: ``(M,)``.
        classes: ``(M,)`` integers; boxes of different classes never suppress each other.
        iou_threshold: a box is dropped when its IoU with a kept box of its class exceeds this.

    Returns:
        Indices of the kept boxes, ``(P,)`` int64, by descending score.
    """
    return torchvision.ops.batched_nms(boxes.float(), scores, classes, iou_threshold)

"""Detections scaled to another image size, for the ``Instances`` of any engine."""

from collections.abc import Callable
from typing import Any

import torch


def scaled_detections(detections: Any, size: tuple[int, int], draw_masks: Callable) -> Any:
    """New ``Instances`` of another image size: boxes are scaled and clipped, and those without area removed.

    Args:
        detections: ``Instances`` of D detections with ``pred_boxes``, or proposals with ``proposal_boxes``, in pixels
            of ``detections.image_size``; optionally ``pred_masks`` ``(D, 1, S, S)``, probabilities within the box, and
            ``pred_keypoints`` ``(D, J, 3)``: x, y and score. Not changed.
        size: height and width in pixels.
        draw_masks: ``(masks (D, S, S), boxes (D, 4), size) -> pred_masks`` of the result.
    """
    factors = (size[1] / detections.image_size[1], size[0] / detections.image_size[0])
    field = "pred_boxes" if detections.has("pred_boxes") else "proposal_boxes"
    boxes = detections.get(field).clone()
    boxes.scale(*factors)
    boxes.clip(size)
    # One wait for the device: a bool index would wait in each field.
    kept = torch.nonzero(boxes.nonempty()).squeeze(1)
    scaled = type(detections)(size, **{**detections.get_fields(), field: boxes})[kept]
    if scaled.has("pred_keypoints"):
        x, y, score = scaled.pred_keypoints.unbind(dim=2)
        scaled.pred_keypoints = torch.stack([x * factors[0], y * factors[1], score], dim=2)
    if scaled.has("pred_masks"):
        scaled.pred_masks = draw_masks(scaled.pred_masks[:, 0], scaled.pred_boxes.tensor, size)
    return scaled

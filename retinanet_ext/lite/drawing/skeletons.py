"""Which keypoints are drawn, and which lines connect them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .drawing_colors import Color

KEYPOINT_THRESHOLD = 0.05
POINT_COLOR = (255, 0, 0)
# The rules of COCO's person join neither head nor hips to the shoulders. Middle lines do it, if these points exist.
SHOULDERS, HIPS, HEAD = ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"), "nose"
MIDDLE_LINE_COLOR = (255, 0, 0)

Line = tuple[np.ndarray, np.ndarray, Color]


def as_keypoint_array(keypoints: Any) -> np.ndarray:
    """x, y, and score or visibility from Keypoints, a tensor or an array: float (N, J, 3).

    Raises:
        ValueError: another shape.
    """
    keypoints = getattr(keypoints, "tensor", keypoints)
    if isinstance(keypoints, torch.Tensor):
        keypoints = keypoints.detach().cpu().float().numpy()
    keypoints = np.asarray(keypoints, dtype=float)
    if keypoints.ndim != 3 or keypoints.shape[2] != 3:
        raise ValueError(f"keypoints must have shape (N, number of keypoints, 3), found {keypoints.shape}")
    return keypoints


def is_drawn(keypoints: np.ndarray, threshold: float) -> np.ndarray:
    """Which keypoints (..., J, 3) are finite and score (or visibility) above the threshold: bool (..., J)."""
    return np.isfinite(keypoints).all(axis=-1) & (keypoints[..., 2] > threshold)


def skeleton_lines(
    keypoints: np.ndarray, drawn: np.ndarray, names: Sequence[str], rules: Sequence[Sequence]
) -> list[Line]:
    """The lines between drawn keypoints.

    Args:
        keypoints: (J, 3).
        drawn: (J,), bool.
        names: of the J keypoints; empty: no lines.
        rules: name, name, colour (RGB in 0 to 255) of each line.

    Raises:
        ValueError: names are given, but not J.
    """
    if not names:
        return []
    if len(names) != len(keypoints):
        raise ValueError(
            f"found {len(keypoints)} keypoints, but {len(names)} keypoint_names in the metadata; each keypoint needs "
            "one name"
        )
    found = {name: point[:2] for name, point, is_found in zip(names, keypoints, drawn, strict=True) if is_found}
    lines = [(found[a], found[b], tuple(color)) for a, b, color in rules if a in found and b in found]
    if rules and all(name in found for name in SHOULDERS):
        neck = (found[SHOULDERS[0]] + found[SHOULDERS[1]]) / 2
        if HEAD in found:
            lines.append((found[HEAD], neck, MIDDLE_LINE_COLOR))
        if all(name in found for name in HIPS):
            lines.append((neck, (found[HIPS[0]] + found[HIPS[1]]) / 2, MIDDLE_LINE_COLOR))
    return lines


def keypoints_of_annotations(annotations: Sequence[dict]) -> np.ndarray | None:
    """float (N, J, 3), invisible for annotations without keypoints; None if no annotation has any.

    Raises:
        ValueError: numbers of keypoints that differ.
    """
    found = {index: a["keypoints"] for index, a in enumerate(annotations) if a.get("keypoints") is not None}
    lengths = sorted({len(values) for values in found.values()})
    if len(lengths) > 1 or any(length % 3 for length in lengths):
        raise ValueError(f"keypoints have {lengths} numbers; each object needs x, y and visibility of all keypoints")
    if not lengths:
        return None
    keypoints = np.zeros((len(annotations), lengths[0] // 3, 3))
    for index, values in found.items():
        keypoints[index] = np.reshape(values, (-1, 3))
    return keypoints


def box_of_points(points: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The box (N, 4) around the drawn keypoints of each object, points (N, J, 3); NaN if there are none."""
    low = np.where(drawn[..., None], points[..., :2], np.inf).min(axis=1, initial=np.inf)
    high = np.where(drawn[..., None], points[..., :2], -np.inf).max(axis=1, initial=-np.inf)
    boxes = np.concatenate([low, high], axis=1)
    return np.where(np.isfinite(boxes), boxes, np.nan)

"""How many objects there are, and what part of the image each covers."""

from __future__ import annotations

import numpy as np
import torch

from ..structures import Boxes
from .mask_shapes import mask_box
from .skeletons import box_of_points, is_drawn


def as_box_array(boxes: Boxes | torch.Tensor | np.ndarray) -> np.ndarray:
    """float (N, 4) of N boxes."""
    if isinstance(boxes, Boxes):
        boxes = boxes.tensor
    if isinstance(boxes, torch.Tensor):
        boxes = boxes.detach().cpu().numpy()
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def common_count(counts: dict[str, int]) -> int:
    """The one number that all counts are; 0 without counts.

    Raises:
        ValueError: they differ.
    """
    if len(set(counts.values())) > 1:
        *first, last = (f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"found {', '.join(first)} and {last}: each object needs one of each")
    return next(iter(counts.values()), 0)


def object_extents(
    count: int,
    corners: np.ndarray | None,
    masks: list | None,
    points: np.ndarray | None,
    image_size: tuple[int, int],
    threshold: float,
) -> np.ndarray:
    """XYXY of `count` objects, (N, 4) in pixels of the image: of the box, else of the mask, else of the keypoints.

    Args:
        corners: boxes (N, 4).
        masks: N single masks.
        points: keypoints (N, J, 3).
        image_size: width and height.
        threshold: keypoints must score above it.

    Returns:
        NaN for objects that have none of the three.
    """
    extents = np.full((count, 4), np.nan)
    parts = [] if points is None else [box_of_points(points, is_drawn(points, threshold))]
    if masks is not None:
        parts.append(np.array([mask_box(mask, image_size) for mask in masks]).reshape(-1, 4))
    if corners is not None:
        parts.append(corners)
    for part in parts:
        known = np.isfinite(part).all(axis=1)
        extents[known] = part[known]
    return extents

"""One mask of any form, as the part of the picture that it covers.

Masks are decoded one at a time, and only the rectangle of a mask is kept, so that many masks of a large image fit into
memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as mask_util

from retinanet_ext.ops.coco_rle import compress_rle, decode_rle

from ..structures.masks import MIN_POLYGON_COORDINATES
from .label_placing import Rectangle

# OpenCV takes coordinates as integers in units of 1/16 pixel.
SHIFT = 4


@dataclass
class MaskShape:
    """What one mask covers of the picture."""

    rectangle: Rectangle
    """The part of the picture that `coverage` describes."""
    coverage: np.ndarray
    """uint8 (h, w): 255 where the mask hides a pixel wholly."""
    outlines: list[np.ndarray]
    """Closed lines, float (P, 2): x, y in continuous pixels of the picture."""


def as_mask_list(masks: Any) -> list:
    """A list of single masks from any container of N masks.

    Args:
        masks: BitMasks, PolygonMasks, EncodedMasks, a bool tensor or array (N, H, W), or a list of single masks: arrays
            or tensors (H, W), COCO RLE dicts, lists of polygons, or None for an object without a mask.
    """
    for name in ("rles", "polygons"):
        if hasattr(masks, name):
            return list(getattr(masks, name))
    masks = getattr(masks, "tensor", masks)
    if isinstance(masks, (np.ndarray, torch.Tensor)) and masks.ndim != 3:
        raise ValueError(f"masks must have shape (N, height, width), found {tuple(masks.shape)}")
    return list(masks)


def mask_box(mask: Any, image_size: tuple[int, int]) -> np.ndarray:
    """x0, y0, x1, y1 of a single mask in pixels of the image, (4,); NaN for an empty or missing mask."""
    if isinstance(mask, dict):
        x, y, width, height = mask_util.toBbox(_compressed(mask, image_size))
    elif isinstance(mask, (np.ndarray, torch.Tensor)) and mask.ndim == 2:
        x, y, width, height = cv2.boundingRect(_as_bytes_of_zero_and_one(mask, image_size))
    else:
        points = np.concatenate([np.full((1, 2), np.nan), *_as_polygons(mask)])[1:]
        return np.concatenate([points.min(axis=0), points.max(axis=0)]) if len(points) else np.full(4, np.nan)
    return np.array([x, y, x + width, y + height], float) if width and height else np.full(4, np.nan)


def mask_shape(mask: Any, image_size: tuple[int, int], canvas_size: tuple[int, int]) -> MaskShape | None:
    """The part of a picture that a single mask covers; None if it covers nothing.

    Args:
        mask: bool array or tensor (H, W), a COCO RLE dict, or a list of polygons, each flat or (P, 2); or None.
        image_size: width and height of the image, in whose pixels the mask is.
        canvas_size: width and height of the picture.

    Raises:
        ValueError: a mask of another size than the image, or a polygon with fewer than three points.
    """
    scale = np.array(canvas_size) / image_size
    if isinstance(mask, dict):
        mask = decode_rle(_compressed(mask, image_size))
    if isinstance(mask, (np.ndarray, torch.Tensor)) and mask.ndim == 2:
        return _shape_of_bits(_as_bytes_of_zero_and_one(mask, image_size), scale, canvas_size)
    return polygon_shape([polygon * scale for polygon in _as_polygons(mask)], canvas_size)


def without_small_parts(mask: np.ndarray | torch.Tensor, image_size: tuple[int, int], least_area: float) -> np.ndarray:
    """The mask (H, W), bool, without 8-connected parts of fewer than `least_area` pixels."""
    bits = _as_bytes_of_zero_and_one(mask, image_size).copy()
    x, y, width, height = cv2.boundingRect(bits)
    if width and height:
        part = bits[y : y + height, x : x + width]
        _, labels, statistics, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(part), connectivity=8)
        part *= statistics[labels, cv2.CC_STAT_AREA] >= least_area
    return bits.view(bool)


def _as_bytes_of_zero_and_one(mask: np.ndarray | torch.Tensor, image_size: tuple[int, int]) -> np.ndarray:
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu().numpy()
    if mask.shape[::-1] != tuple(image_size):
        raise ValueError(
            f"a mask has shape {mask.shape}, and the image has (height, width) {tuple(image_size)[::-1]}; "
            "masks must have the size of the image"
        )
    return np.ascontiguousarray(mask).view(np.uint8) if mask.dtype == bool else (mask != 0).astype(np.uint8)


def _compressed(rle: dict, image_size: tuple[int, int]) -> dict:
    if list(rle["size"]) != list(image_size)[::-1]:
        raise ValueError(
            f"a mask in RLE has size {list(rle['size'])}, and the image has [height, width] {list(image_size)[::-1]}; "
            "masks must have the size of the image"
        )
    return compress_rle(rle)


def _as_polygons(mask: Any) -> list[np.ndarray]:
    polygons = [] if mask is None else [np.asarray(polygon, dtype=float).reshape(-1) for polygon in mask]
    for polygon in polygons:
        if len(polygon) < MIN_POLYGON_COORDINATES or len(polygon) % 2:
            raise ValueError(f"a polygon has {len(polygon)} numbers; it needs x and y of at least three points")
    return [polygon.reshape(-1, 2) for polygon in polygons if np.isfinite(polygon).all()]


def _shape_of_bits(bits: np.ndarray, scale: np.ndarray, canvas_size: tuple[int, int]) -> MaskShape | None:
    x, y, width, height = cv2.boundingRect(bits)
    if not width or not height:
        return None
    part = bits[y : y + height, x : x + width] * np.uint8(255)
    corners = np.array([[x, y], [x + width, y + height]]) * scale
    rectangle = _clipped(corners, canvas_size)
    if tuple(scale) != (1, 1):
        part = _resized(part, corners[0], scale, rectangle)
    contours, _ = cv2.findContours((part >= 128).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # Contours run through the centres of pixels.
    outlines = [contour[:, 0] + np.array(rectangle[:2]) + 0.5 for contour in contours]
    return MaskShape(rectangle, part, outlines)


def _resized(part: np.ndarray, corner: np.ndarray, scale: np.ndarray, rectangle: Rectangle) -> np.ndarray:
    """`part`, whose left upper corner is `corner` in the picture, resampled at the pixels of `rectangle`."""
    # Pixel centres lie at half-integers: centre c of `part` lies at corner + scale * (c + 0.5) in the picture.
    shift = corner + scale / 2 - np.array(rectangle[:2]) - 0.5
    matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
    size = (rectangle[2] - rectangle[0], rectangle[3] - rectangle[1])
    # Repeated border pixels would smear the mask; only the fraction of a pixel at the border needs them.
    return cv2.warpAffine(part, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def polygon_shape(polygons: list[np.ndarray], canvas_size: tuple[int, int]) -> MaskShape | None:
    """What polygons, (P, 2) each in pixels of the picture, cover together; None if they lie outside."""
    if not polygons:
        return None
    points = np.concatenate(polygons)
    corners = np.stack([points.min(axis=0), points.max(axis=0)])
    if (corners[1] <= 0).any() or (corners[0] >= canvas_size).any():
        return None
    rectangle = _clipped(corners, canvas_size)
    coverage = np.zeros((rectangle[3] - rectangle[1], rectangle[2] - rectangle[0]), np.uint8)
    for polygon in polygons:
        # One by one, because fillPoly takes the overlap of two polygons for a hole.
        cv2.fillPoly(coverage, [to_fixed_point(polygon, rectangle)], 255, cv2.LINE_AA, SHIFT)
    return MaskShape(rectangle, coverage, polygons)


def _clipped(corners: np.ndarray, canvas_size: tuple[int, int]) -> Rectangle:
    left, top = (max(math.floor(value), 0) for value in corners[0])
    right, bottom = (min(math.ceil(value), size) for value, size in zip(corners[1], canvas_size, strict=True))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def to_fixed_point(points: np.ndarray, rectangle: Rectangle) -> np.ndarray:
    """Continuous pixels (P, 2) of the picture as int32 coordinates (P, 2) of OpenCV in `rectangle`, times 16."""
    # OpenCV's coordinate 0 is the centre of the first pixel. Far points are clipped, because their product overflows.
    return np.round(np.clip(points - np.array(rectangle[:2]) - 0.5, -1e6, 1e6) * 2**SHIFT).astype(np.int32)

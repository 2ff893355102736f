"""What can be wrong with the mask of one annotation. These checks run only if the config trains masks.

Box-only runs use the cheaper check of polygons in ``annotation_faults.py``.
"""

import math
import numbers
from collections.abc import Sequence

import numpy as np

from .run_lengths import LEGAL, bounding_box, checked_runs

MIN_POLYGON_COORDINATES = 6  # x and y of a triangle
POLYGON = "malformed polygon"
NO_MASK = "object without a mask"
DIFFERS = "mask and box differ"  # a warning, not a fault
LEGAL_POLYGONS = f"lists of an even number of coordinates, at least {MIN_POLYGON_COORDINATES}, all finite numbers"
# A side of the box may be this far from the side of the mask's box: pixels, or this part of the side of the box.
SIDE_TOLERANCE, SIDE_PART = 2.0, 0.1
MIN_INSIDE = 0.5  # part of the area of the mask's box that must lie in the box

Box = Sequence[float]


def mask_fault(annotation: dict, size: tuple[int, int] | None) -> tuple[str, str, str] | None:
    """The first fault of an annotation's mask: (kind, what was found, what is legal), or None.

    Args:
        annotation: with any value of `segmentation`, or none.
        size: (width, height) of the image; None if unknown.
    """
    segmentation = annotation.get("segmentation")
    if not has_mask(annotation):
        return NO_MASK, f"segmentation {segmentation!r}", "polygons or RLE for every object while MODEL.MASK_ON is True"
    if isinstance(segmentation, dict):
        return _encoded_fault(annotation, size)
    if not isinstance(segmentation, (list, tuple)):
        return POLYGON, f"a segmentation of type {type(segmentation).__name__}", LEGAL_POLYGONS
    bad = [(index, polygon) for index, polygon in enumerate(segmentation) if not is_good_polygon(polygon)]
    if bad:
        index, polygon = bad[0]
        found = f"{len(bad)} of {len(segmentation)} polygons, the first (index {index}) with {_polygon_text(polygon)}"
        return POLYGON, found, LEGAL_POLYGONS
    if all(map(_is_on_a_line, segmentation)) or (not _is_crowd(annotation) and mask_box(segmentation, size) is None):
        return "empty mask", "polygons that cover no area of the image", "a mask with at least one pixel"
    return None


def mask_box_fault(annotation: dict, box: Box, size: tuple[int, int] | None) -> tuple[str, str, str] | None:
    """Whether the mask disagrees with the box: a fault, the warning :data:`DIFFERS`, or None.

    Args:
        annotation: without a :func:`mask_fault`.
        box: of the annotation, ``(x0, y0, x1, y1)`` in pixels.
        size: (width, height) of the image; None if unknown.
    """
    if _is_crowd(annotation):
        return None
    found = mask_box(annotation["segmentation"], size)
    if size is not None:
        box = [max(box[0], 0), max(box[1], 0), min(box[2], size[0]), min(box[3], size[1])]
    x = max(SIDE_TOLERANCE, SIDE_PART * (box[2] - box[0]))
    y = max(SIDE_TOLERANCE, SIDE_PART * (box[3] - box[1]))
    if all(abs(a - b) <= t for a, b, t in zip(found, box, (x, y, x, y), strict=True)):
        return None
    text = f"a mask in {_box_text(found)}, a box {_box_text(box)}"
    # Both are widened, so that thin objects and roundings do not decide.
    width = min(found[2], box[2] + 1) - max(found[0], box[0] - 1)
    height = min(found[3], box[3] + 1) - max(found[1], box[1] - 1)
    inside = max(width, 0) * max(height, 0)
    if inside < MIN_INSIDE * (found[2] - found[0]) * (found[3] - found[1]):
        return "mask outside its box", text, f"at least {MIN_INSIDE:.0%} of the mask's bounding box inside the box"
    return DIFFERS, text, f"sides within {SIDE_TOLERANCE:g} pixels or {SIDE_PART:.0%} of the box"


def mask_box(segmentation: dict | Sequence, size: tuple[int, int] | None) -> Box | None:
    """``(x0, y0, x1, y1)`` around a well-formed mask, cut at the border of the image; None if the mask is empty."""
    if isinstance(segmentation, dict):
        return bounding_box(checked_runs(segmentation), segmentation["size"][0])
    x0 = min(min(polygon[0::2]) for polygon in segmentation)
    y0 = min(min(polygon[1::2]) for polygon in segmentation)
    x1 = max(max(polygon[0::2]) for polygon in segmentation)
    y1 = max(max(polygon[1::2]) for polygon in segmentation)
    if size is not None:
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, size[0]), min(y1, size[1])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def has_mask(annotation: dict) -> bool:
    """Whether an annotation says anything about a mask, right or wrong."""
    segmentation = annotation.get("segmentation")
    # An array has no truth value.
    return len(segmentation) > 0 if hasattr(segmentation, "__len__") else bool(segmentation)


def is_good_polygon(polygon: object) -> bool:
    """Whether a polygon is a flat list of at least three points, all coordinates finite numbers."""
    if isinstance(polygon, np.ndarray):
        polygon = polygon.tolist()
    if not isinstance(polygon, (list, tuple)) or len(polygon) < MIN_POLYGON_COORDINATES or len(polygon) % 2:
        return False
    # The types of a polygon are few, so the set is faster than a look at each coordinate.
    if not all(issubclass(kind, numbers.Real) and kind is not bool for kind in set(map(type, polygon))):
        return False
    try:
        return math.isfinite(math.fsum(polygon))
    except (OverflowError, ValueError):  # huge integers; both infinities
        return False


def _encoded_fault(annotation, size):
    mask = annotation["segmentation"]
    try:
        runs = checked_runs(mask)
    except ValueError as error:
        return "RLE that does not decode", str(error), LEGAL
    if size is not None and tuple(mask["size"]) != (size[1], size[0]):
        found = f"RLE of size [height, width] = {list(mask['size'])}"
        return "RLE of another size", found, f"[{size[1]}, {size[0]}], the size of the image"
    if not _is_crowd(annotation) and not runs[1::2].any():
        return "empty mask", "RLE without a pixel", "a mask with at least one pixel"
    return None


def _is_on_a_line(polygon):
    """Whether all points lie on one line. The area alone does not tell: that of a figure of eight may be zero."""
    xs, ys = polygon[0::2], polygon[1::2]
    x0, y0 = xs[0], ys[0]
    x1, y1 = next(((x, y) for x, y in zip(xs, ys, strict=True) if x != x0 or y != y0), (x0, y0))
    return all((x1 - x0) * (y - y0) == (y1 - y0) * (x - x0) for x, y in zip(xs, ys, strict=True))


def _is_crowd(annotation):
    return annotation.get("iscrowd", 0) in (1, "1")


def _polygon_text(polygon):
    if not isinstance(polygon, (list, tuple, np.ndarray)):
        return f"{polygon!r:.60}"
    odd = [v for v in polygon if not isinstance(v, numbers.Real) or isinstance(v, bool) or not math.isfinite(v)]
    return f"the coordinate {odd[0]!r:.60}" if odd else f"{len(polygon)} coordinates"


def _box_text(box):
    return f"[x0, y0, x1, y1] = [{', '.join(f'{v:g}' for v in box)}]"

"""Checks of a COCO file that a user names, before its numbers are used."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from retinanet_ext.data.doctor.run_lengths import checked_runs

# Section, key, types. Images may have names as ids.
_IDS = (
    ("images", "id", (int, str)),
    ("categories", "id", int),
    ("annotations", "image_id", (int, str)),
    ("annotations", "category_id", int),
)


def check_content(coco: Mapping[str, Any], source: Any) -> None:
    """Refuse what evaluation would stumble over.

    Args:
        coco: images, categories and annotations with their ids.
        source: of the content, for messages.

    Raises:
        ValueError: names the entry, what was found, and what is legal.
    """
    for section, key, legal in _IDS:
        for index, entry in enumerate(coco[section]):
            if not isinstance(entry[key], legal) or isinstance(entry[key], bool):
                raise ValueError(f"{source}: {section}[{index}] has the {key} {entry[key]!r}; legal: a whole number")
    for image in coco["images"]:
        for side in ("width", "height"):
            size = image.get(side)
            if not isinstance(size, int) or isinstance(size, bool) or not 0 < size < 2**31:
                raise ValueError(f"{source}: image {image['id']} has the {side} {size!r}; legal: a whole number from 1")
    for annotation in coco["annotations"]:
        _check_annotation(annotation, f"{source}: annotation {annotation['id']}")


def _check_annotation(annotation, where):
    box = annotation.get("bbox")
    if not are_numbers(box, 4):
        raise ValueError(f"{where} needs a bbox [x, y, width, height] of finite numbers; found {box!r}")
    if annotation.get("iscrowd", 0) not in (0, 1):
        raise ValueError(f"{where}: iscrowd is {annotation['iscrowd']!r}; legal: 0 or 1")
    if annotation.get("area") is not None and not are_numbers([annotation["area"]], 1):
        raise ValueError(f"{where}: area is {annotation['area']!r}; legal: a number of pixels")
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        check_mask(segmentation, where)
    elif segmentation and not (isinstance(segmentation, list) and all(map(_is_polygon, segmentation))):
        raise ValueError(f"{where} has a malformed segmentation; legal: RLE, or polygons [[x, y, x, y, ...], ...]")
    keypoints = annotation.get("keypoints")
    if keypoints and not are_keypoints(keypoints):
        raise ValueError(f"{where} has malformed keypoints; legal: 3 numbers for each, [x, y, visibility, ...]")


def check_mask(rle: Mapping[str, Any], where: str) -> None:
    """Refuse an RLE that does not decode.

    Raises:
        ValueError: starts with `where`.
    """
    try:
        checked_runs(rle)
    except ValueError as error:
        raise ValueError(f"{where} has a mask that does not decode: {error}") from error


def _is_polygon(polygon):
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return False
    return are_numbers(polygon, len(polygon))


def are_keypoints(values: Any) -> bool:
    """Whether `values` is a list of three finite numbers for each keypoint."""
    return isinstance(values, list) and len(values) % 3 == 0 and are_numbers(values, len(values))


def are_numbers(values: Any, count: int) -> bool:
    """Whether `values` is a list of `count` finite numbers."""
    return (
        isinstance(values, (list, tuple))
        and len(values) == count
        and all(isinstance(v, numbers.Real) and not isinstance(v, bool) and _is_finite(v) for v in values)
    )


def _is_finite(value):
    try:
        return math.isfinite(value)
    except OverflowError:  # a huge whole number
        return False

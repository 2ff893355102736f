"""What can be wrong with the keypoints of one annotation, and how they are repaired.

Keypoints are ``[x, y, visibility] * J``. Visibility: 0 not labelled, 1 labelled but hidden, 2 visible. Records hold x
and y in pixels from the edge of the image: those of a COCO file plus 0.5. These checks run only if the config trains
keypoints.
"""

import math
import numbers

import numpy as np

from retinanet_ext.ops.coco_keypoints import num_labelled

KEYPOINT_TOLERANCE = 1.0  # pixels, as for boxes
WRONG_LENGTH = "keypoints of the wrong length"
VISIBILITY = "visibility of a keypoint is not 0, 1 or 2"
NOT_FINITE = "keypoint is not a finite number"
OUTSIDE_IMAGE = "labelled keypoint outside the image"
WRONG_COUNT = "num_keypoints disagrees with the keypoints"
KEYPOINT_FAULTS = (WRONG_LENGTH, VISIBILITY, NOT_FINITE, OUTSIDE_IMAGE, WRONG_COUNT)


def keypoint_fault(
    annotation: dict, size: tuple[int, int] | None, num_keypoints: int
) -> tuple[str, str, str] | None:
    """The first fault: (kind, what was found, what is legal), or None. An object may have no keypoints.

    Args:
        annotation: of a record.
        size: (width, height) of the image; None if unknown.
        num_keypoints: J.
    """
    keypoints = flat_keypoints(annotation)
    if not keypoints:
        count = annotation.get("num_keypoints", 0)
        return (WRONG_COUNT, f"num_keypoints {count!r} without keypoints", "0, or keypoints") if count else None
    if not _is_complete(keypoints, num_keypoints):
        found = f"{len(keypoints)} numbers" if isinstance(keypoints, (list, tuple)) else f"{keypoints!r:.60}"
        return WRONG_LENGTH, found, f"{3 * num_keypoints} numbers: x, y and visibility of {num_keypoints} keypoints"
    for index in range(num_keypoints):
        fault = _point_fault(keypoints[3 * index : 3 * index + 3], size)
        if fault is not None:
            return fault[0], f"{fault[1]} of keypoint {index}", fault[2]
    labelled = num_labelled(keypoints)
    if annotation.get("num_keypoints", labelled) != labelled:
        found = f"num_keypoints {annotation['num_keypoints']!r}"
        return WRONG_COUNT, found, f"{labelled}, the number of labelled keypoints"
    return None


def repaired_keypoints(annotation: dict, size: tuple[int, int] | None, num_keypoints: int) -> dict:
    """A copy of the annotation whose faulty keypoints are not labelled; all of them, if their number is wrong.

    Arguments as for :func:`keypoint_fault`.
    """
    keypoints = flat_keypoints(annotation)
    if _is_complete(keypoints, num_keypoints):
        points = [list(keypoints[i : i + 3]) for i in range(0, len(keypoints), 3)]
        fixed = [value for point in points for value in (point if _point_fault(point, size) is None else (0, 0, 0))]
    else:
        fixed = unlabelled(num_keypoints)
    new = {**annotation, "keypoints": fixed}
    if "num_keypoints" in annotation:
        new["num_keypoints"] = num_labelled(fixed)
    return new


def with_keypoints(record: dict, num_keypoints: int) -> dict:
    """A copy of the record in which each object has keypoints, not labelled where it had none; the record itself if
    nothing is missing. Mappers need the same number of keypoints for all objects of an image."""
    annotations = record.get("annotations", ())
    lacking = [not a.get("iscrowd", 0) and not flat_keypoints(a) for a in annotations]
    if not any(lacking):
        return record
    empty = {"keypoints": unlabelled(num_keypoints)}
    filled = [{**a, **empty} if lacks else a for a, lacks in zip(annotations, lacking, strict=True)]
    return {**record, "annotations": filled}


def flat_keypoints(annotation: dict) -> object:
    """The keypoints of an annotation; an array of any shape becomes a flat list."""
    keypoints = annotation.get("keypoints")
    return keypoints.reshape(-1).tolist() if isinstance(keypoints, np.ndarray) else keypoints


def unlabelled(num_keypoints: int) -> list[float]:
    """Keypoints that are not labelled, as an annotation holds them."""
    return [0.0] * (3 * num_keypoints)


def _is_complete(keypoints, num_keypoints):
    return isinstance(keypoints, (list, tuple)) and len(keypoints) == 3 * num_keypoints


def _point_fault(point, size):
    x, y, visibility = point
    if not (_is_number(visibility) and visibility in (0, 1, 2)):
        return VISIBILITY, f"visibility {visibility!r:.60}", "0 (not labelled), 1 (hidden) or 2 (visible)"
    if not (_is_number(x) and _is_number(y)):
        return NOT_FINITE, f"x, y = {x!r:.60}, {y!r:.60}", "finite numbers"
    if visibility and size is not None and max(-x, -y, x - size[0], y - size[1]) > KEYPOINT_TOLERANCE:
        found = f"x, y = {x:g}, {y:g} (from the edge of the image; 0.5 more than in a COCO file)"
        return OUTSIDE_IMAGE, found, f"inside {size[0]}x{size[1]}, or visibility 0"
    return None


def _is_number(value):
    # The types of nearly all values, because the test for a number of any type takes several times as long.
    if type(value) not in (int, float) and (not isinstance(value, numbers.Real) or isinstance(value, bool)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False

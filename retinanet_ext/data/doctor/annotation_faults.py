"""What can be wrong with one annotation of a record, and how it is repaired.

Records are Detectron2's dataset dicts. A reader that finds a fault which a record cannot express (a line that is not a
box) sets the annotation's key `fault`, a tuple as in :data:`Fault`.
"""

import math
import numbers
from collections.abc import Sequence

import numpy as np

from retinanet_ext.d2 import BoxMode

from .keypoint_faults import KEYPOINT_FAULTS, keypoint_fault, repaired_keypoints
from .mask_faults import DIFFERS, MIN_POLYGON_COORDINATES, POLYGON, is_good_polygon, mask_box_fault, mask_fault
from .tasks import BOXES, Tasks

BOX_MODES = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
# Pixels. Rounding and the VOC offset move boxes by up to a pixel, which is not a mistake.
BOX_TOLERANCE = 1.0
OUTSIDE = "box outside the image"
CROWD_FLAG = "iscrowd is not 0 or 1"
# Kinds that are logged, and otherwise left as they are.
WARNINGS = (DIFFERS,)
IDENTITY = "identity is not an integer or a text"
_CROWD_FLAGS = {None: 0, "0": 0, "1": 1}

Fault = tuple[str, str, str]
"""Kind, what was found, what is legal."""


def annotation_fault(
    annotation: dict,
    size: tuple[int, int] | None,
    num_classes: int,
    class_names: Sequence[str] | None,
    tasks: Tasks = BOXES,
) -> Fault | None:
    """The first fault of an annotation, or None. Kinds in :data:`WARNINGS` come last.

    Args:
        annotation: its `bbox_mode` is one of :data:`BOX_MODES`.
        size: (width, height) of the image; None if unknown.
        num_classes: legal category ids are 0 to `num_classes` - 1.
        class_names: for the message.
        tasks: masks, keypoints and identities are examined only if they are trained.
    """
    fault = (
        annotation.get("fault")
        or _category_fault(annotation, num_classes, class_names)
        or _box_fault(annotation, size)
        or _crowd_fault(annotation)
        or (mask_fault(annotation, size) if tasks.masks else _polygon_fault(annotation))
    )
    if fault is None and tasks.num_keypoints:
        fault = keypoint_fault(annotation, size, tasks.num_keypoints)
    if fault is None and tasks.identities:
        fault = _identity_fault(annotation)
    if fault is None and tasks.masks:
        fault = mask_box_fault(annotation, _xyxy(annotation), size)
    return fault


def repaired_annotation(
    annotation: dict, size: tuple[int, int] | None, num_classes: int, clip: bool, tasks: Tasks = BOXES
) -> dict | None:
    """A copy without faults, or None if that is not possible.

    An `iscrowd` of null, "0" or "1" becomes a number, malformed polygons are removed, faulty keypoints are marked as
    not labelled, a faulty identity becomes unknown, and with `clip` a box is cut at the border of the image. Arguments
    as for :func:`annotation_fault`.
    """
    annotation = dict(annotation)
    while (fault := annotation_fault(annotation, size, num_classes, None, tasks)) is not None:
        kind = fault[0]
        if kind in WARNINGS:
            break
        if kind == OUTSIDE and clip:
            annotation["bbox"], annotation["bbox_mode"] = _clipped(annotation, size), BoxMode.XYXY_ABS
        elif kind == CROWD_FLAG and isinstance(annotation["iscrowd"], (str, type(None))):
            flag = _CROWD_FLAGS.get(annotation["iscrowd"])
            if flag is None:
                return None
            annotation["iscrowd"] = flag
        elif kind == POLYGON:
            _keep_good_polygons(annotation, is_good_polygon if tasks.masks else _is_polygon)
        elif kind == IDENTITY:
            del annotation["identity"]
        elif kind in KEYPOINT_FAULTS:
            annotation = repaired_keypoints(annotation, size, tasks.num_keypoints)
        else:
            return None
    return annotation


def _category_fault(annotation, num_classes, class_names):
    category = annotation.get("category_id")
    if isinstance(category, numbers.Integral) and not isinstance(category, bool) and 0 <= category < num_classes:
        return None
    name = annotation.get("category_name")
    found = f"category_id {category!r}" + (f" ({name})" if name is not None else "")
    names = f" ({', '.join(class_names)})" if class_names else ""
    return "unknown category", found, f"0 to {num_classes - 1}{names}"


def _box_fault(annotation, size):
    box = annotation.get("bbox")
    try:
        finite = len(box) == 4 and all(math.isfinite(v) for v in box)
    except TypeError:
        finite = False
    if not finite:
        return "box is not four finite numbers", repr(box), "four finite numbers"
    x0, y0, x1, y1 = _xyxy(annotation)
    kind, legal = None, "x0 < x1 and y0 < y1"
    if x1 < x0 or y1 < y0:
        kind = "inverted box"
    elif x1 == x0 or y1 == y0:
        kind = "box without area"
    elif size is not None and max(-x0, -y0, x1 - size[0], y1 - size[1]) > BOX_TOLERANCE:
        kind = OUTSIDE
        legal = f"inside 0, 0, {size[0]}, {size[1]} (up to {BOX_TOLERANCE:g} pixel of tolerance)"
    # The text is made only for boxes with a fault, because it costs more than the check.
    return kind and (kind, f"[x0, y0, x1, y1] = [{x0:g}, {y0:g}, {x1:g}, {y1:g}]", legal)


def _xyxy(annotation):
    # BoxMode.convert would make a tensor per box, which would take most of the time of a check.
    x0, y0, x1, y1 = map(float, annotation["bbox"])
    if annotation["bbox_mode"] == BoxMode.XYWH_ABS:
        x1, y1 = x0 + x1, y0 + y1
    return x0, y0, x1, y1


def _clipped(annotation, size):
    """The box cut at the border of the image, in XYXY; its sides may be zero or negative."""
    x0, y0, x1, y1 = _xyxy(annotation)
    return [max(x0, 0.0), max(y0, 0.0), min(x1, float(size[0])), min(y1, float(size[1]))]


def _crowd_fault(annotation):
    flag = annotation.get("iscrowd", 0)
    if flag in (0, 1):
        return None
    # Engines compare it with the number 0, so that an object with any other value is silently not trained on.
    return CROWD_FLAG, f"iscrowd {flag!r}", "0 or 1, as numbers"


def _identity_fault(annotation):
    identity = annotation.get("identity")
    is_integer = isinstance(identity, numbers.Integral) and not isinstance(identity, bool)
    if identity is None or is_integer or (isinstance(identity, str) and identity):
        return None
    return IDENTITY, f"identity {identity!r}", "an integer, a text, or null for an unknown identity"


def _polygon_fault(annotation):
    segmentation = annotation.get("segmentation")
    # An array has no truth value.
    if not isinstance(segmentation, np.ndarray) and not segmentation:
        return None
    if isinstance(segmentation, dict):
        missing = [key for key in ("size", "counts") if key not in segmentation]
        return (POLYGON, f"a mask without {', '.join(missing)}", "a mask with size and counts") if missing else None
    legal = f"lists of an even number of coordinates, at least {MIN_POLYGON_COORDINATES}"
    if not isinstance(segmentation, (list, tuple)):
        return POLYGON, f"a segmentation of type {type(segmentation).__name__}", legal
    bad = [polygon for polygon in segmentation if not _is_polygon(polygon)]
    if not bad:
        return None
    found = f"{len(bad[0])} coordinates" if hasattr(bad[0], "__len__") else repr(bad[0])
    return POLYGON, f"{len(bad)} of {len(segmentation)} polygons, the first with {found}", legal


def _is_polygon(polygon):
    # The coordinates themselves are not examined: that would take most of the time of a check.
    sized = hasattr(polygon, "__len__") and not isinstance(polygon, (str, dict))
    return sized and len(polygon) >= MIN_POLYGON_COORDINATES and len(polygon) % 2 == 0


def _keep_good_polygons(annotation, is_good):
    segmentation = annotation.pop("segmentation")
    good = [p for p in segmentation if is_good(p)] if isinstance(segmentation, (list, tuple)) else []
    if good:
        annotation["segmentation"] = good

"""What a repaired copy changes in each record: images left out, sizes, annotations. Nothing is written here."""

from dataclasses import dataclass, field

from retinanet_ext.d2 import BoxMode
from retinanet_ext.data.doctor.annotation_faults import BOX_TOLERANCE

from .record_findings import CheckedRecords, box_of

DUPLICATE = "same box and class as an earlier annotation of the image"


@dataclass
class RecordPlan:
    """Of one record.

    ``left_out``: why it is not copied, or None. ``size``: (width, height) if the record gets another.
    ``annotations``: what stands in the place of each; None: nothing. ``changes``: (annotation or None, what is done,
    why).
    """

    left_out: str | None = None
    size: tuple[int, int] | None = None
    annotations: list[dict | None] = field(default_factory=list)
    changes: list[tuple[int | None, str, str]] = field(default_factory=list)


def plan_record(checked: CheckedRecords, index: int) -> RecordPlan:
    """What to change in the record with this index."""
    record, info, plan = checked.dataset.records[index], checked.infos[index], RecordPlan()
    annotations, stated = list(record.get("annotations", ())), checked.sizes[index]
    problem, size = checked.bad_images.get(index), stated
    if problem is not None:
        # Of the faults of an image, a size that is not its own can be corrected.
        if isinstance(info, Exception) or info.is_deep or stated is None or info.size == stated:
            plan.left_out = str(problem.found)
            plan.changes.append((None, "image left out", f"{problem.kind}: {problem.found}"))
            return plan
        size = plan.size = info.size
        why = f"{problem.kind}: {stated[0]}x{stated[1]}"
        plan.changes.append((None, f"size of the record set to {size[0]}x{size[1]}", why))
        annotations = _turned_if_needed(annotations, stated, checked.orientations[index], plan)
    elif size is not None and "width" not in record:
        plan.size = size
        plan.changes.append((None, f"size of the record set to {size[0]}x{size[1]}", "it had none that is legal"))
    _plan_annotations(plan, checked, index, annotations, size)
    return plan


def turned_point(x: float, y: float, size: tuple[int, int], orientation: int) -> tuple[float, float]:
    """Where a point of the picture before its EXIF rotation is after it.

    Args:
        x, y: in pixels from the edges.
        size: (width, height) before the rotation.
        orientation: of EXIF, one of the quarter turns 5 to 8.
    """
    width, height = size
    return {5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x)}[orientation]


def _plan_annotations(plan, checked, index, annotations, size):
    bad, repeated = checked.bad_annotations.get(index, {}), checked.repeated.get(index, ())
    for place, annotation in enumerate(annotations):
        if place in repeated:
            plan.annotations.append(None)
            plan.changes.append((place, "annotation left out", DUPLICATE))
            continue
        new = checked.repair(annotation, size)
        plan.annotations.append(new)
        if new == annotation:
            continue
        why = f"{bad[place].kind}: {bad[place].found}" if place in bad else "it does not fit the image, or its mask"
        if new is None:
            plan.changes.append((place, "annotation left out", why))
        elif new["bbox"] != annotation["bbox"]:
            text = ", ".join(f"{value:g}" for value in new["bbox"])
            plan.changes.append((place, f"box cut at the border of the image, to [x0, y0, x1, y1] = [{text}]", why))
        else:
            keys = [key for key in annotation if annotation[key] != new.get(key)]
            plan.changes.append((place, f"repaired {', '.join(keys)}", why))


def _turned_if_needed(annotations, stated, orientation, plan):
    """Turn boxes that lie in the picture before its EXIF rotation. If they fit both, they stay as they are."""
    if orientation < 5 or plan.size != stated[::-1]:
        return annotations
    boxes = [box for annotation in annotations if (box := box_of(annotation))]
    if all(_is_inside(box, plan.size) for box in boxes):
        if boxes:
            plan.changes.append((None, "boxes left as they are", "they fit the picture after its EXIF rotation"))
        return annotations
    if not all(_is_inside(box, stated) for box in boxes):
        return annotations
    plan.changes.append((None, "boxes turned", "they fit only the picture before its EXIF rotation"))
    return [_turned(annotation, stated, orientation) for annotation in annotations]


def _is_inside(box, size):
    return max(-box[0], -box[1], box[2] - size[0], box[3] - size[1]) <= BOX_TOLERANCE


def _turned(annotation, size, orientation):
    box = box_of(annotation)
    if box is None:
        return annotation
    (xa, ya), (xb, yb) = (turned_point(*corner, size, orientation) for corner in (box[:2], box[2:]))
    new = {**annotation, "bbox": [min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)], "bbox_mode": BoxMode.XYXY_ABS}
    segmentation = new.pop("segmentation", None)
    if isinstance(segmentation, list):  # encoded masks are left out
        new["segmentation"] = [_turned_polygon(polygon, size, orientation) for polygon in segmentation]
    points = new.get("keypoints")
    if isinstance(points, list) and len(points) % 3 == 0:
        triples = [points[i : i + 3] for i in range(0, len(points), 3)]
        new["keypoints"] = [v for x, y, seen in triples for v in (*turned_point(x, y, size, orientation), seen)]
    return new


def _turned_polygon(polygon, size, orientation):
    if not isinstance(polygon, list) or len(polygon) % 2:
        return polygon
    return [v for x, y in zip(polygon[0::2], polygon[1::2]) for v in turned_point(x, y, size, orientation)]

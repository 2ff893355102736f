"""The COCO file that an evaluator reads, without what the checks left out."""

import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from retinanet_ext.d2 import BoxMode
from retinanet_ext.ops.coco_keypoints import num_labelled

Change = tuple[Any, dict, dict | None]
"""Image id, annotation of a record, and what replaces it (None: nothing)."""


def checked_content(
    content: dict,
    image_ids: Collection,
    changes: Sequence[Change],
    contiguous: Mapping[int, int],
    num_keypoints: int = 0,
) -> dict | None:
    """Return the content of a COCO file as the checks left it, or None if that is the content itself.

    Annotations without `area` get that of their box and those without `iscrowd` become single objects, because
    pycocotools needs both. With keypoints, it needs `keypoints` and `num_keypoints` too. The file of a test
    set, without annotations, has only images to leave out.

    Args:
        content: images and, except for test sets, annotations; not changed.
        image_ids: the ids of the images to evaluate.
        changes: annotations that were dropped or repaired.
        contiguous: category id -> class id.
        num_keypoints: J if keypoints are evaluated.
    """
    images = [image for image in content["images"] if image["id"] in image_ids]
    if "annotations" not in content:
        return {**content, "images": images} if len(images) < len(content["images"]) else None
    replaced = {_key(image_id, old): new for image_id, old, new in changes}
    annotations = []
    for annotation in content["annotations"]:
        if annotation["image_id"] not in image_ids:
            continue
        key = _key(annotation["image_id"], annotation, contiguous.get(annotation["category_id"]))
        # The records of some readers have no annotation ids.
        found = key if key in replaced else key[1:]
        new = annotation if found not in replaced else repaired_entry(annotation, replaced[found])
        if new is not None:
            annotations.append(_completed(new, num_keypoints))
    same = len(annotations) == len(content["annotations"]) and all(
        new is old for new, old in zip(annotations, content["annotations"], strict=True)
    )
    return None if same and len(images) == len(content["images"]) else {
        **content, "images": images, "annotations": annotations
    }  # fmt: skip


def _key(image_id, annotation, class_id=None):
    """What identifies an annotation in the file and in a record: its id, if the record has it, and its content."""
    class_id = annotation["category_id"] if class_id is None else class_id
    content = (image_id, class_id, repr(annotation.get("bbox")), repr(annotation.get("iscrowd", 0)))
    return (annotation["id"], *content) if "id" in annotation else content


def repaired_entry(annotation: dict, record: dict | None) -> dict | None:
    """The entry of a COCO file, changed as the annotation of its record was.

    Args:
        annotation: the entry; not changed.
        record: the annotation of a record that replaces the one made of the entry; None: nothing does.
    """
    if record is None:
        return None
    new = dict(annotation)
    if "iscrowd" in record:
        new["iscrowd"] = record["iscrowd"]
    # Encoded masks are never repaired, and those of a record hold bytes, which JSON does not.
    if "segmentation" in new and not isinstance(record.get("segmentation"), dict):
        new["segmentation"] = record.get("segmentation", [])
    # Keypoints that are not trained were not examined, and may be anything.
    if "keypoints" in new and _are_keypoints(record.get("keypoints")):
        new["keypoints"] = _as_in_the_file(record["keypoints"])
        new["num_keypoints"] = num_labelled(new["keypoints"])
    if record["bbox_mode"] == BoxMode.XYXY_ABS:  # the box was clipped; before, it was XYWH
        x0, y0, x1, y1 = record["bbox"]
        new["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        if "area" in new:
            # An area that is null is that of the box.
            new["area"] = min(new["area"] if new["area"] is not None else math.inf, new["bbox"][2] * new["bbox"][3])
    return new


def _are_keypoints(value):
    """Whether a value is a list of numbers, three for each keypoint."""
    is_list = isinstance(value, (list, tuple)) and len(value) > 0 and len(value) % 3 == 0
    return is_list and all(isinstance(number, numbers.Real) for number in value)


def _as_in_the_file(keypoints):
    """Pixel indices, which are 0.5 less than the coordinates of a record; 0, 0 for keypoints that are not labelled."""
    points = [keypoints[i : i + 3] for i in range(0, len(keypoints), 3)]
    return [value for x, y, v in points for value in ((x - 0.5, y - 0.5, v) if v else (0, 0, 0))]


def _completed(annotation, num_keypoints):
    if num_keypoints and annotation.get("num_keypoints") is None:
        keypoints = annotation.get("keypoints") or [0] * (3 * num_keypoints)
        annotation = {**annotation, "keypoints": keypoints, "num_keypoints": num_labelled(keypoints)}
    if ("area" in annotation and "iscrowd" in annotation) or not annotation.get("bbox"):
        return annotation
    return {"iscrowd": 0, "area": annotation["bbox"][2] * annotation["bbox"][3], **annotation}

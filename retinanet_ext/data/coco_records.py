"""Dataset records of a COCO annotation file that lose nothing of it, so that the checks see every fault."""

import math
import os
from collections import defaultdict
from collections.abc import Mapping

from retinanet_ext.d2 import BoxMode
from retinanet_ext.ops.coco_rle import compress_rle

from .doctor.run_lengths import checked_runs

AREA = "area is not a number"


def coco_records(
    content: dict, image_root: str, contiguous: Mapping[int, int], category_names: Mapping[int, str]
) -> list[dict]:
    """Turn the content of a COCO file into records, one for each image, in the order of the image ids.

    The engines' own readers leave out an annotation if its polygons are malformed, and stop at some other faults. Here
    these annotations stay, for the policies of the config to decide.

    Args:
        content: images, annotations and categories, as :func:`.coco_file.read_coco_file` returns them.
        image_root: the folder that the file names are relative to.
        contiguous: category id -> class id. An annotation of another category gets category_id -1.
        category_names: category id -> name, for messages.

    Returns:
        Records with file_name, height, width, image_id, annotations. Each annotation has id, category_id,
        category_name, bbox ``[x, y, width, height]`` in pixels and bbox_mode, and if the file has them iscrowd,
        segmentation, keypoints, num_keypoints and identity. Masks and keypoints that cannot be converted stay as they
        are. Half a pixel is added to the x and y of keypoints: COCO counts pixels, while records measure from the edge
        of the image.
    """
    grouped = defaultdict(list)
    for annotation in content["annotations"]:
        grouped[annotation["image_id"]].append(_converted(annotation, contiguous, category_names))
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": grouped[image["id"]],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]


def _converted(annotation, contiguous, category_names):
    category = annotation["category_id"]
    new = {key: annotation[key] for key in ("id", "iscrowd", "num_keypoints") if key in annotation}
    new["bbox"] = annotation.get("bbox")
    new["bbox_mode"] = BoxMode.XYWH_ABS
    new["category_id"] = contiguous.get(category, -1)
    new["category_name"] = category_names.get(category, f"category id {category}")
    if annotation.get("segmentation"):
        new["segmentation"] = _compressed(annotation["segmentation"])
    if annotation.get("keypoints"):
        new["keypoints"] = _from_the_edge(annotation["keypoints"])
    if annotation.get("identity") is not None:
        new["identity"] = annotation["identity"]
    if not _is_area(annotation.get("area")):
        new["fault"] = (AREA, f"area {annotation['area']!r:.80}", "a number from 0, or no area: then that of the box")
    if annotation.get("ignore"):
        new["fault"] = ("flag that is not supported", f"ignore {annotation['ignore']!r}", "iscrowd, or no flag")
    return new


def _is_area(value):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (is_number and 0 <= value < math.inf)


def _compressed(segmentation):
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), list):
        return segmentation
    try:
        checked_runs(segmentation)
    except ValueError:
        return segmentation
    return compress_rle(segmentation)


def _from_the_edge(keypoints):
    try:
        return [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(keypoints)]
    except TypeError:
        return keypoints

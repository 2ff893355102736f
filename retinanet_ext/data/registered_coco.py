"""Records of COCO files that `register_coco_instances` registered, with the faults of the file.

The readers of the engines leave out malformed polygons, convert run-length encoded masks without a check, keep no
annotation ids, and stop at some faults with an error that names none. So runs with masks or keypoints read such files
here. The box-only runs keep the reader of the engine.
"""

import logging
import os
from collections import Counter

from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog

from .coco_file import coco_summary, read_coco_file, sample
from .coco_records import coco_records
from .keypoint_metadata import keypoint_metadata

# The function that both engines register, also for their built-in names.
_REGISTERED_BY = "register_coco_instances.<locals>.<lambda>"
logger = logging.getLogger(__name__)


def is_registered_coco(name: str) -> bool:
    """Whether the dataset is a local COCO file that `register_coco_instances` of the engine registered."""
    function = DatasetCatalog.data.get(name)
    metadata = MetadataCatalog.get(name)
    return (
        getattr(function, "__qualname__", "") == _REGISTERED_BY
        and os.path.isfile(metadata.get("json_file", None) or "")
        and metadata.get("image_root", None) is not None
    )


def set_registered_classes(name: str) -> None:
    """Set the class names of a dataset for which :func:`is_registered_coco` holds, without reading its records."""
    metadata = MetadataCatalog.get(name)
    _set_categories(metadata, coco_summary(metadata.json_file, ["images", "categories"]).categories)


def registered_coco_records(name: str) -> list[dict]:
    """Records as of :func:`.coco_records.coco_records`; sets the class names of the dataset as the engine does.

    Raises:
        ValueError: not a COCO file.
    """
    metadata = MetadataCatalog.get(name)
    content = {"annotations": [], "categories": [], **read_coco_file(metadata.json_file, ["images"])}
    categories = _set_categories(metadata, content["categories"])
    contiguous = metadata.thing_dataset_id_to_contiguous_id
    images = Counter(image["id"] for image in content["images"])
    stray = [a["id"] for a in content["annotations"] if a["image_id"] not in images]
    if stray:
        logger.warning(
            "%s: %d of %d annotations belong to no image in the file: %s",
            metadata.json_file, len(stray), len(content["annotations"]), sample(stray),
        )  # fmt: skip
    return coco_records(content, metadata.image_root, contiguous, categories)


def _set_categories(metadata, categories):
    """Set what the readers of the engines set, where it is missing. Return {category id: name}."""
    names = {c["id"]: c["name"] for c in sorted(categories, key=lambda c: c["id"])}
    if metadata.get("thing_dataset_id_to_contiguous_id", None) is None:
        metadata.set(thing_dataset_id_to_contiguous_id={category: index for index, category in enumerate(names)})
    if metadata.get("thing_classes", None) is None:
        metadata.set(thing_classes=list(names.values()))
    _set_keypoints(metadata, categories)
    return names


def _set_keypoints(metadata, categories):
    """Set what the file says of keypoints, where it is missing: the mapper needs the mirror pairs."""
    found, known = keypoint_metadata({"NAME": metadata.name}, categories), metadata.get("keypoint_names", None)
    if known is not None and tuple(known) != found.get("keypoint_names"):
        return
    for key, value in found.items():
        if metadata.get(key, None) is None:
            metadata.set(**{key: value})

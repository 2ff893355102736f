"""Read COCO annotation files into dataset records."""

import logging
import os
from collections.abc import Iterable
from typing import Any

from retinanet_ext.data.coco_file import read_coco_file, sample
from retinanet_ext.ops.coco_rle import compress_rle

from ..structures import BoxMode
from ..structures.masks import MIN_POLYGON_COORDINATES
from .catalog import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)


def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Iterable[str] | None = None,
) -> list[dict]:
    """Read an instance or keypoint annotation file.

    Args:
        json_file: the annotation file.
        image_root: folder of the images; the file names in ``json_file`` are relative to it.
        dataset_name: if given, categories are renumbered 0..K-1 in the order of their ids, and ``thing_classes``
            and ``thing_dataset_id_to_contiguous_id`` are set in the metadata of that name. Otherwise
            ``category_id`` stays as it is in the file.
        extra_annotation_keys: further keys to copy from each annotation.

    Returns:
        One dict per image, ordered by image id: ``file_name``, ``height`` and ``width`` (pixels), ``image_id``,
        and ``annotations``, a list of dicts with ``bbox`` ``[x, y, width, height]`` in pixels, ``bbox_mode``,
        ``category_id``, and if the file has them ``iscrowd``, ``segmentation`` (polygons, or compressed RLE) and
        ``keypoints`` (``[x, y, visibility] * n``; half a pixel is added to x and y, because COCO counts pixels but
        records measure from the image's edge). Malformed polygons are left out, and so is an annotation whose
        polygons are all malformed; the log reports both.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not a COCO file, see `read_coco_file`; an empty box, or an ``ignore`` flag.
        KeyError: an annotation's category is not among the file's categories.
    """
    content = {"annotations": [], **read_coco_file(json_file, required=["images"])}
    id_map = None
    if dataset_name is not None:
        id_map = _set_categories(content, json_file, dataset_name)
    keys = ["iscrowd", "bbox", "keypoints", "category_id", *(extra_annotation_keys or ())]

    malformed, trimmed = [], []
    records = []
    grouped = _annotations_by_image(content, json_file)
    for image in sorted(content["images"], key=lambda image: image["id"]):
        record = {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
        }
        converted = [_convert(annotation, keys, id_map, json_file) for annotation in grouped[image["id"]]]
        for annotation, new in zip(grouped[image["id"]], converted, strict=True):
            if new is None:
                malformed.append(annotation["id"])
            elif _lost_polygons(annotation, new):
                trimmed.append(annotation["id"])
        record["annotations"] = [new for new in converted if new is not None]
        records.append(record)

    logger.info("%s: %d images", json_file, len(records))
    if malformed:
        logger.warning(
            "%s: left out %d annotations without a valid polygon (an even number of coordinates, at least %d): %s",
            json_file, len(malformed), MIN_POLYGON_COORDINATES, sample(malformed),
        )  # fmt: skip
    if trimmed:
        logger.warning(
            "%s: %d annotations lost malformed polygons beside valid ones: %s",
            json_file, len(trimmed), sample(trimmed),
        )  # fmt: skip
    return records


def register_coco_instances(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """Register a COCO annotation file as dataset ``name``; it is read when the dataset is used.

    Args:
        name: name for ``DatasetCatalog`` and ``MetadataCatalog``.
        metadata: further metadata; may be empty.
        json_file: the annotation file.
        image_root: the folder of the images.

    Raises:
        ValueError: ``name`` is taken, or its metadata already has a different value.
    """
    DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


def _set_categories(content: dict, json_file: str, dataset_name: str) -> dict[int, int]:
    if "categories" not in content:
        raise ValueError(f"{json_file} has no 'categories', so dataset {dataset_name!r} has no class names")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    id_map = {category["id"]: number for number, category in enumerate(categories)}
    MetadataCatalog.get(dataset_name).set(
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id=id_map,
    )
    return id_map


def _annotations_by_image(content: dict, json_file: str) -> dict[Any, list[dict]]:
    grouped: dict[Any, list[dict]] = {image["id"]: [] for image in content["images"]}
    stray = []
    for annotation in content["annotations"]:
        if annotation["image_id"] in grouped:
            grouped[annotation["image_id"]].append(annotation)
        else:
            stray.append(annotation["id"])
    if stray:
        logger.warning(
            "%s: %d of %d annotations belong to no image in the file: %s",
            json_file, len(stray), len(content["annotations"]), sample(stray),
        )  # fmt: skip
    return grouped


def _convert(annotation: dict, keys: list[str], id_map: dict[int, int] | None, json_file: str) -> dict | None:
    where = f"{json_file}: annotation {annotation['id']} of image {annotation['image_id']}"
    if annotation.get("ignore", 0):
        raise ValueError(f"{where} has the flag 'ignore', which is not supported; use 'iscrowd' or remove it")
    new = {key: annotation[key] for key in keys if key in annotation}
    if "bbox" in new and not new["bbox"]:
        raise ValueError(f"{where} has an empty bbox; it needs [x, y, width, height]")
    if annotation.get("segmentation"):
        new["segmentation"] = _convert_segmentation(annotation["segmentation"])
        if not new["segmentation"]:
            return None
    if new.get("keypoints"):
        new["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(new["keypoints"])]
    new["bbox_mode"] = BoxMode.XYWH_ABS
    if id_map is not None:
        if new["category_id"] not in id_map:
            raise KeyError(f"{where} has category_id {new['category_id']}; the file's categories are {sorted(id_map)}")
        new["category_id"] = id_map[new["category_id"]]
    return new


def _convert_segmentation(segmentation: list | dict) -> list | dict:
    if isinstance(segmentation, dict):
        return compress_rle(segmentation)
    return [p for p in segmentation if len(p) % 2 == 0 and len(p) >= MIN_POLYGON_COORDINATES]


def _lost_polygons(annotation: dict, new: dict) -> bool:
    segmentation = annotation.get("segmentation")
    return isinstance(segmentation, list) and len(new.get("segmentation", ())) < len(segmentation)

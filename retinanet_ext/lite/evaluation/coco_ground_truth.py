"""The ground truth of a registered dataset as a COCO dict, and its category ids."""

from __future__ import annotations

import logging
from typing import Any

from pycocotools import mask as mask_api

from retinanet_ext.data.coco_file import parse_coco_file
from retinanet_ext.evaluation.ground_truth import GroundTruth, ascending_inverse
from retinanet_ext.ops.coco_keypoints import num_labelled
from retinanet_ext.ops.coco_rle import compress_rle, rle_for_json

from ..data.catalog import DatasetCatalog, MetadataCatalog
from ..structures import Boxes, BoxMode, PolygonMasks

logger = logging.getLogger(__name__)


def load_ground_truth(dataset_name: str) -> GroundTruth:
    """Reads `json_file` of the dataset's metadata, or converts the dicts of a dataset without a file.

    Raises:
        KeyError: the dataset is not registered.
        FileNotFoundError, ValueError: the file is missing or not a COCO file, or a record is malformed.
    """
    metadata = MetadataCatalog.get(dataset_name)
    json_file = metadata.get("json_file")
    if json_file is None:
        return _from_dicts(dataset_name, metadata)
    if metadata.get("thing_dataset_id_to_contiguous_id") is None and dataset_name in DatasetCatalog.list():
        # The mapping is set by the loader of the dataset, which may not have run in this process yet.
        DatasetCatalog.get(dataset_name)
    coco = parse_coco_file(json_file, required=["images", "categories"])
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    truth = GroundTruth.of(coco, str(json_file), mapping, metadata.get("thing_classes"))
    truth.file, truth.name, truth.image_root = str(json_file), dataset_name, metadata.get("image_root") or ""
    return truth


def _from_dicts(dataset_name: str, metadata: Any) -> GroundTruth:
    dicts = DatasetCatalog.get(dataset_name)
    thing_classes = metadata.get("thing_classes")
    if not thing_classes:
        raise ValueError(
            f"the dataset {dataset_name!r} has no class names: set "
            f"MetadataCatalog.get({dataset_name!r}).thing_classes = [...] before it is evaluated"
        )
    mapping = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(len(thing_classes))}
    category_ids = ascending_inverse(mapping)
    class_names = {class_id: thing_classes[class_id] for class_id in category_ids}
    coco = dicts_to_coco(dicts, category_ids, class_names)
    logger.info(
        "Converted %r to COCO format: %d images, %d annotations",
        dataset_name, len(coco["images"]), len(coco["annotations"]),
    )  # fmt: skip
    source = f"dataset {dataset_name!r}"
    return GroundTruth(coco, source, category_ids, class_names, converted=True, name=dataset_name)


def dicts_to_coco(dicts: list[dict], category_ids: dict[int, int], class_names: dict[int, str]) -> dict[str, Any]:
    """Converts dataset dicts to the content of a COCO file.

    Args:
        dicts: records with `file_name`, `height`, `width`, `annotations`, and `image_id` (default: index).
        category_ids: class id -> category id to write.
        class_names: class id -> name.

    Returns:
        A dict with `images`, `categories`, `annotations`. Boxes are XYWH rounded to a thousandth of a pixel.
        An annotation's area is that of its polygons or mask, or else of its box, as in Detectron2. Keypoints are
        moved by half a pixel, to where COCO counts: the centre of the first pixel is (0, 0).

    Raises:
        ValueError: class id outside of `category_ids`, or a malformed annotation; the message names the image.
    """
    images, annotations = [], []
    for record_index, record in enumerate(dicts):
        image_id = record.get("image_id", record_index)
        images.append(
            {
                "id": image_id,
                "width": int(record["width"]),
                "height": int(record["height"]),
                "file_name": str(record["file_name"]),
            }
        )
        for index, annotation in enumerate(record.get("annotations", [])):
            where = f"annotation {index} of {record['file_name']}"
            converted = _convert_annotation(annotation, category_ids, where)
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **converted})
    categories = [{"id": category_ids[class_id], "name": name} for class_id, name in class_names.items()]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}


def _convert_annotation(annotation: dict, category_ids: dict[int, int], where: str) -> dict[str, Any]:
    class_id = annotation["category_id"]
    if class_id not in category_ids:
        raise ValueError(f"{where} has category_id {class_id}; legal: 0 to {len(category_ids) - 1}")
    bbox = [float(value) for value in annotation["bbox"]]
    segmentation = annotation.get("segmentation")
    try:
        box_xywh = BoxMode.convert(bbox, annotation["bbox_mode"], BoxMode.XYWH_ABS)
        box_xyxy = BoxMode.convert(box_xywh, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        # Box area in float32, as in Detectron2: rounding decides the size class of boxes at a border.
        area = _segmentation_area(segmentation) if segmentation else Boxes([box_xyxy]).area().item()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    converted = {
        "category_id": category_ids[class_id],
        "bbox": [round(value, 3) for value in box_xywh],
        "area": area,
        "iscrowd": int(annotation.get("iscrowd", 0)),
    }
    if segmentation:
        converted["segmentation"] = rle_for_json(segmentation) if isinstance(segmentation, dict) else segmentation
    keypoints = annotation.get("keypoints")
    if keypoints:
        values = [float(value) for value in keypoints]
        xs, ys, visible = (values[start::3] for start in range(3))
        converted["keypoints"] = [v for x, y, v in zip(xs, ys, visible) for v in (x - 0.5, y - 0.5, int(v))]
        converted["num_keypoints"] = num_labelled(values)
    return converted


def _segmentation_area(segmentation: list | dict) -> float:
    """Area in square pixels of polygons `[[x0, y0, x1, y1, ...], ...]` or of an RLE mask."""
    if isinstance(segmentation, dict):
        return float(mask_api.area(compress_rle(segmentation)))
    return PolygonMasks([segmentation]).area().item()

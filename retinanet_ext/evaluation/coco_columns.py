"""Ground truth and predictions as the numbered annotations that faster-coco-eval and pycocotools take."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from retinanet_ext.ops.coco_keypoints import num_labelled
from retinanet_ext.ops.coco_rle import compress_rle

from .coco_predictions import ImagePredictions


def number_images(coco: dict[str, Any], image_ids: Iterable | None) -> dict[Any, int]:
    """Numbers 1, 2, 3 ... of the images to evaluate, in the order of their ids.

    This order decides between predictions with equal scores in different images.

    Raises:
        ValueError: duplicate image ids.
    """
    all_ids = [image["id"] for image in coco["images"]]
    duplicates = [image_id for image_id, count in Counter(all_ids).items() if count > 1]
    if duplicates:
        raise ValueError(f"several images share an id: {duplicates[:10]}. Give every image a unique id")
    wanted = set(all_ids) if image_ids is None else set(image_ids)
    ordered = sorted(wanted.intersection(all_ids), key=lambda i: (isinstance(i, str), i))
    return {image_id: n for n, image_id in enumerate(ordered, start=1)}


def to_dataset(annotations: list[dict], num_images: int, num_classes: int) -> dict[str, Any]:
    """A COCO dataset. Ids start at 1, because the libraries take a match with annotation id 0 for no match."""
    for n, annotation in enumerate(annotations, start=1):
        annotation["id"] = n
    return {
        # pycocotools asks for a size, but does not use it, because masks are RLE already.
        "images": [{"id": n, "height": 0, "width": 0} for n in range(1, num_images + 1)],
        "categories": [{"id": n} for n in range(1, num_classes + 1)],
        "annotations": annotations,
    }


def object_annotations(
    task: str, coco: dict[str, Any], images: dict[Any, int], category_ids: Mapping[int, int]
) -> list[dict]:
    """The objects to be found, with numbers of images and classes, and masks as RLE.

    Raises:
        ValueError: an annotation without box, or, for `segm`, without segmentation or image size.
    """
    labels = {category_id: k for k, category_id in enumerate(category_ids.values(), start=1)}
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in coco["images"]}
    chosen = (a for a in coco["annotations"] if a["image_id"] in images and a["category_id"] in labels)
    objects = []
    for annotation in chosen:
        x, y, w, h = _box(annotation)
        area = annotation.get("area")
        converted = {
            "image_id": images[annotation["image_id"]],
            "category_id": labels[annotation["category_id"]],
            "bbox": [x, y, w, h],
            "area": float(w * h if area is None else area),
            "iscrowd": int(bool(int(annotation.get("iscrowd", 0)))),
        }
        if task == "segm":
            converted["segmentation"] = _run_lengths(annotation, *sizes[annotation["image_id"]])
        if task == "keypoints":
            # As floats: the libraries cannot compute with an integer of many digits. What is no number is not labelled.
            values = annotation.get("keypoints") or []
            keypoints = [float(value) if isinstance(value, numbers.Real) else 0.0 for value in values]
            converted["keypoints"] = keypoints
            # As in COCO, an object without a labelled keypoint need not be found.
            converted["num_keypoints"] = num_labelled(keypoints)
        objects.append(converted)
    return objects


def _box(annotation: dict[str, Any]) -> list[float]:
    box = annotation.get("bbox")
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        raise ValueError(
            f"annotation {annotation.get('id')} of image {annotation['image_id']} needs a bbox "
            f"[x, y, width, height]; found {box!r}"
        )
    return box


def _run_lengths(annotation: dict[str, Any], height: int | None, width: int | None) -> dict[str, Any]:
    """The segmentation as compressed RLE."""
    where = f"annotation {annotation.get('id')} of image {annotation['image_id']}"
    segmentation = annotation.get("segmentation")
    if not segmentation:
        raise ValueError(
            f"{where} needs a segmentation (polygons or RLE) to evaluate masks; found {segmentation!r}. "
            'Add it, or evaluate tasks=("bbox",)'
        )
    if not height or not width:
        raise ValueError(f"{where}: the image has height {height!r} and width {width!r}; masks need both in the file")
    if isinstance(segmentation, list):
        return mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    return compress_rle(segmentation)


def predicted_annotations(
    task: str, predictions: Mapping[Any, ImagePredictions], images: dict[Any, int], category_ids: Mapping[int, int]
) -> list[dict]:
    """Predictions with numbers of images and classes. The area is that of the mask for `segm`, else of the box.

    Raises:
        KeyError: a predicted class is not in `category_ids`.
        ValueError: predictions without masks or keypoints, where `task` needs them.
    """
    labels = {class_id: k for k, class_id in enumerate(category_ids, start=1)}
    annotations = []
    for image_id, found in predictions.items():
        if image_id not in images or not len(found):
            continue
        boxes = found.boxes.astype(np.float64)
        columns = {
            "category_id": [labels[class_id] for class_id in found.classes.tolist()],
            "bbox": boxes.tolist(),
            "score": found.scores.astype(np.float64).tolist(),
            "area": (boxes[:, 2] * boxes[:, 3]).tolist(),
        }
        columns.update(_columns_of(task, image_id, found))
        fixed = {"image_id": images[image_id], "iscrowd": 0}
        annotations += [{**fixed, **dict(zip(columns, row))} for row in zip(*columns.values(), strict=True)]
    return annotations


def _columns_of(task: str, image_id: Any, found: ImagePredictions) -> dict[str, list]:
    if task == "bbox":
        return {}
    values = found.rles if task == "segm" else found.keypoints
    if values is None:
        field = "pred_masks" if task == "segm" else "pred_keypoints"
        raise ValueError(
            f"the task {task!r} needs instances with {field}, which those of image {image_id} lack. "
            "Evaluate other tasks, or a model that predicts them"
        )
    if task == "segm":
        # One by one: with NumPy 2, pycocotools fails on a list of more than 255 masks.
        return {"segmentation": values, "area": [float(mask_api.area(mask)) for mask in values]}
    return {"keypoints": values.reshape(len(found), -1).astype(np.float64).tolist()}

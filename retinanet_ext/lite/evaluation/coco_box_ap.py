"""Average precision of boxes, computed for all images at once or by pycocotools."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from .box_matching import Objects, Predicted, precision_and_recall
from .coco_predictions import ImagePredictions

logger = logging.getLogger(__name__)

# Indices in COCO's list of IoU thresholds, 0.5, 0.55 ... 0.95.
IOU_50, IOU_75 = 0, 5
# COCO's sizes, in the order of its area ranges after `all`. An area of exactly 32^2 or 96^2 belongs to two sizes.
SIZES = {
    "s": "small (up to 32^2 pixels)",
    "m": "medium (32^2 to 96^2 pixels)",
    "l": "large (from 96^2 pixels)",
}


@dataclass
class BoxMetrics:
    """Fractions in 0 to 1; -1 where there is no ground truth.

    Attributes:
        precision: (10, 101, K, 4): IoU threshold, recall, class, area range (all, small, medium, large).
        recall: (10, K, 4, D): IoU threshold, class, area range, entry of `max_dets`.
        max_dets: numbers of detections per image at which recall is given; precision is given at the last.
    """

    precision: np.ndarray
    recall: np.ndarray
    max_dets: list[int]

    def average_precisions(self) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm, APl in 0 to 100; NaN where there is no ground truth."""
        overall = self.precision[:, :, :, 0]
        metrics = {
            "AP": _mean(overall),
            "AP50": _mean(overall[IOU_50]),
            "AP75": _mean(overall[IOU_75]),
        }
        for index, size in enumerate(SIZES, start=1):
            metrics[f"AP{size}"] = _mean(self.precision[:, :, :, index])
        return metrics

    def class_average_precisions(self) -> list[float]:
        """AP of every class, in 0 to 100; NaN where it has no ground truth."""
        return [_mean(self.precision[:, :, k, 0]) for k in range(self.precision.shape[2])]

    def average_recalls(self) -> dict[int, float]:
        """AR in 0 to 100 for each number of detections per image."""
        return {n: _mean(self.recall[:, :, 0, d]) for d, n in enumerate(self.max_dets)}


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(100 * np.mean(defined)) if defined.size else float("nan")


def compute_box_metrics(
    coco: dict[str, Any],
    predictions: Mapping[Any, ImagePredictions],
    category_ids: Mapping[int, int],
    *,
    max_dets_per_image: int = 100,
    use_fast_impl: bool = True,
    image_ids: list | None = None,
) -> BoxMetrics:
    """Compares predictions with ground truth.

    Args:
        coco: `images` and `annotations` of a COCO file; not modified. Without `area`, an annotation has
            the area of its box; without `iscrowd`, it is a single object.
        predictions: predictions by image id.
        category_ids: the category of each class to evaluate; the k-th of them is class k of the returned arrays.
        max_dets_per_image: number of predictions that count per image and class, highest scores first.
        use_fast_impl: compute for all images at once; otherwise by pycocotools: the same numbers, many times slower.
        image_ids: the images to evaluate; default all.

    Raises:
        ValueError: duplicate image ids, or an annotation without box; the message names them.
        KeyError: predictions of a class that is not in `category_ids`.
    """
    images = _number_images(coco, image_ids)
    objects = _objects(coco["annotations"], images, category_ids)
    predicted = _predicted(predictions, images, category_ids)
    max_dets = [n for n in (1, 10) if n < max_dets_per_image] + [max_dets_per_image]
    compute = _by_arrays if use_fast_impl else _by_pycocotools
    return BoxMetrics(*compute(objects, predicted, len(images), len(category_ids), max_dets), max_dets)


def _by_arrays(
    objects: Objects, predicted: Predicted, num_images: int, num_classes: int, max_dets: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    protocol = Params("bbox")
    return precision_and_recall(
        objects,
        predicted,
        num_classes,
        iou_thresholds=protocol.iouThrs,
        recall_points=protocol.recThrs,
        area_ranges=protocol.areaRng,
        max_dets=max_dets,
    )


def _by_pycocotools(
    objects: Objects, predicted: Predicted, num_images: int, num_classes: int, max_dets: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    truth = _to_dataset(objects, num_images, num_classes, area=objects.area, iscrowd=objects.crowd.astype(int))
    area = predicted.box[:, 2] * predicted.box[:, 3]
    found = _to_dataset(predicted, num_images, num_classes, area=area, score=predicted.score)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluation = COCOeval(_index(truth), _index(found), "bbox")
        evaluation.params.maxDets = max_dets
        evaluation.evaluate()
        evaluation.accumulate()
    for line in printed.getvalue().splitlines():
        logger.debug("pycocotools: %s", line)
    return evaluation.eval["precision"][..., -1], evaluation.eval["recall"]


def _to_dataset(boxes: Objects | Predicted, num_images: int, num_classes: int, **columns: np.ndarray) -> dict[str, Any]:
    """A COCO dataset. Ids start at 1, because pycocotools takes a match with annotation id 0 for no match."""
    columns = {"image_id": boxes.image + 1, "category_id": boxes.label + 1, "bbox": boxes.box, **columns}
    rows = zip(*(column.tolist() for column in columns.values()))
    return {
        "images": [{"id": n} for n in range(1, num_images + 1)],
        "categories": [{"id": n} for n in range(1, num_classes + 1)],
        "annotations": [{"id": n, "iscrowd": 0, **dict(zip(columns, row))} for n, row in enumerate(rows, start=1)],
    }


def _index(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


# ---- files and predictions as columns


def _number_images(coco: dict[str, Any], image_ids: Iterable | None) -> dict[Any, int]:
    """Numbers 0, 1, 2 ... of the images to evaluate, in the order of their ids.

    This order decides between predictions with equal scores in different images.
    """
    all_ids = [image["id"] for image in coco["images"]]
    duplicates = [image_id for image_id, count in Counter(all_ids).items() if count > 1]
    if duplicates:
        raise ValueError(f"several images share an id: {duplicates[:10]}. Give every image a unique id")
    wanted = set(all_ids) if image_ids is None else set(image_ids)
    ordered = sorted(wanted.intersection(all_ids), key=lambda i: (isinstance(i, str), i))
    return {image_id: n for n, image_id in enumerate(ordered)}


def _objects(annotations: list[dict], images: dict[Any, int], category_ids: Mapping[int, int]) -> Objects:
    labels = {category_id: k for k, category_id in enumerate(category_ids.values())}
    chosen = [a for a in annotations if a["image_id"] in images and a["category_id"] in labels]
    boxes = np.array([_box(annotation) for annotation in chosen], dtype=np.float64).reshape(-1, 4)
    areas = [a.get("area") for a in chosen]
    return Objects(
        image=np.array([images[a["image_id"]] for a in chosen], dtype=np.int64),
        label=np.array([labels[a["category_id"]] for a in chosen], dtype=np.int64),
        box=boxes,
        area=np.array([w * h if a is None else a for a, (w, h) in zip(areas, boxes[:, 2:].tolist())], np.float64),
        crowd=np.array([bool(int(a.get("iscrowd", 0))) for a in chosen], dtype=bool),
    )


def _box(annotation: dict[str, Any]) -> list[float]:
    box = annotation.get("bbox")
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        raise ValueError(
            f"annotation {annotation.get('id')} of image {annotation['image_id']} needs a bbox "
            f"[x, y, width, height]; found {box!r}"
        )
    return box


def _predicted(
    predictions: Mapping[Any, ImagePredictions], images: dict[Any, int], category_ids: Mapping[int, int]
) -> Predicted:
    chosen = [(images[image_id], found) for image_id, found in predictions.items() if image_id in images]
    # The empty first part allows for no images at all.
    classes = np.concatenate([np.zeros(0, np.int64), *(found.classes for _, found in chosen)])
    known, index = np.unique(classes, return_inverse=True)
    labels = {class_id: k for k, class_id in enumerate(category_ids)}
    return Predicted(
        image=np.repeat(np.array([n for n, _ in chosen], np.int64), np.array([len(f) for _, f in chosen], np.int64)),
        label=np.array([labels[class_id] for class_id in known.tolist()], np.int64)[index],
        box=np.concatenate([np.zeros((0, 4)), *(found.boxes for _, found in chosen)]),
        score=np.concatenate([np.zeros(0), *(found.scores for _, found in chosen)]),
    )

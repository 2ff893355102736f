"""Average precision of boxes, computed by pycocotools or by its faster twin, as plain arrays."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

# Positions in COCO's list of IoU thresholds, 0.5, 0.55 ... 0.95.
IOU_50, IOU_75 = 0, 5
# COCO's sizes, in the order of its area ranges after `all`. An area of exactly 32^2 or 96^2 belongs to two.
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
        max_dets: numbers of detections per image at which recall is given; precision is at the last.
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
    results: list[dict[str, Any]],
    category_ids: list[int],
    *,
    max_dets_per_image: int = 100,
    use_fast_impl: bool = True,
    image_ids: list | None = None,
) -> BoxMetrics:
    """Compares predictions with ground truth.

    Args:
        coco: `images` and `annotations` of a COCO file; not modified. An annotation without `area` has that
            of its box, one without `iscrowd` is a single object.
        results: predictions in COCO's result format: `image_id`, `category_id`, `bbox` (XYWH), `score`.
        category_ids: the categories to evaluate; entry k is class k of the returned arrays.
        max_dets_per_image: only so many predictions of an image and class count, those with the highest
            scores.
        use_fast_impl: compute with faster-coco-eval where it is installed. Same numbers, about ten times
            faster.
        image_ids: the images to evaluate; default all.

    Raises:
        ValueError: ids that do not fit together, or annotations without box; the message names them.
    """
    ground_truth, detections = _renumber(coco, results, category_ids, image_ids)
    coco_class, eval_class = _backend(use_fast_impl)
    max_dets = [n for n in (1, 10) if n < max_dets_per_image] + [max_dets_per_image]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluation = eval_class(_index(coco_class, ground_truth), _index(coco_class, detections), "bbox")
        evaluation.params.maxDets = max_dets
        evaluation.evaluate()
        evaluation.accumulate()
    for line in printed.getvalue().splitlines():
        logger.debug("%s: %s", eval_class.__name__, line)
    return BoxMetrics(evaluation.eval["precision"][..., -1], evaluation.eval["recall"], max_dets)


def _index(coco_class: type, dataset: dict[str, Any]) -> Any:
    coco = coco_class()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _backend(use_fast_impl: bool) -> tuple[type, type]:
    if use_fast_impl and importlib.util.find_spec("faster_coco_eval") is not None:
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _renumber(
    coco: dict[str, Any], results: list[dict[str, Any]], category_ids: list[int], image_ids: list | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ground truth and predictions as COCO datasets with ids 1, 2, 3 ... of our own.

    The evaluation code needs that: it takes a match with an annotation of id 0 for no match, confuses
    annotations of equal id, and expects numbers for image ids. The order of ids, which decides between
    predictions of equal score in different images, is kept.
    """
    all_ids = [image["id"] for image in coco["images"]]
    duplicates = [image_id for image_id, count in Counter(all_ids).items() if count > 1]
    if duplicates:
        raise ValueError(f"several images share an id: {duplicates[:10]}. Give every image an id of its own")
    wanted = set(all_ids) if image_ids is None else set(image_ids)
    ordered = sorted(wanted.intersection(all_ids), key=lambda i: (isinstance(i, str), i))
    images = {image_id: n for n, image_id in enumerate(ordered, start=1)}
    classes = {category_id: n for n, category_id in enumerate(category_ids, start=1)}
    truth_annotations = [
        _annotation(a, images, classes, area=a.get("area"), iscrowd=int(a.get("iscrowd", 0)))
        for a in coco["annotations"]
        if a["image_id"] in images and a["category_id"] in classes
    ]
    detections = [
        _annotation(result, images, classes, score=result["score"])
        for result in results
        if result["image_id"] in images
    ]
    return tuple(
        {
            "images": [{"id": n} for n in images.values()],
            "categories": [{"id": n} for n in classes.values()],
            "annotations": [{"id": n, **annotation} for n, annotation in enumerate(annotations, start=1)],
        }
        for annotations in (truth_annotations, detections)
    )


def _annotation(
    record: dict[str, Any], images: dict, classes: dict, *, area: float | None = None, **extra: Any
) -> dict[str, Any]:
    box = record.get("bbox")
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        raise ValueError(
            f"annotation {record.get('id')} of image {record['image_id']} needs a bbox "
            f"[x, y, width, height]; found {box!r}"
        )
    return {
        "image_id": images[record["image_id"]],
        "category_id": classes[record["category_id"]],
        "bbox": list(box),
        "area": box[2] * box[3] if area is None else area,
        "iscrowd": 0,
        **extra,
    }

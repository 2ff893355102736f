"""Logs tables of COCO metrics, and why a number is missing, zero or unreliable."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from retinanet_ext.ops.coco_keypoints import num_labelled

from .coco_metrics import KEYPOINT_MAX_DETS, Metrics
from .coco_predictions import ImagePredictions
from .ground_truth import GroundTruth
from .metric_reasons import metric_reasons

logger = logging.getLogger(__name__)

CLASSES_PER_ROW = 3
EXAMPLES = 10
MAX_REASONS = 20  # that are logged
TASK_NAMES = {"bbox": "Box", "segm": "Mask", "keypoints": "Keypoint"}


def warn_about_object_counts(truth: GroundTruth, max_dets_per_image: int) -> None:
    """Warns of images with more objects than `max_dets_per_image`, and of annotations that are not evaluated."""
    annotations = truth.coco.get("annotations", [])
    objects = Counter(a["image_id"] for a in annotations if not a.get("iscrowd", 0))
    crowded = [image_id for image_id, count in objects.items() if count > max_dets_per_image]
    if crowded:
        logger.warning(
            "%d images have more than %d objects (image %s has %d): recall is limited. Raise "
            "max_dets_per_image of the evaluator, and TEST.DETECTIONS_PER_IMAGE of the model.",
            len(crowded), max_dets_per_image, *objects.most_common(1)[0],
        )  # fmt: skip
    known = set(truth.category_ids.values())
    unmapped = Counter(a["category_id"] for a in annotations if a["category_id"] not in known)
    if unmapped:
        logger.warning(
            "%d annotations of %s are not evaluated, because their categories are not classes of the dataset: ids %s",
            sum(unmapped.values()), truth.source, sorted(unmapped),
        )  # fmt: skip


def warn_about_keypoint_counts(truth: GroundTruth) -> None:
    """Warns of images with more objects than COCO's rule for keypoints keeps, which no setting changes."""
    objects = Counter(a["image_id"] for a in truth.coco["annotations"] if num_labelled(a.get("keypoints") or []))
    crowded = [image_id for image_id, count in objects.items() if count > KEYPOINT_MAX_DETS]
    if crowded:
        logger.warning(
            "%d images have more than %d objects with keypoints (image %s has %d): COCO's rule keeps the best %d "
            "predictions of an image, so recall is limited.",
            len(crowded), KEYPOINT_MAX_DETS, *objects.most_common(1)[0], KEYPOINT_MAX_DETS,
        )  # fmt: skip


def warn_about_images(truth: GroundTruth, processed: Collection, wanted: Sequence | None) -> None:
    """Warns of images of the ground truth that the model has not seen: their objects count as missed."""
    expected = [image["id"] for image in truth.coco["images"]] if wanted is None else wanted
    unseen = [image_id for image_id in expected if image_id not in processed]
    if unseen:
        logger.warning(
            "%d of %d images of %s were not processed; their objects count as missed. Ids: %s",
            len(unseen), len(expected), truth.source, unseen[:EXAMPLES],
        )  # fmt: skip


def log_report(
    task: str,
    metrics: Metrics,
    truth: GroundTruth,
    predictions: Mapping[Any, ImagePredictions],
    image_ids: Sequence | None = None,
) -> tuple[dict[str, float], dict[str, str]]:
    """Logs the metrics, and why some are NaN or zero.

    Returns:
        The metrics: AP, AP50, AP75, APs (not of keypoints), APm, APl, then `AP-<class>` for each class, if there are
        several. Without any prediction none of the classes', and the others NaN, as in Detectron2. Then the reason of
        each metric that is NaN.
    """
    main = metrics.average_precisions()
    if not any(len(found) for found in predictions.values()):
        logger.warning(
            "Nothing was predicted, so AP is not defined: the model found no object in any image with a "
            "score above its threshold (such as MODEL.RETINANET.SCORE_THRESH_TEST). The ground truth has %d objects.",
            len(truth.coco["annotations"]),
        )
        undefined = dict.fromkeys(main, float("nan"))
        return undefined, metric_reasons(task, undefined, truth, predictions, image_ids)
    by_class = dict(zip(truth.class_names.values(), metrics.class_average_precisions(), strict=True))
    kind = TASK_NAMES[task]
    logger.info("%s AP:\n%s", kind, _table(main))
    recalls = ", ".join(f"{n}: {recall:.3f}" for n, recall in metrics.average_recalls().items())
    logger.info("%s AR by number of detections per image: %s", kind, recalls)
    if len(by_class) > 1:
        logger.info("%s AP by class:\n%s", kind, _class_table(by_class))
    found = main if len(by_class) == 1 else {**main, **{f"AP-{name}": ap for name, ap in by_class.items()}}
    reasons = metric_reasons(task, found, truth, predictions, image_ids)
    _log_reasons(kind, reasons)
    if main["AP50"] == 0:
        _explain_zero(truth, predictions)
    return found, reasons


def _table(metrics: dict[str, float]) -> str:
    values = [list(metrics.values())]
    return tabulate(values, list(metrics), tablefmt="pipe", floatfmt=".3f", numalign="center")


def _class_table(by_class: dict[str, float]) -> str:
    cells = [cell for name_and_ap in by_class.items() for cell in name_and_ap]
    width = 2 * min(CLASSES_PER_ROW, len(by_class))
    rows = [cells[start : start + width] for start in range(0, len(cells), width)]
    headers = ["class", "AP"] * (width // 2)
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=".3f", numalign="left")


def _log_reasons(kind: str, reasons: Mapping[str, str]) -> None:
    if "AP" in reasons:
        logger.warning("%s AP is NaN: %s.", kind, reasons["AP"])
        return
    for name, reason in list(reasons.items())[:MAX_REASONS]:
        logger.info("%s %s is NaN: %s.", kind, name, reason)
    if len(reasons) > MAX_REASONS:
        logger.info("%d more metrics are NaN; results.json has all reasons.", len(reasons) - MAX_REASONS)


def _explain_zero(truth: GroundTruth, predictions: Mapping[Any, ImagePredictions]) -> None:
    objects = [a for a in truth.coco["annotations"] if not a.get("iscrowd", 0)]
    names = {truth.category_ids[class_id]: name for class_id, name in truth.class_names.items()}
    logger.warning(
        "AP50 is 0: no prediction overlaps an object of its class by half. Highest score %.3f. "
        "Predictions by class: %s. Objects by class: %s.",
        max(found.scores.max(initial=0) for found in predictions.values()),
        _count((c for found in predictions.values() for c in found.classes.tolist()), truth.class_names),
        _count((a["category_id"] for a in objects), names),
    )  # fmt: skip


def _count(ids: Iterable[int], names: dict[int, str]) -> str:
    counts = Counter(names.get(i, "?") for i in ids)
    return ", ".join(f"{name} {count}" for name, count in counts.most_common(EXAMPLES)) or "none"

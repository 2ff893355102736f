"""From the predictions for all images to the results of each task and the predictions' file."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .coco_metrics import compute_metrics
from .coco_predictions import ImagePredictions, write_coco_results
from .coco_report import log_report, warn_about_images, warn_about_keypoint_counts
from .evaluated_dataset import EvaluatedDataset
from .evaluation_record import write_record
from .ground_truth import GroundTruth
from .ground_truth_file import write_reference
from .image_matches import match_dataset
from .operating_thresholds import OPERATING_IOU, THRESHOLDS_FILE, find_thresholds, write_thresholds
from .protocol import Protocol

logger = logging.getLogger(__name__)

RESULTS_FILE = "coco_instances_results.json"


def merge_parts(parts: Sequence[Mapping[Any, ImagePredictions]]) -> dict[Any, ImagePredictions]:
    """The predictions of all processes, by image; those of the first process where several have an image."""
    merged: dict[Any, ImagePredictions] = {}
    for part in parts:
        for image_id, found in part.items():
            merged.setdefault(image_id, found)
    return merged


def evaluate_predictions(
    by_image: Mapping[Any, ImagePredictions],
    truth: GroundTruth,
    protocol: Protocol,
    *,
    output_dir: str | None = None,
    image_ids: list | None = None,
) -> OrderedDict[str, dict[str, float]]:
    """Writes the predictions, and computes and logs the metrics.

    Args:
        by_image: the predictions of all processes, by image id.
        output_dir: where to write `coco_instances_results.json` and, if the dataset has annotations,
            `ground_truth.json`, `operating_thresholds.json` and `evaluation.json`; None: nowhere.
        image_ids: evaluate only these images of the ground truth.

    Returns:
        `{task: {metric: value}}`, NaN where undefined; all NaN if nothing was predicted. Empty if `by_image` is, or if
        the dataset has no annotations.

    Raises:
        ValueError: the ground truth does not have a predicted class, or an image with predictions; an annotation or
            a prediction lacks what a task needs.
    """
    if not by_image:
        logger.warning("Nothing to evaluate: no output with `instances` was processed.")
        return OrderedDict()
    predictions = _in_order(by_image, truth)
    if output_dir:
        os.makedirs(output_dir, exist_ok=True)
        path = os.path.join(output_dir, RESULTS_FILE)
        write_coco_results(path, predictions, truth.category_ids)
        logger.info("Wrote %s", path)
    if "annotations" not in truth.coco:
        logger.info("%s has no annotations: predictions were written, but not evaluated.", truth.source)
        return OrderedDict()
    warn_about_images(truth, processed=by_image.keys(), wanted=image_ids)
    results, reasons, tasks = OrderedDict(), {}, protocol.tasks_of(truth, predictions)
    if "keypoints" in tasks:
        warn_about_keypoint_counts(truth)
    for task in tasks:
        metrics = compute_metrics(
            task,
            truth.coco,
            predictions,
            truth.category_ids,
            max_dets_per_image=protocol.max_dets_per_image,
            use_fast_impl=protocol.use_fast_impl,
            oks_sigmas=protocol.kpt_oks_sigmas,
            image_ids=image_ids,
        )
        results[task], reasons[task] = log_report(task, metrics, truth, predictions, image_ids)
    if output_dir:
        data = EvaluatedDataset.of(truth, predictions, replace(protocol, tasks=tasks), image_ids)
        _write_explanations(output_dir, data, image_ids)
        write_record(output_dir, data.name, results, reasons)
    return results


def _write_explanations(output_dir: str, data: EvaluatedDataset, image_ids: Sequence | None) -> None:
    """Write what the statistics of this evaluation start from, and the operating thresholds."""
    write_reference(
        output_dir, data.truth, tasks=data.tasks, max_dets_per_image=data.protocol.max_dets_per_image,
        oks_sigmas=data.protocol.kpt_oks_sigmas, image_ids=image_ids,
    )  # fmt: skip
    task = "bbox" if "bbox" in data.tasks else data.tasks[0]
    matches = match_dataset(data, task, iou_thresholds=[OPERATING_IOU], sizes=False)
    thresholds = find_thresholds(matches, dataset=data.name, category_ids=data.truth.category_ids)
    write_thresholds(os.path.join(output_dir, THRESHOLDS_FILE), thresholds)


def _in_order(by_image: Mapping[Any, ImagePredictions], truth: GroundTruth) -> dict[Any, ImagePredictions]:
    """Check image ids and classes; return the predictions in the order of the dataset's images."""
    index = {image["id"]: n for n, image in enumerate(truth.coco["images"])}
    unknown = [image_id for image_id, found in by_image.items() if len(found) and image_id not in index]
    if unknown:
        raise ValueError(
            f"{len(unknown)} images with predictions are not in {truth.source}: ids {unknown[:10]}, but "
            f"it has ids like {list(index)[:5]}. Evaluate on the dataset that the loader reads"
        )
    for image_id, found in by_image.items():
        strange = set(found.classes.tolist()) - truth.category_ids.keys()
        if strange:
            raise ValueError(
                f"class {min(strange)} was predicted on image {image_id}, but {truth.source} has the "
                f"{len(truth.category_ids)} classes 0 to {max(truth.category_ids, default=-1)}. Is "
                "MODEL.RETINANET.NUM_CLASSES (or MODEL.ROI_HEADS.NUM_CLASSES) the number of classes of this dataset?"
            )
    ordered = sorted((i for i in by_image if i in index), key=index.__getitem__)
    return {image_id: by_image[image_id] for image_id in ordered}

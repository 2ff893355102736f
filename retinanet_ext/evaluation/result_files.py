"""Ground truth and predictions of an evaluation, read back from its folder or from any two COCO files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from retinanet_ext.data.coco_file import read_coco_file

from .coco_content import are_keypoints, are_numbers, check_content, check_mask
from .coco_predictions import ImagePredictions
from .coco_tasks import RESULTS_FILE
from .evaluated_dataset import EvaluatedDataset
from .ground_truth import FIELDS, GroundTruth
from .ground_truth_file import REFERENCE_FILE, read_reference
from .protocol import Protocol

_SHOWN = 5


def find_evaluations(run: str | os.PathLike) -> list[Path]:
    """The folders ``inference/<dataset>`` of a run that hold predictions and their ground truth, sorted by name."""
    folders = sorted(path for path in Path(run).glob("inference/*") if path.is_dir())
    return [path for path in folders if (path / RESULTS_FILE).is_file() and (path / REFERENCE_FILE).is_file()]


def choose_evaluation(run: str | os.PathLike, dataset: str | None = None) -> Path:
    """The folder of the evaluation of a run, or `run` itself if it is such a folder.

    Raises:
        FileNotFoundError: the run has no evaluation (of this dataset) with its files.
        ValueError: it has several, and no dataset is named.
    """
    run = Path(run)
    if (run / REFERENCE_FILE).is_file() and dataset is None:
        return run
    found = find_evaluations(run)
    names = ", ".join(path.name for path in found)
    if dataset is not None:
        found = [path for path in found if path.name == dataset]
    if not found:
        raise FileNotFoundError(
            f"{run} has no evaluation{f' of {dataset!r}' if dataset else ''} with {RESULTS_FILE} and {REFERENCE_FILE} "
            f"in inference/<dataset>; found: {names or 'none'}. Evaluate it: retinanet-ext train --eval-only"
        )
    if len(found) > 1:
        raise ValueError(f"{run} has evaluations of several datasets: {names}; name one (--dataset)")
    return found[0]


def read_evaluation(folder: str | os.PathLike) -> EvaluatedDataset:
    """Read what an evaluation left in ``OUTPUT_DIR/inference/<dataset>``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is malformed, or the ground truth has changed since the evaluation.
    """
    truth, reference = read_reference(folder)
    if "annotations" not in truth.coco:
        raise ValueError(f"{truth.source} has no annotations, so the predictions in {folder} cannot be evaluated")
    predictions = _read_predictions(Path(folder) / RESULTS_FILE, truth)
    protocol = Protocol(
        reference["tasks"] or None, reference["max_dets_per_image"], kpt_oks_sigmas=reference["oks_sigmas"]
    )
    return _dataset(truth, predictions, protocol, reference["image_ids"])


def read_result_files(
    ground_truth: str | os.PathLike,
    predictions: str | os.PathLike,
    *,
    max_dets_per_image: int | None = None,
    oks_sigmas: tuple[float, ...] = (),
    image_root: str | os.PathLike = "",
) -> EvaluatedDataset:
    """Read any COCO annotation file and any file in COCO's results format.

    Args:
        ground_truth: `images`, `categories`, `annotations`.
        predictions: a list of `image_id`, `category_id`, `score` and `bbox`, `segmentation` or `keypoints`.
        max_dets_per_image: see :class:`Protocol`.
        oks_sigmas: see :class:`Protocol`.
        image_root: folder of the images; default: none, then pictures cannot be found.

    Raises:
        FileNotFoundError, ValueError: a file is missing or malformed, or the two do not belong together.
    """
    coco = read_coco_file(ground_truth)
    check_content(coco, ground_truth)
    coco["categories"].sort(key=lambda category: category["id"])
    truth = GroundTruth.of(
        coco, str(ground_truth), {category["id"]: k for k, category in enumerate(coco["categories"])},
        [str(category["name"]) for category in coco["categories"]],
    )  # fmt: skip
    truth.file, truth.name, truth.image_root = str(ground_truth), Path(ground_truth).stem, str(image_root)
    found = _read_predictions(Path(predictions), truth)
    tasks = Protocol().tasks_of(truth, found) if found else ["bbox"]
    return _dataset(truth, found, Protocol(tasks, max_dets_per_image, kpt_oks_sigmas=oks_sigmas), None)


def _dataset(truth, predictions, protocol, image_ids):
    return EvaluatedDataset.of(truth, predictions, protocol, image_ids)


# ---- predictions


def _read_predictions(path: Path, truth: GroundTruth) -> dict[Any, ImagePredictions]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; evaluate again, or name a file in COCO's results format")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(records, list):
        raise ValueError(f"{path} must be a list of predictions in COCO's results format, found {_type(records)}")
    class_of = {category_id: class_id for class_id, category_id in truth.category_ids.items()}
    images = {image["id"] for image in truth.coco["images"]}
    by_image: dict[Any, list[dict]] = {}
    fields = {key for key in FIELDS.values() if records and isinstance(records[0], dict) and key in records[0]}
    for index, record in enumerate(records):
        _check_record(record, f"{path}: prediction {index}", fields, images, class_of, truth.source)
        by_image.setdefault(record["image_id"], []).append(record)
    found = {image_id: _image_predictions(by_image[image_id], class_of, fields) for image_id in by_image}
    order = {image["id"]: n for n, image in enumerate(truth.coco["images"])}
    return {image_id: found[image_id] for image_id in sorted(found, key=order.__getitem__)}


def _type(value):
    return f"a {type(value).__name__}"


def _check_record(record, where, fields, images, class_of, source):
    if not isinstance(record, dict):
        raise ValueError(f"{where} must be a mapping, found {_type(record)}")
    missing = [key for key in ("image_id", "category_id", "score", *fields) if key not in record]
    if missing or not fields:
        raise ValueError(
            f"{where} has no {', '.join(missing) or 'bbox, segmentation or keypoints'}; each needs image_id, "
            "category_id, score, and all the same of bbox, segmentation, keypoints"
        )
    if not _is_known(record["image_id"], images):
        raise ValueError(
            f"{where} has the image_id {record['image_id']!r}, but {source} has ids like {list(images)[:_SHOWN]}; "
            "compare predictions with the ground truth that they were made for"
        )
    if not _is_known(record["category_id"], class_of):
        raise ValueError(
            f"{where} has the category_id {record['category_id']!r}, but the classes of {source} have the ids "
            f"{list(class_of)[:_SHOWN]}{' ...' if len(class_of) > _SHOWN else ''}; give each class its category id"
        )
    if not are_numbers([record["score"]], 1):
        raise ValueError(f"{where} has the score {record['score']!r}; legal: a finite number")
    if "bbox" in fields and not are_numbers(record["bbox"], 4):
        raise ValueError(f"{where} has the bbox {record['bbox']!r}; legal: 4 finite numbers, [x, y, width, height]")
    if "segmentation" in fields:
        if not isinstance(record["segmentation"], dict):
            raise ValueError(f"{where} has a segmentation that is {_type(record['segmentation'])}; legal: RLE")
        check_mask(record["segmentation"], where)
    if "keypoints" in fields and not are_keypoints(record["keypoints"]):
        raise ValueError(f"{where} has malformed keypoints; legal: 3 numbers for each, [x, y, score, ...]")


def _is_known(key, known):
    return isinstance(key, (int, str)) and not isinstance(key, bool) and key in known


def _image_predictions(records, class_of, fields) -> ImagePredictions:
    rles = keypoints = None
    if "segmentation" in fields:
        rles = [_with_bytes(record["segmentation"]) for record in records]
    if "keypoints" in fields:
        lengths = {len(record["keypoints"]) for record in records}
        if len(lengths) > 1:
            counts = sorted(n // 3 for n in lengths)
            image_id = records[0]["image_id"]
            raise ValueError(f"the predictions of image {image_id} have {counts} keypoints; give all the same number")
        keypoints = np.array([record["keypoints"] for record in records], np.float64).reshape(len(records), -1, 3)
    if "bbox" in fields:
        boxes = np.array([record["bbox"] for record in records], np.float64)
    elif rles is not None:
        boxes = np.array([mask_api.toBbox(rle) for rle in rles], np.float64)
    else:
        corners = [keypoints[:, :, :2].min(axis=1), keypoints[:, :, :2].max(axis=1)]
        boxes = np.concatenate([corners[0], corners[1] - corners[0]], axis=1)
    return ImagePredictions(
        boxes,
        np.array([record["score"] for record in records], np.float64),
        np.array([class_of[record["category_id"]] for record in records], np.int64),
        rles,
        keypoints,
    )


def _with_bytes(rle):
    """The RLE as an evaluator holds it, with compressed counts in bytes."""
    counts = rle["counts"]
    if isinstance(counts, list):
        return mask_api.frPyObjects({"size": list(rle["size"]), "counts": counts}, *rle["size"])
    return {"size": list(rle["size"]), "counts": counts.encode() if isinstance(counts, str) else counts}

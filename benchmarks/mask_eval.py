"""COCO evaluation of boxes and masks: this package's evaluator on either engine, and Detectron2's with its C++ code."""

import contextlib
import io
import json
import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# The seam is needed for Detectron2's evaluator with this package's metrics; `lite` is imported beside it.
os.environ.setdefault("RETINANET_EXT_ENGINE", "auto")

import numpy as np
import torch
from pycocotools import mask as mask_api

from benchmarks.coco_eval import HEIGHT, WIDTH, Arrays, make_data, parse_arguments, to_batches
from benchmarks.measure import Case, format_cases, has_detectron2, now, print_header, write_cases
from retinanet_ext import d2
from retinanet_ext.lite.data import MetadataCatalog
from retinanet_ext.lite.evaluation import COCOEvaluator
from retinanet_ext.lite.structures import Boxes, Instances
from retinanet_ext.ops.encoded_masks import EncodedMasks

NAME = "benchmark of COCO mask evaluation"
# Largest accepted difference of a metric, on the scale 0 to 100.
TOLERANCE = 1e-9
CORNERS = 40


# ---- data


def make_mask_data(images: int, detections: int, classes: int) -> tuple[dict, list[Arrays], list[list[dict]]]:
    """The data of ``coco_eval`` with masks: a star-shaped polygon in each box; 30 to ``detections`` for each image.

    Returns:
        The content of a COCO file; for each image boxes, scores and classes; for each image its masks as RLE.
    """
    rng = np.random.default_rng(1)
    coco, predictions = make_data(images, detections, classes)
    for annotation in coco["annotations"]:
        x, y, width, height = annotation["bbox"]
        polygon = _polygon(rng, np.array([x, y, x + width, y + height]))
        rle = _encode(polygon)
        annotation["area"] = float(mask_api.area(rle))
        crowd = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
        annotation["segmentation"] = crowd if annotation["iscrowd"] else [polygon]
    counts = rng.integers(min(30, detections), detections + 1, size=images)
    chosen = [tuple(array[:count] for array in arrays) for arrays, count in zip(predictions, counts)]
    masks = [[_encode(_polygon(rng, box)) for box in boxes] for boxes, _, _ in chosen]
    return coco, chosen, masks


def _polygon(rng: np.random.Generator, box: np.ndarray) -> list[float]:
    angle = np.sort(rng.uniform(0, 2 * np.pi, CORNERS))
    radius = rng.uniform(0.8, 1, CORNERS) / 2
    center, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    points = center + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None] * size
    return points.round(2).ravel().tolist()


def _encode(polygon: list[float]) -> dict:
    return mask_api.merge(mask_api.frPyObjects([polygon], HEIGHT, WIDTH))


# ---- evaluators


def build_evaluators(coco: dict, predictions: Sequence[Arrays], masks: list[list[dict]], folder: Path) -> dict:
    """Row of the table -> (evaluator, batches). The last row is the reference. All write the predictions' file."""
    json_file = folder / "truth.json"
    json_file.write_text(json.dumps(coco))
    metadata = {
        "json_file": str(json_file),
        "thing_classes": [category["name"] for category in coco["categories"]],
        "thing_dataset_id_to_contiguous_id": {k + 1: k for k in range(len(coco["categories"]))},
    }
    of_lite = (MetadataCatalog, COCOEvaluator, (Instances, Boxes))
    rows = {"lite": _row(*of_lite, metadata, predictions, masks, folder / "0")}
    if not has_detectron2():
        return rows
    from detectron2 import data, evaluation, structures

    engine = (structures.Instances, structures.Boxes)
    evaluators: dict[str, Callable] = {}
    if d2.ENGINE == "detectron2":
        from retinanet_ext.training.compact_evaluator import CompactCOCOEvaluator

        evaluators["Detectron2 with this package's evaluator"] = CompactCOCOEvaluator
    evaluators["Detectron2 with COCOeval_opt"] = evaluation.COCOEvaluator
    for number, (name, evaluator) in enumerate(evaluators.items(), start=1):
        output = folder / str(number)
        rows[name] = _row(data.MetadataCatalog, evaluator, engine, metadata, predictions, masks, output)
    return rows


def _row(catalog, evaluator, types, metadata, predictions, masks, output: Path) -> tuple[Any, list]:
    if NAME in catalog.list():
        catalog.remove(NAME)
    catalog.get(NAME).set(**metadata)
    batches = to_batches(predictions, *types)
    for (_, outputs), rles in zip(batches, masks, strict=True):
        outputs[0]["instances"].pred_masks = EncodedMasks(rles, outputs[0]["instances"].image_size)
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator(NAME, ("bbox", "segm"), output_dir=str(output), use_fast_impl=True), batches


# ---- measurement


def _process(evaluator: Any, batches: list) -> bytes:
    """Give the evaluator all predictions, and return what Detectron2's own keeps of them.

    To Detectron2's own, masks are given in the form that it keeps them in: it encodes dense masks, which takes minutes
    for 1,000 images.
    """
    evaluator.reset()
    for inputs, outputs in batches:
        if not hasattr(evaluator, "_predictions"):
            evaluator.process(inputs, outputs)
            continue
        instances = outputs[0]["instances"]
        masks = instances.pred_masks
        instances.remove("pred_masks")
        evaluator.process(inputs, outputs)
        instances.pred_masks = masks
        for result, rle in zip(evaluator._predictions[-1]["instances"], masks.rles, strict=True):
            result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    # Detectron2's evaluate changes it. Bytes, because more objects would slow garbage collection.
    return pickle.dumps(getattr(evaluator, "_predictions", None))


def measure(rows: dict[str, tuple[Any, list]], repeats: int) -> list[Case]:
    """One case for each row, with the times of ``evaluate``, in turns.

    Raises:
        RuntimeError: metrics of a row differ from the last row's by more than ``TOLERANCE``. Nothing is timed then.
    """
    kept = [_process(*row) for row in rows.values()]
    evaluators = [evaluator for evaluator, _ in rows.values()]
    metrics = [_evaluate(*pair)[0] for pair in zip(evaluators, kept)]  # this also warms up
    cases = []
    for name, found in zip(rows, metrics):
        difference = _difference(found, metrics[-1])
        if not difference <= TOLERANCE:  # this form also catches NaN
            raise RuntimeError(f"metrics of {name} differ from those of {list(rows)[-1]} by {difference:.3g}")
        cases.append(Case(name, run=None, difference=difference))
    for number in range(repeats):
        turn = number % len(rows)
        for index in [*range(turn, len(rows)), *range(turn)]:
            cases[index].seconds.append(_evaluate(evaluators[index], kept[index])[1])
    return cases


def _evaluate(evaluator: Any, kept: bytes) -> tuple[dict, float]:
    if hasattr(evaluator, "_predictions"):
        evaluator._predictions = pickle.loads(kept)
    with contextlib.redirect_stdout(io.StringIO()):
        start = now("cpu")
        results = evaluator.evaluate()
        return results, now("cpu") - start


def _difference(found: dict, expected: dict) -> float:
    """Largest difference of a metric; NaN if one side is defined and the other is not."""
    pairs = [(found[task][name], value) for task, metrics in expected.items() for name, value in metrics.items()]
    left, right = np.array(pairs).T
    return float(np.max(np.where(np.isnan(left) & np.isnan(right), 0, np.abs(left - right))))


def main() -> None:
    title = "COCO evaluation of boxes and masks: this package and Detectron2"
    settings = parse_arguments(title, repeats=4, images=1000)
    torch.set_num_threads(settings.threads)
    logging.disable(logging.WARNING)  # every evaluation would log its tables
    coco, predictions, masks = make_mask_data(settings.images, settings.detections, settings.classes)
    header = print_header(settings, objects=len(coco["annotations"]), predictions=sum(map(len, masks)))
    with tempfile.TemporaryDirectory() as folder:
        cases = measure(build_evaluators(coco, predictions, masks, Path(folder)), settings.repeats)
    print(format_cases(cases, cases[-1], "evaluate"))
    write_cases(settings.json, header, {"evaluate": cases})


if __name__ == "__main__":
    main()

"""COCO box evaluation from a model's outputs to metrics: lite's evaluator, Detectron2's and plain pycocotools."""

import contextlib
import io
import json
import logging
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.measure import Case, format_cases, has_detectron2, make_parser, now, print_header, write_cases
from retinanet_ext.evaluation.coco_predictions import ImagePredictions
from retinanet_ext.lite.data import MetadataCatalog
from retinanet_ext.lite.evaluation import COCOEvaluator
from retinanet_ext.lite.structures import Boxes, Instances

HEIGHT, WIDTH = 480, 640
BOXES_PER_IMAGE = 7
NAME = "benchmark of COCO evaluation"
# Largest accepted difference of a metric, on the scale 0 to 100.
TOLERANCE = 1e-6
PARTS = ("process", "evaluate", "both")

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


# ---- data


def make_data(images: int, detections: int, classes: int) -> tuple[dict, list[Arrays]]:
    """Ground truth as in a COCO file, categories 1..K, and predictions for each image.

    About a fifth of an image's predictions are moved ground truth boxes, one in ten of these with a random class. The
    rest is noise with lower scores.

    Returns:
        The content of the file; and for each image, in the order of ids from 1 on, boxes ``(detections, 4)`` (XYXY,
        pixels), scores ``(detections,)`` and classes ``(detections,)`` in 0..K-1.
    """
    rng = np.random.default_rng(0)
    annotations, predictions = [], []
    for image_id in range(1, images + 1):
        count = rng.poisson(BOXES_PER_IMAGE)
        boxes, labels = _boxes(rng, count), rng.integers(classes, size=count)
        for number, (box, label) in enumerate(zip(boxes.round(2).tolist(), labels.tolist())):
            x0, y0, x1, y1 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": 0.7 * (x1 - x0) * (y1 - y0),
                    "iscrowd": int(number % 80 == 79),
                }
            )
        predictions.append(_predict(rng, boxes, labels, detections, classes))
    coco = {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.jpg"} for i in range(1, images + 1)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, classes + 1)],
        "annotations": annotations,
    }
    return coco, predictions


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes ``(count, 4)``, XYXY, with log-uniform sides of 8 to 320 pixels."""
    sides = np.exp(rng.uniform(np.log(8), np.log(320), (count, 2)))
    corner = rng.random((count, 2)) * ([WIDTH, HEIGHT] - sides)
    return np.concatenate([corner, corner + sides], axis=1)


def _predict(rng: np.random.Generator, boxes: np.ndarray, labels: np.ndarray, detections: int, classes: int) -> Arrays:
    chosen = np.repeat(np.arange(len(boxes)), 3)[:detections]
    sides = np.tile(boxes[chosen, 2:] - boxes[chosen, :2], 2)
    moved = boxes[chosen] + rng.normal(size=(len(chosen), 4)) * 0.08 * sides
    found = np.where(rng.random(len(chosen)) < 0.9, labels[chosen], rng.integers(classes, size=len(chosen)))
    noise = detections - len(chosen)
    scores = np.concatenate([rng.random(len(chosen)), 0.3 * rng.random(noise)])
    return (
        np.concatenate([moved, _boxes(rng, noise)]),
        scores,
        np.concatenate([found, rng.integers(classes, size=noise)]),
    )


def to_batches(predictions: Sequence[Arrays], instances: Callable, boxes: Callable) -> list[tuple[list, list]]:
    """Arguments for the calls of ``process``, one image each, with the ``Instances`` and ``Boxes`` of an engine."""
    batches = []
    for image_id, (corners, scores, classes) in enumerate(predictions, start=1):
        found = instances((HEIGHT, WIDTH))
        found.pred_boxes = boxes(torch.as_tensor(corners, dtype=torch.float32))
        found.scores = torch.as_tensor(scores, dtype=torch.float32)
        found.pred_classes = torch.as_tensor(classes, dtype=torch.int64)
        batches.append(([{"image_id": image_id}], [{"instances": found}]))
    return batches


# ---- evaluators


class PlainPycocotools:
    """The published code; only the conversion of the predictions to its format is added."""

    def __init__(self, json_file: Path):
        with contextlib.redirect_stdout(io.StringIO()):
            self._truth = COCO(json_file)

    def reset(self) -> None:
        self._results: list[dict] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for record, output in zip(inputs, outputs):
            found = ImagePredictions.of(output["instances"])
            self._results += found.to_coco(record["image_id"], {k: k + 1 for k in found.classes.tolist()})

    def evaluate(self) -> dict[str, dict[str, float]]:
        evaluation = COCOeval(self._truth, self._truth.loadRes(self._results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return {"bbox": dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), 100 * evaluation.stats[:6]))}


def build_evaluators(coco: dict, predictions: Sequence[Arrays], folder: Path) -> dict[str, tuple[Any, list]]:
    """Row of the table -> (evaluator, batches). The last row is the reference.

    Evaluators with an output folder also write the predictions there, as in a run.
    """
    json_file = folder / "truth.json"
    json_file.write_text(json.dumps(coco))
    metadata = {
        "json_file": str(json_file),
        "thing_classes": [category["name"] for category in coco["categories"]],
        "thing_dataset_id_to_contiguous_id": {k + 1: k for k in range(len(coco["categories"]))},
    }
    batches = to_batches(predictions, Instances, Boxes)
    if NAME in MetadataCatalog.list():
        MetadataCatalog.remove(NAME)
    MetadataCatalog.get(NAME).set(**metadata)
    rows = {
        "lite": (COCOEvaluator(NAME, output_dir=str(folder / "lite")), batches),
        "pycocotools": (PlainPycocotools(json_file), batches),
    }
    if has_detectron2():
        rows["Detectron2 with COCOeval_opt"] = _detectron2_evaluator(predictions, metadata, folder)
    return rows


def _detectron2_evaluator(predictions: Sequence[Arrays], metadata: dict, folder: Path) -> tuple[Any, list]:
    from detectron2 import data, evaluation, structures

    if NAME in data.MetadataCatalog.list():
        data.MetadataCatalog.remove(NAME)
    data.MetadataCatalog.get(NAME).set(**metadata)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = evaluation.COCOEvaluator(NAME, output_dir=str(folder / "detectron2"), use_fast_impl=True)
    return evaluator, to_batches(predictions, structures.Instances, structures.Boxes)


# ---- measurement


def run_once(evaluator: Any, batches: list) -> tuple[dict[str, float], dict[str, float]]:
    """(metrics, seconds of each part in ``PARTS``)."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.reset()
        start = now("cpu")
        for inputs, outputs in batches:
            evaluator.process(inputs, outputs)
        middle = now("cpu")
        metrics = evaluator.evaluate()["bbox"]
        end = now("cpu")
    return metrics, {"process": middle - start, "evaluate": end - middle, "both": end - start}


def measure(rows: dict[str, tuple[Any, list]], repeats: int) -> dict[str, list[Case]]:
    """Part in ``PARTS`` -> one case for each row, in the order of ``rows``; timed in turns.

    Raises:
        RuntimeError: metrics of a row differ from the last row's by more than ``TOLERANCE``. Nothing is timed then.
    """
    first = {name: run_once(*row)[0] for name, row in rows.items()}  # this also warms up
    reference = list(rows)[-1]
    tables: dict[str, list[Case]] = {part: [] for part in PARTS}
    for name, metrics in first.items():
        difference = _difference(metrics, first[reference])
        if not difference <= TOLERANCE:  # this form also catches NaN
            raise RuntimeError(f"metrics of {name} differ from those of {reference} by {difference:.3g}")
        for cases in tables.values():
            cases.append(Case(name, run=lambda row=rows[name]: run_once(*row), difference=difference))
    order = list(range(len(rows)))
    for number in range(repeats):
        turn = number % len(rows)
        for index in [*order[turn:], *order[:turn]]:
            _, seconds = tables["both"][index].run()
            for part, cases in tables.items():
                cases[index].seconds.append(seconds[part])
    return tables


def _difference(found: dict[str, float], expected: dict[str, float]) -> float:
    """Largest difference among the common metrics; NaN if one side is defined and the other is not."""
    common = [name for name in found if name in expected]
    left, right = (np.array([metrics[name] for name in common], dtype=np.float64) for metrics in (found, expected))
    # An undefined metric is -100 in pycocotools' own summary, and NaN elsewhere.
    left, right = (np.where(values < 0, np.nan, values) for values in (left, right))
    same = np.isnan(left) & np.isnan(right)
    return float(np.max(np.where(same, 0, np.abs(left - right))))


def parse_arguments(title: str, *, repeats: int, images: int) -> Namespace:
    parser = make_parser(title, repeats=repeats)
    parser.add_argument("--images", type=int, default=images)
    parser.add_argument("--detections", type=int, default=100, help="largest number of predictions per image")
    parser.add_argument("--classes", type=int, default=80)
    return parser.parse_args()


def main() -> None:
    settings = parse_arguments("COCO evaluation: lite, Detectron2 and pycocotools", repeats=3, images=5000)
    torch.set_num_threads(settings.threads)
    logging.disable(logging.WARNING)  # every evaluation would log its tables
    coco, predictions = make_data(settings.images, settings.detections, settings.classes)
    header = print_header(settings, boxes=len(coco["annotations"]))
    with tempfile.TemporaryDirectory() as folder:
        tables = measure(build_evaluators(coco, predictions, Path(folder)), settings.repeats)
    for part, cases in tables.items():
        print(format_cases(cases, cases[-1], part), end="\n\n")
    write_cases(settings.json, header, tables)


if __name__ == "__main__":
    main()

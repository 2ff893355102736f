"""Evaluation of the embedded engine against Detectron2's: the same predictions, the same numbers."""

import copy
import json
import logging
import math
from collections import Counter

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2.evaluation", reason="Detectron2 is not installed: nothing to compare with")

from detectron2 import data as d2_data
from detectron2 import evaluation as d2_evaluation
from detectron2.data.datasets import register_coco_instances as d2_register
from detectron2.evaluation.coco_evaluation import instances_to_coco_json as d2_to_json
from detectron2.structures import Boxes as D2Boxes
from detectron2.structures import Instances as D2Instances
from pycocotools import mask as mask_api

from retinanet_ext.d2 import ENGINE
from retinanet_ext.evaluation.coco_predictions import ImagePredictions
from retinanet_ext.lite import data as lite_data
from retinanet_ext.lite import evaluation as lite_evaluation
from retinanet_ext.lite.data.coco_json import register_coco_instances as lite_register
from retinanet_ext.lite.structures import Boxes, Instances
from retinanet_ext.ops import EncodedMasks
from retinanet_ext.training.compact_evaluator import CompactCOCOEvaluator

CATALOGS = (d2_data.DatasetCatalog, lite_data.DatasetCatalog)
METADATA = (d2_data.MetadataCatalog, lite_data.MetadataCatalog)


@pytest.fixture
def forget():
    """Forgets, in both engines, the datasets whose names the test appends."""
    names = []
    yield names
    for name in names:
        for catalog in (*CATALOGS, *METADATA):
            if name in catalog.list():
                catalog.remove(name)


@pytest.fixture
def coco_mini(shared_data, forget):
    """The validation split, registered in both engines; each engine reads it with its own reader."""
    name = "evaluation_contract_coco_mini"
    folder = shared_data / "coco_mini"
    annotations, images = folder / "annotations" / "instances_val2017.json", folder / "val2017"
    for register in (d2_register, lite_register):
        register(name, {}, str(annotations), str(images))
    forget.append(name)
    for catalog in CATALOGS:
        catalog.get(name)
    return name


def _perturbed(records, seed, copies=2):
    """Arrays (boxes XYXY, scores, classes) by image: shifted true boxes, tied scores, wrong classes, noise."""
    rng = np.random.default_rng(seed)
    predictions = {}
    for record in records:
        boxes, classes = [np.zeros((0, 4))], [np.zeros(0, dtype=int)]
        for annotation in record["annotations"]:
            x, y, w, h = annotation["bbox"]
            for _ in range(copies):
                corners = np.array([x, y, x + w, y + h]) + rng.normal(size=4) * 0.06 * math.sqrt(w * h)
                right_class = rng.random() < 0.9
                boxes.append(corners[None])
                classes.append([annotation["category_id"] if right_class else rng.integers(80)])
        noise = int(rng.choice([0, 3, 120]))
        corner = rng.random((noise, 2)) * 300
        boxes.append(np.concatenate([corner, corner + rng.random((noise, 2)) * 200], axis=1))
        classes.append(rng.integers(80, size=noise))
        boxes, classes = np.concatenate(boxes), np.concatenate(classes)
        scores = rng.integers(0, 21, size=len(boxes)) / 20
        predictions[record["image_id"]] = (boxes, scores, classes)
    return predictions


def _instances(arrays, boxes_type, instances_type):
    boxes, scores, classes = arrays
    instances = instances_type((480, 640))
    instances.pred_boxes = boxes_type(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.as_tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.as_tensor(classes, dtype=torch.int64)
    return instances


def _evaluate_both(name, predictions, tmp_path, img_ids=None, **options):
    """Results and written predictions, first of Detectron2, then of lite."""
    found = []
    for engine, types in ((d2_evaluation, (D2Boxes, D2Instances)), (lite_evaluation, (Boxes, Instances))):
        out = tmp_path / engine.__name__
        evaluator = engine.COCOEvaluator(name, output_dir=str(out), **options)
        evaluator.reset()
        for image_id, arrays in predictions.items():
            evaluator.process([{"image_id": image_id}], [{"instances": _instances(arrays, *types)}])
        results = evaluator.evaluate(img_ids)
        found.append((results, json.loads((out / "coco_instances_results.json").read_text())))
    return found


def _assert_same(expected, found):
    assert list(expected) == list(found) == ["bbox"]
    assert list(expected["bbox"]) == list(found["bbox"])
    np.testing.assert_allclose(
        list(found["bbox"].values()), list(expected["bbox"].values()), rtol=0, atol=1e-6, equal_nan=True
    )


@pytest.mark.parametrize(
    "options", [{}, {"use_fast_impl": False}, {"max_dets_per_image": 300}, {"max_dets_per_image": 20}]
)
def test_same_metrics_on_a_coco_file(coco_mini, tmp_path, options):
    records = d2_data.DatasetCatalog.get(coco_mini)
    assert sum(a["iscrowd"] for record in records for a in record["annotations"]) > 0
    assert max(len(record["annotations"]) for record in records) > 20
    predictions = _perturbed(records, seed=0)
    (expected, d2_json), (found, our_json) = _evaluate_both(coco_mini, predictions, tmp_path, **options)
    assert 10 < expected["bbox"]["AP"] < 60
    assert any(math.isnan(value) for value in expected["bbox"].values())
    _assert_same(expected, found)
    by_content = [Counter(json.dumps(result) for result in results) for results in (d2_json, our_json)]
    assert by_content[0] == by_content[1]


def test_same_metrics_on_some_images(coco_mini, tmp_path):
    records = d2_data.DatasetCatalog.get(coco_mini)
    predictions = _perturbed(records, seed=1)
    img_ids = [record["image_id"] for record in records[10:30]]
    (expected, _), (found, _) = _evaluate_both(coco_mini, predictions, tmp_path, img_ids)
    _assert_same(expected, found)


def test_same_metrics_on_plain_dicts(coco_mini, tmp_path, forget):
    """Areas come from polygons and crowd masks here, not from the file."""
    name = "evaluation_contract_plain"
    forget.append(name)
    for catalog, metadata in zip(CATALOGS, METADATA, strict=True):
        records = catalog.get(coco_mini)
        catalog.register(name, lambda records=records: records)
        metadata.get(name).set(thing_classes=metadata.get(coco_mini).thing_classes)
    predictions = _perturbed(d2_data.DatasetCatalog.get(name), seed=2)
    (expected, _), (found, _) = _evaluate_both(name, predictions, tmp_path)
    assert 10 < expected["bbox"]["AP"] < 60
    _assert_same(expected, found)
    d2_coco, our_coco = (
        json.loads((tmp_path / engine.__name__ / f"{name}_coco_format.json").read_text())
        for engine in (d2_evaluation, lite_evaluation)
    )
    assert our_coco["images"] == d2_coco["images"] and our_coco["categories"] == d2_coco["categories"]
    for ours, theirs in zip(our_coco["annotations"], d2_coco["annotations"], strict=True):
        for key in ("image_id", "category_id", "bbox", "iscrowd"):
            assert ours[key] == theirs[key]
        assert ours["area"] == pytest.approx(theirs["area"], rel=1e-6)


def test_same_metrics_on_boxes_at_the_size_borders(tmp_path, forget):
    """Records without masks, string ids, both box modes; sides of 32 and 96 pixels and slightly above and below."""
    name = "evaluation_contract_borders"
    forget.append(name)
    rng = np.random.default_rng(0)
    records = []
    for number in range(12):
        annotations = []
        for _ in range(int(rng.choice([0, 4, 12]))):
            x, y = rng.integers(300, size=2).tolist()
            w, h = rng.choice([31, 32, 33, 95.99, 96, 96.01], size=2).tolist()
            annotations.append(
                {"bbox": [x, y, w, h], "bbox_mode": 1, "category_id": int(rng.integers(80)), "iscrowd": 0}
            )
        record = {"file_name": f"{number}.jpg", "image_id": f"img{number}", "height": 400, "width": 400}
        records.append({**record, "annotations": annotations})
    predictions = _perturbed(records, seed=3)
    in_corners = [
        {
            **record,
            "annotations": [
                {**a, "bbox": [x, y, x + w, y + h], "bbox_mode": 0}
                for a in record["annotations"]
                for x, y, w, h in [a["bbox"]]
            ],
        }
        for record in records[::2]
    ]
    mixed = in_corners + records[1::2]
    for catalog, metadata in zip(CATALOGS, METADATA, strict=True):
        catalog.register(name, lambda: mixed)
        metadata.get(name).set(thing_classes=[f"class {k}" for k in range(80)])
    (expected, _), (found, _) = _evaluate_both(name, predictions, tmp_path)
    assert all(expected["bbox"][key] > 0 for key in ("AP", "APs", "APm", "APl"))
    _assert_same(expected, found)


def _record_with_masks(rng, number):
    """An image with triangles, some with a crowd's mask, with 17 keypoints of which some are not labelled."""
    annotations = []
    for index in range(int(rng.choice([0, 1, 6]))):
        x, y, side = (float(value) for value in rng.integers([5, 5, 20], [90, 90, 100]))
        points = np.stack([x + rng.random(17) * side, y + rng.random(17) * side, rng.integers(3, size=17)], axis=1)
        points[0, 2] = 2
        annotation = {"bbox": [x, y, side, side], "bbox_mode": 1, "category_id": int(rng.integers(2)), "iscrowd": 0}
        annotation |= {"segmentation": [[x, y, x + side, y, x, y + side]], "keypoints": points.ravel().tolist()}
        if index == 5:
            crowd = np.zeros((200, 200), np.uint8, order="F")
            crowd[100:190, 50:180] = 1
            rle = mask_api.encode(crowd)
            annotation |= {"segmentation": rle, "iscrowd": 1, "bbox": [50.0, 100.0, 130.0, 90.0]}
        annotations.append(annotation)
    record = {"file_name": f"{number}.jpg", "image_id": number, "height": 200, "width": 200}
    return {**record, "annotations": annotations}


def _masks_and_keypoints(rng, record):
    """Moved boxes (N, 4) XYXY, scores, classes, masks (N, H, W) and keypoints (N, 17, 3), scores with ties."""
    chosen = [a for a in record["annotations"] for _ in range(int(rng.integers(4)))]
    masks, points, boxes = np.zeros((len(chosen), 200, 200), bool), np.ones((len(chosen), 17, 3)), []
    for mask, found, annotation in zip(masks, points, chosen):
        x, y, w, h = np.array(annotation["bbox"]) + rng.integers(-4, 5, size=4)
        boxes.append([x, y, x + w, y + h])
        rows, columns = np.mgrid[:200, :200]
        mask[:] = (rows >= y) & (columns >= x) & ((rows - y) / h + (columns - x) / w <= 1)
        found[:] = np.array(annotation["keypoints"]).reshape(17, 3) + rng.normal(size=(17, 3)) * 0.05 * w
    arrays = [boxes, rng.integers(8, size=len(chosen)) / 8, [a["category_id"] for a in chosen]]
    return [np.array(array).reshape(len(chosen), *shape) for array, shape in zip(arrays, [(4,), (), ()])] + [
        masks,
        points,
    ]


@pytest.fixture
def masks_and_keypoints(forget):
    """A dataset name known to both engines, and predictions by image id."""
    name = "evaluation_contract_masks"
    forget.append(name)
    rng = np.random.default_rng(4)
    records = [_record_with_masks(rng, number) for number in range(15)]
    for catalog, metadata in zip(CATALOGS, METADATA, strict=True):
        # Detectron2 moves the keypoints of the records in place.
        catalog.register(name, lambda: copy.deepcopy(records))
        metadata.get(name).set(thing_classes=["u", "v"])
    return name, {record["image_id"]: _masks_and_keypoints(rng, record) for record in records}


def _with_masks(arrays, boxes_type, instances_type, encode=False):
    boxes, scores, classes, masks, keypoints = arrays
    instances = _instances((boxes, scores, classes), boxes_type, instances_type)
    instances.pred_masks = EncodedMasks.of(masks, masks.shape[1:]) if encode else torch.as_tensor(masks)
    instances.pred_keypoints = torch.as_tensor(keypoints, dtype=torch.float32)
    return instances


def _evaluate_masks(evaluator, predictions, out, *types, **options):
    evaluator.reset()
    for image_id, arrays in predictions.items():
        evaluator.process([{"image_id": image_id}], [{"instances": _with_masks(arrays, *types, **options)}])
    results = evaluator.evaluate()
    return results, json.loads((out / "coco_instances_results.json").read_text())


@pytest.mark.parametrize("options", [{}, {"use_fast_impl": False}, {"kpt_oks_sigmas": [0.05] * 17}])
def test_same_metrics_of_masks_and_keypoints(masks_and_keypoints, tmp_path, options):
    """Also if masks come as RLE. The evaluator that the trainer uses on Detectron2 is the third."""
    name, predictions = masks_and_keypoints
    theirs = d2_evaluation.COCOEvaluator(name, output_dir=str(tmp_path / "theirs"), **options)
    expected, d2_json = _evaluate_masks(theirs, predictions, tmp_path / "theirs", D2Boxes, D2Instances)
    assert list(expected) == ["bbox", "keypoints", "segm"] and 10 < expected["segm"]["AP"] < 90
    ours = [(lite_evaluation.COCOEvaluator, Boxes, Instances)]
    if ENGINE == "detectron2":
        ours.append((CompactCOCOEvaluator, D2Boxes, D2Instances))
    for number, (evaluator, *types) in enumerate(ours):
        for encode in (False, True):
            out = tmp_path / f"{number}{encode}"
            evaluation = evaluator(name, output_dir=str(out), **options)
            found, our_json = _evaluate_masks(evaluation, predictions, out, *types, encode=encode)
            assert our_json == d2_json
            assert {task: list(metrics) for task, metrics in found.items()} == {
                task: list(metrics) for task, metrics in expected.items()
            }
            for task, metrics in expected.items():
                np.testing.assert_allclose(
                    list(found[task].values()), list(metrics.values()), rtol=0, atol=1e-9, equal_nan=True
                )


def test_same_answer_without_predictions(coco_mini):
    for processed, expected_keys in ((False, []), (True, ["AP", "AP50", "AP75", "APs", "APm", "APl"])):
        for engine, types in ((d2_evaluation, (D2Boxes, D2Instances)), (lite_evaluation, (Boxes, Instances))):
            evaluator = engine.COCOEvaluator(coco_mini)
            evaluator.reset()
            if processed:
                evaluator.process([{"image_id": 139}], [{"instances": _instances(([], [], []), *types)}])
            metrics = evaluator.evaluate().get("bbox", {})
            assert list(metrics) == expected_keys
            assert all(math.isnan(value) for value in metrics.values())


def test_same_json_for_one_image():
    arrays = ([[1.1, 2.2, 3.3, 4.4], [0, 0, 639.5, 480]], [0.3, 1.0], [2, 79])
    for rows in (slice(None), slice(0)):
        chosen = tuple(part[rows] for part in arrays)
        ours = ImagePredictions.of(_instances(chosen, Boxes, Instances)).to_coco("a", {2: 2, 79: 79})
        assert ours == d2_to_json(_instances(chosen, D2Boxes, D2Instances), "a")


def _lines_logged(logger_name, call):
    """The messages a logger receives during a call, independent of handlers and levels that earlier runs set up."""
    lines = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        call()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return lines


def test_same_csv_lines():
    results = {"bbox": {"AP": 12.34567, "AP50": float("nan"), "AP-cat": 1.0}, "seconds": 3.5}
    theirs = _lines_logged(d2_evaluation.print_csv_format.__module__, lambda: d2_evaluation.print_csv_format(results))
    ours = _lines_logged(lite_evaluation.print_csv_format.__module__, lambda: lite_evaluation.print_csv_format(results))
    assert ours == theirs and len(ours) == 4


def test_same_order_of_calls():
    """Reset, callbacks, batches and evaluation, with several evaluators in a list."""
    traces = []
    for engine in (d2_evaluation, lite_evaluation):
        trace = []

        class Tracer(engine.DatasetEvaluator):
            def __init__(self, name, trace=trace):
                self.name, self.trace = name, trace

            def reset(self):
                self.trace.append((self.name, "reset"))

            def process(self, inputs, outputs):
                self.trace.append((self.name, inputs, outputs))

            def evaluate(self):
                self.trace.append((self.name, "evaluate"))
                return {self.name: {"m": 1.0}}

        names = ("on_start", "before_inference", "after_inference", "on_end")
        callbacks = {name: lambda name=name, trace=trace: trace.append(name) for name in names}
        results = engine.inference_on_dataset(len, [["x"], ["y", "z"]], [Tracer("a"), Tracer("b")], callbacks)
        traces.append((trace, dict(results)))
    assert traces[0] == traces[1]
    assert len(traces[1][0]) == 14

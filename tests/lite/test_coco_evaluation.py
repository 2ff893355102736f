"""Box AP of the embedded engine: values worked out by hand, ids, conversions, and the log when AP is undefined.

Boxes in these tests are XYXY unless the name says XYWH.
"""

import json
import logging
import math
import random

import pytest
import torch

from retinanet_ext.evaluation.coco_predictions import ImagePredictions
from retinanet_ext.lite.cfg_node import get_cfg
from retinanet_ext.lite.data.catalog import DatasetCatalog, MetadataCatalog
from retinanet_ext.lite.evaluation import COCOEvaluator
from retinanet_ext.lite.structures import Boxes, BoxMode, Instances


@pytest.fixture
def register():
    """Registers records (or metadata alone) under a fresh name, and removes them after the test."""
    names = []

    def do_register(records=None, **metadata):
        name = f"evaluation_test_{len(names)}"
        names.append(name)
        if records is not None:
            DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield do_register
    for name in names:
        MetadataCatalog.remove(name)
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)


def _record(image_id, *annotations):
    """annotations: (class, box) or (class, box, iscrowd)."""
    return {
        "file_name": f"{image_id}.jpg",
        "image_id": image_id,
        "height": 400,
        "width": 400,
        "annotations": [
            {"category_id": a[0], "bbox": a[1], "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": int(len(a) > 2)}
            for a in annotations
        ],
    }


def _predict(*detections):
    """detections: (class, box, score)."""
    return Instances(
        (400, 400),
        pred_boxes=Boxes(torch.tensor([d[1] for d in detections], dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor([d[2] for d in detections], dtype=torch.float32),
        pred_classes=torch.tensor([d[0] for d in detections], dtype=torch.int64),
    )


def _evaluate(evaluator, predictions):
    """predictions: {image_id: Instances}."""
    evaluator.reset()
    for image_id, instances in predictions.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


BIG, FAR = [0, 0, 100, 100], [200, 200, 300, 300]


@pytest.mark.parametrize("use_fast_impl", [True, False])
def test_interpolated_precision(register, use_fast_impl):
    """By descending score: hit, miss, hit; there are 2 objects. Precision is 1 up to recall 0.5, then 2/3.

    Of the 101 recall points 0, 0.01 ... 1, the first 51 are up to 0.5: AP = (51 + 50 * 2/3) / 101.
    The miss is of medium size, so it does not count against APl.
    """
    name = register([_record(1, (0, BIG), (0, FAR))], thing_classes=["thing"])
    evaluator = COCOEvaluator(name, use_fast_impl=use_fast_impl)
    predictions = {1: _predict((0, BIG, 0.9), (0, [0, 300, 50, 350], 0.8), (0, FAR, 0.7))}
    bbox = _evaluate(evaluator, predictions)["bbox"]
    expected = 100 * (51 + 50 * 2 / 3) / 101
    # As in Detectron2, a single class has no AP of its own.
    assert list(bbox) == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    for key in ("AP", "AP50", "AP75"):
        assert bbox[key] == pytest.approx(expected, abs=1e-9)
    assert bbox["APl"] == pytest.approx(100)
    assert math.isnan(bbox["APs"]) and math.isnan(bbox["APm"])


@pytest.mark.parametrize("use_fast_impl", [True, False])
def test_iou_thresholds_and_classes(register, use_fast_impl):
    """IoU 0.62 counts at 0.5, 0.55 and 0.6 of the ten thresholds; the other class is found exactly."""
    name = register([_record("x", (0, BIG)), _record("y", (1, FAR))], thing_classes=["loose", "exact"])
    evaluator = COCOEvaluator(name, use_fast_impl=use_fast_impl)
    bbox = _evaluate(evaluator, {"x": _predict((0, [0, 0, 100, 62], 0.5)), "y": _predict((1, FAR, 0.1))})["bbox"]
    assert bbox["AP-loose"] == pytest.approx(30)
    assert bbox["AP-exact"] == pytest.approx(100)
    assert (bbox["AP"], bbox["AP50"], bbox["AP75"]) == pytest.approx((65, 100, 50))


def test_predictions_in_a_crowd_region_count_for_nothing(register):
    name = register([_record(1, (0, BIG), (0, [150, 150, 390, 390], "crowd"))], thing_classes=["thing"])
    predictions = {1: _predict((0, FAR, 0.9), (0, [160, 160, 200, 200], 0.8), (0, BIG, 0.3))}
    assert _evaluate(COCOEvaluator(name), predictions)["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("side, sizes", [(31, "s"), (32, "sm"), (33, "m"), (96, "ml"), (97, "l")])
def test_areas_at_the_borders_of_the_ranges(register, side, sizes):
    box = [5, 5, 5 + side, 5 + side]
    name = register([_record(1, (0, box))], thing_classes=["thing"])
    bbox = _evaluate(COCOEvaluator(name), {1: _predict((0, box, 0.5))})["bbox"]
    assert "".join(size for size in "sml" if not math.isnan(bbox[f"AP{size}"])) == sizes


def test_max_dets_per_image(register):
    """Three objects, each with a prediction; 1, 2 or 3 predictions count: recall 1/3, 2/3, 1."""
    boxes = [[100 * i, 0, 100 * i + 90, 90] for i in range(3)]
    name = register([_record(1, *((0, box) for box in boxes))], thing_classes=["thing"])
    predictions = {1: _predict(*((0, box, 0.9 - i / 10) for i, box in enumerate(boxes)))}
    # 101 recall points: 34 up to 1/3, 67 up to 2/3.
    for max_dets, expected in ((1, 34 / 101), (2, 67 / 101), (3, 1), (None, 1)):
        bbox = _evaluate(COCOEvaluator(name, max_dets_per_image=max_dets), predictions)["bbox"]
        assert bbox["AP"] == pytest.approx(100 * expected), max_dets
    with pytest.raises(ValueError, match="positive integer, found 0"):
        COCOEvaluator(name, max_dets_per_image=0)


def test_more_objects_than_predictions_count_is_said(register, caplog):
    boxes = [[3 * i, 0, 3 * i + 2, 9] for i in range(101)]
    name = register([_record(7, *((0, box) for box in boxes))], thing_classes=["thing"])
    COCOEvaluator(name)
    assert "1 images have more than 100 objects (image 7 has 101)" in caplog.text
    caplog.clear()
    COCOEvaluator(name, max_dets_per_image=101)
    assert "objects" not in caplog.text


def _coco_file(tmp_path, annotations, image_ids=(1, 2), categories=((3, "cat"), (8, "dog")), file_name="gt.json"):
    content = {
        "images": [{"id": i, "width": 400, "height": 400, "file_name": f"{i}.jpg"} for i in image_ids],
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": annotations,
    }
    path = tmp_path / file_name
    path.write_text(json.dumps(content))
    return str(path)


def test_category_ids_of_a_file_are_mapped_and_written(register, tmp_path):
    """Class 1 of the model is category 8 of the file. The file gives no `area` and no `iscrowd`."""
    xywh = [10, 20, 100, 100]
    path = _coco_file(tmp_path, [{"id": 1, "image_id": 2, "category_id": 8, "bbox": xywh}])
    name = register(json_file=path, thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={3: 0, 8: 1})
    out = tmp_path / "out"
    bbox = _evaluate(COCOEvaluator(name, output_dir=str(out)), {2: _predict((1, [10, 20, 110, 120], 0.5))})["bbox"]
    assert bbox["AP"] == pytest.approx(100)
    assert bbox["AP-dog"] == pytest.approx(100) and math.isnan(bbox["AP-cat"])
    assert json.loads((out / "coco_instances_results.json").read_text()) == [
        {"image_id": 2, "category_id": 8, "bbox": [10.0, 20.0, 100.0, 100.0], "score": 0.5}
    ]
    written = {"coco_instances_results.json", "ground_truth.json", "operating_thresholds.json", "evaluation.json"}
    assert {path.name for path in out.iterdir()} == written  # and no copy of the ground truth


def test_class_mapping_is_there_although_the_dataset_was_not_loaded_yet(register, tmp_path):
    path = _coco_file(tmp_path, [{"id": 1, "image_id": 1, "category_id": 8, "bbox": [0, 0, 50, 50]}])
    name = register(json_file=path)

    def load():
        MetadataCatalog.get(name).set(thing_dataset_id_to_contiguous_id={3: 0, 8: 1}, thing_classes=["a", "b"])
        return []

    DatasetCatalog.register(name, load)
    assert _evaluate(COCOEvaluator(name), {1: _predict((1, [0, 0, 50, 50], 0.5))})["bbox"]["AP-b"] == pytest.approx(100)


def test_annotation_ids_do_not_matter(register, tmp_path):
    """pycocotools would read id 0 as "no match", and equal ids as one annotation."""
    boxes = [[0, 0, 50, 50], [100, 0, 50, 50], [0, 100, 50, 50]]
    predictions = {1: _predict(*((0, [x, y, x + w, y + h], 0.5) for x, y, w, h in boxes))}
    for number, ids in enumerate([(1, 2, 3), (0, 1, 2), (5, 5, 5)]):
        annotations = [
            {"id": i, "image_id": 1, "category_id": 3, "bbox": box} for i, box in zip(ids, boxes, strict=True)
        ]
        name = register(
            json_file=_coco_file(tmp_path, annotations, file_name=f"{number}.json"),
            thing_dataset_id_to_contiguous_id={3: 0, 8: 1},
        )
        assert _evaluate(COCOEvaluator(name), predictions)["bbox"]["AP"] == pytest.approx(100), ids


def test_categories_that_are_no_class_are_left_out_and_named(register, tmp_path, caplog):
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 8, "bbox": [0, 0, 50, 50]},
        {"id": 2, "image_id": 1, "category_id": 3, "bbox": [0, 0, 50, 50]},
    ]
    name = register(
        json_file=_coco_file(tmp_path, annotations),
        thing_classes=["dog"],
        thing_dataset_id_to_contiguous_id={8: 0},
    )
    bbox = _evaluate(COCOEvaluator(name), {1: _predict((0, [0, 0, 50, 50], 0.5))})["bbox"]
    assert "1 annotations of" in caplog.text and "ids [3]" in caplog.text
    assert bbox["AP"] == pytest.approx(100) and len(bbox) == 6


def test_dicts_are_converted_and_written(register, tmp_path):
    """Areas: half of 200 for the 10x20 triangle, 6 for the RLE, else that of the box. Boxes come in two modes."""
    record = _record("a")
    record["annotations"] = [
        {"category_id": 0, "bbox": [10, 10, 30, 40], "bbox_mode": BoxMode.XYXY_ABS},
        {
            "category_id": 1,
            "bbox": [0, 0, 10, 20],
            "bbox_mode": BoxMode.XYWH_ABS,
            "segmentation": [[0, 0, 10, 0, 0, 20]],
        },
        {
            "category_id": 1,
            "bbox": [0, 0, 4, 3],
            "bbox_mode": BoxMode.XYWH_ABS,
            "segmentation": {"size": [3, 4], "counts": [2, 6, 4]},
            "iscrowd": 1,
        },
    ]
    before = json.dumps(record)
    name = register([record], thing_classes=["u", "v"])
    COCOEvaluator(name, output_dir=str(tmp_path))
    written = json.loads((tmp_path / f"{name}_coco_format.json").read_text())
    assert written["categories"] == [{"id": 0, "name": "u"}, {"id": 1, "name": "v"}]
    assert written["images"] == [{"id": "a", "width": 400, "height": 400, "file_name": "a.jpg"}]
    assert written["annotations"] == [
        {"id": 1, "image_id": "a", "category_id": 0, "bbox": [10, 10, 20, 30], "area": 600, "iscrowd": 0},
        {"id": 2, "image_id": "a", "category_id": 1, "bbox": [0, 0, 10, 20], "area": 100, "iscrowd": 0}
        | {"segmentation": [[0, 0, 10, 0, 0, 20]]},
        {"id": 3, "image_id": "a", "category_id": 1, "bbox": [0, 0, 4, 3], "area": 6, "iscrowd": 1}
        | {"segmentation": {"size": [3, 4], "counts": [2, 6, 4]}},
    ]
    assert json.dumps(record) == before


def test_order_of_processing_does_not_matter(register):
    """Equal scores everywhere, so that any dependence on order would show."""
    rng = random.Random(0)
    records, predictions = [], {}
    for image_id in range(12):
        boxes = [[x, y, x + 40, y + 40] for x, y in ((rng.randint(0, 300), rng.randint(0, 300)) for _ in "12345")]
        records.append(_record(image_id, *((rng.randint(0, 1), box) for box in boxes)))
        moved = [[c + rng.randint(-8, 8) for c in box] for box in boxes]
        predictions[image_id] = _predict(*((rng.randint(0, 1), box, rng.choice([0.25, 0.5])) for box in moved))
    evaluator = COCOEvaluator(register(records, thing_classes=["u", "v"]))
    forward = _evaluate(evaluator, predictions)
    assert 0 < forward["bbox"]["AP"] < 100
    shuffled = list(predictions.items())
    rng.shuffle(shuffled)
    # Compared as text, because NaN is not equal to itself.
    assert str(_evaluate(evaluator, dict(shuffled))) == str(forward)
    twice = [*predictions.items(), *shuffled[:5]]
    evaluator.reset()
    for image_id, instances in twice:
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    assert str(evaluator.evaluate()) == str(forward)


def test_predictions_of_all_processes_are_merged(register, monkeypatch, tmp_path):
    """A padding sampler gives image 1 to both processes; the second has no results to return."""
    records = [_record(i, (0, BIG)) for i in (1, 2)]
    evaluator = COCOEvaluator(register(records, thing_classes=["thing"]), output_dir=str(tmp_path))
    other = {i: ImagePredictions.of(_predict((0, BIG, score))) for i, score in ((1, 0.5), (2, 0.4))}
    evaluator.process([{"image_id": 1}], [{"instances": _predict((0, BIG, 0.5))}])
    gather = "retinanet_ext.lite.comm.gather"
    monkeypatch.setattr(gather, lambda data, dst: [data, other])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    monkeypatch.setattr(gather, lambda data, dst: [])
    monkeypatch.setattr("retinanet_ext.lite.comm.is_main_process", lambda: False)
    assert evaluator.evaluate() == {}


def test_only_some_images(register):
    evaluator = COCOEvaluator(register([_record(1, (0, BIG)), _record(2, (0, BIG))], thing_classes=["thing"]))
    evaluator.process([{"image_id": 1}], [{"instances": _predict((0, BIG, 0.5))}])
    evaluator.process([{"image_id": 2}], [{"instances": _predict((0, FAR, 0.9))}])
    assert evaluator.evaluate(img_ids=[1])["bbox"]["AP"] == pytest.approx(100)
    assert evaluator.evaluate(img_ids=[2])["bbox"]["AP"] == 0


def test_nothing_processed_or_predicted(register, caplog, tmp_path):
    evaluator = COCOEvaluator(register([_record(1, (0, BIG))], thing_classes=["thing"]), output_dir=str(tmp_path))
    assert evaluator.evaluate() == {}
    assert "no output with `instances`" in caplog.text
    bbox = _evaluate(evaluator, {1: _predict()})["bbox"]
    assert list(bbox) == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert all(math.isnan(value) for value in bbox.values())
    assert "Nothing was predicted" in caplog.text and "SCORE_THRESH_TEST" in caplog.text
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []


def test_log_says_why_a_number_is_missing(register, caplog):
    caplog.set_level(logging.INFO)
    records = [_record(1, (0, BIG)), _record(2)]
    evaluator = COCOEvaluator(register(records, thing_classes=["thing", "never"]))
    bbox = _evaluate(evaluator, {1: _predict((1, BIG, 0.25))})["bbox"]
    assert bbox["AP50"] == 0
    assert "1 of 2 images" in caplog.text and "Ids: [2]" in caplog.text
    assert "APs is NaN: no object is small" in caplog.text
    assert "AP-never is NaN: the ground truth has no object of the class 'never'" in caplog.text
    assert "Highest score 0.250. Predictions by class: never 1. Objects by class: thing 1." in caplog.text


def test_a_dataset_without_objects(register, caplog):
    evaluator = COCOEvaluator(register([_record(1, (0, BIG, "crowd"))], thing_classes=["thing"]))
    assert math.isnan(_evaluate(evaluator, {1: _predict((0, BIG, 0.5))})["bbox"]["AP"])
    assert "AP is NaN: no single object: all 1 are crowds" in caplog.text


def test_a_file_without_annotations(register, tmp_path, caplog):
    path = tmp_path / "test.json"
    path.write_text(json.dumps({"images": [{"id": 1}], "categories": [{"id": 4, "name": "thing"}]}))
    name = register(json_file=str(path), thing_dataset_id_to_contiguous_id={4: 0})
    caplog.set_level(logging.INFO)
    assert _evaluate(COCOEvaluator(name, output_dir=str(tmp_path)), {1: _predict((0, BIG, 0.5))}) == {}
    assert "has no annotations" in caplog.text
    assert json.loads((tmp_path / "coco_instances_results.json").read_text())[0]["category_id"] == 4


def test_the_old_signature_with_a_config(register, tmp_path, caplog):
    name = register([_record(1, (0, BIG))], thing_classes=["thing"])
    evaluator = COCOEvaluator(name, get_cfg(), False, str(tmp_path))
    assert "cfg has no effect" in caplog.text
    assert _evaluate(evaluator, {1: _predict((0, BIG, 0.5))})["bbox"]["AP"] == pytest.approx(100)
    assert (tmp_path / "coco_instances_results.json").exists()


def test_errors_name_what_is_wrong(register, tmp_path):
    name = register([_record(1, (0, BIG))], thing_classes=["thing"])
    with pytest.raises(ValueError, match=r"class 4 was predicted on image 1.*NUM_CLASSES"):
        _evaluate(COCOEvaluator(name), {1: _predict((4, BIG, 0.5))})
    with pytest.raises(ValueError, match=r"ids \['x'\], but it has ids like \[1\]"):
        _evaluate(COCOEvaluator(name), {"x": _predict((0, BIG, 0.5))})
    for tasks in ("bbox", (), ("bbox", "panoptic")):
        with pytest.raises(ValueError, match="cannot be evaluated; legal"):
            COCOEvaluator(name, tasks=tasks)
    for tasks, field in ((("segm",), "segmentation"), (("bbox", "keypoints"), "keypoints")):
        with pytest.raises(ValueError, match=f"none has `{field}`. Add it, or leave out"):
            COCOEvaluator(name, tasks=tasks)
    COCOEvaluator(name, tasks=("bbox",))
    with pytest.raises(ValueError, match="annotation 0 of 1.jpg has category_id 3; legal: 0 to 0"):
        COCOEvaluator(register([_record(1, (3, BIG))], thing_classes=["thing"]))
    with pytest.raises(ValueError, match="several images share an id"):
        twice = register([_record(1, (0, BIG)), _record(1)], thing_classes=["thing"])
        _evaluate(COCOEvaluator(twice), {1: _predict((0, BIG, 0.5))})
    with pytest.raises(ValueError, match="thing_classes"):
        COCOEvaluator(register([_record(1)]))
    with pytest.raises(KeyError, match="not_registered_at_all"):
        COCOEvaluator("not_registered_at_all")
    for number, text in enumerate(("[]", '{"images": []}', "not json")):
        (tmp_path / f"{number}.json").write_text(text)
        with pytest.raises(ValueError, match=f"{number}.json is not a COCO annotation file"):
            COCOEvaluator(register(json_file=str(tmp_path / f"{number}.json")))
    no_box = [{"id": 9, "image_id": 1, "category_id": 3}]
    with pytest.raises(ValueError, match="annotation 9 of image 1 needs a bbox"):
        path = _coco_file(tmp_path, no_box)
        broken = register(json_file=path, thing_dataset_id_to_contiguous_id={3: 0})
        _evaluate(COCOEvaluator(broken), {1: _predict((0, BIG, 0.5))})


def test_nothing_reaches_standard_output(register, capsys, monkeypatch):
    # A run that was set up earlier in this process may send the log to standard output, which is allowed.
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "handlers", [])
    name = register([_record(1, (0, BIG))], thing_classes=["thing"])
    for use_fast_impl in (True, False):
        _evaluate(COCOEvaluator(name, use_fast_impl=use_fast_impl), {1: _predict((0, BIG, 0.5))})
    assert capsys.readouterr().out == ""

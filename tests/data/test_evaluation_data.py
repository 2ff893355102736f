"""What the checks leave out of a dataset is left out of its ground truth too, on either engine."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import Boxes, COCOEvaluator, DatasetCatalog, Instances, MetadataCatalog
from retinanet_ext.data.checked_records import data_counts, dataset_for_evaluation, load_checked_dicts
from retinanet_ext.evaluation.ground_truth import GroundTruth
from retinanet_ext.evaluation.protocol import Protocol

pytestmark = pytest.mark.usefixtures("catalogs")

BOX = {"category_id": 3, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}


def write(folder, images, annotations, **content):
    """A COCO set of 40x30 images named by their ids; the last image is cut short."""
    rng = np.random.default_rng(0)
    for image_id in images:
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(folder / f"{image_id}.jpg")
    data = (folder / f"{images[-1]}.jpg").read_bytes()
    (folder / f"{images[-1]}.jpg").write_bytes(data[: len(data) // 2])
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in images],
        "annotations": [{"id": n, **annotation} for n, annotation in enumerate(annotations, start=1)],
        "categories": [{"id": 3, "name": "cat"}],
        **content,
    }
    (folder / "cats.json").write_text(json.dumps(content))


def config(folder, *opts, **item):
    item = {"NAME": "cats", "FORMAT": "coco", "JSON": str(folder / "cats.json"), "IMAGES": str(folder), **item}
    words = ["DATASETS.CUSTOM", str([item]), "DATASETS.TRAIN", "()", "DATASETS.TEST", "('cats',)"]
    return load_config(None, [*words, "OUTPUT_DIR", str(folder / "out"), *opts])


def metrics(cfg, annotations_found):
    """Box metrics on `cats` if exactly the given boxes are found, image id -> boxes in XYXY."""
    evaluator = COCOEvaluator(dataset_for_evaluation(cfg, "cats"), tasks=("bbox",), distributed=False)
    evaluator.reset()
    for record in load_checked_dicts(cfg, ["cats"], filter_empty=False):
        boxes = annotations_found.get(record["image_id"], [])
        instances = Instances((30, 40))
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.ones(len(boxes))
        instances.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def test_an_image_that_was_dropped_does_not_count_as_missed(tmp_path, caplog):
    write(tmp_path, [1, 2, 3], [{**BOX, "image_id": 1}, {**BOX, "image_id": 2}, {**BOX, "image_id": 3}])
    with pytest.raises(ValueError, match="unreadable image: .*3.jpg"):
        dataset_for_evaluation(config(tmp_path), "cats")
    cfg = config(tmp_path, "DATASETS.ON_BAD_IMAGE", "drop")
    found = {1: [[5, 5, 25, 25]], 2: [[5, 5, 25, 25]]}
    # With the third image in the ground truth, recall would end at 2/3.
    assert metrics(cfg, found)["AP"] == pytest.approx(100.0)
    assert data_counts(cfg, "cats") == {"images": 2, "images_left_out": 1, "annotations_left_out": 0}
    assert "Evaluation on 'cats': 2 images, without 1 that DATASETS.ON_BAD_IMAGE left out" in caplog.text
    assert len(json.loads((tmp_path / "cats.json").read_text())["images"]) == 3  # the user's file stays as it is


def test_annotations_follow_their_policy(tmp_path):
    flat = {**BOX, "bbox": [5, 5, 0, 20]}
    outside = {**BOX, "bbox": [30, 5, 20, 20], "area": 400}
    crowd_as_text = {**BOX, "bbox": [1, 1, 3, 3], "iscrowd": "0", "area": 9}
    write(tmp_path, [1, 2], [{**a, "image_id": 1} for a in (BOX, flat, outside, crowd_as_text)])
    cfg = config(tmp_path, "DATASETS.ON_BAD_IMAGE", "drop", "DATASETS.ON_BAD_ANNOTATION", "clip")
    name = dataset_for_evaluation(cfg, "cats")
    content = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
    assert [image["id"] for image in content["images"]] == [1]
    assert [(a["id"], a["bbox"], a["area"], a["iscrowd"]) for a in content["annotations"]] == [
        (1, [5, 5, 20, 20], 400, 0), (3, [30, 5, 10, 20], 200, 0), (4, [1, 1, 3, 3], 9, 0),
    ]  # fmt: skip
    assert data_counts(cfg, "cats")["annotations_left_out"] == 1
    assert metrics(cfg, {1: [[5, 5, 25, 25], [30, 5, 40, 25], [1, 1, 4, 4]]})["AP"] == pytest.approx(100.0)


def test_a_set_that_other_code_registered(tmp_path):
    """Its annotations have no ids in the records; they are found by their content."""
    write(tmp_path, [1, 2, 3], [{**BOX, "image_id": 1}, {**BOX, "image_id": 1, "bbox": [1, 1, 0, 4]}])
    records = [
        {"file_name": str(tmp_path / f"{i}.jpg"), "image_id": i, "width": 40, "height": 30, "annotations": []}
        for i in (1, 2, 3)
    ]
    boxes = ([5, 5, 20, 20], [1, 1, 0, 4])
    records[0]["annotations"] = [{"bbox": b, "bbox_mode": 1, "category_id": 0, "iscrowd": 0} for b in boxes]
    DatasetCatalog.register("cats", lambda: records)
    MetadataCatalog.get("cats").set(
        thing_classes=["cat"], thing_dataset_id_to_contiguous_id={3: 0}, json_file=str(tmp_path / "cats.json"),
        evaluator_type="coco",
    )  # fmt: skip
    words = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "('cats',)", "OUTPUT_DIR", str(tmp_path / "out")]
    cfg = load_config(None, [*words, "DATASETS.ON_BAD_IMAGE", "drop", "DATASETS.ON_BAD_ANNOTATION", "drop"])
    assert metrics(cfg, {1: [[5, 5, 25, 25]]})["AP"] == pytest.approx(100.0)
    content = json.loads((tmp_path / "out" / "inference" / "cats" / "checked_annotations.json").read_text())
    assert [i["id"] for i in content["images"]] == [1, 2] and [a["id"] for a in content["annotations"]] == [1]


def test_areas_and_crowd_flags_that_a_file_lacks(tmp_path):
    """pycocotools fails on their absence, which would be after the training."""
    write(tmp_path, [1, 2], [{"image_id": 1, "category_id": 3, "bbox": [5, 5, 20, 20]}])
    cfg = config(tmp_path, "DATASETS.ON_BAD_IMAGE", "drop")
    assert metrics(cfg, {1: [[5, 5, 25, 25]]})["APs"] == pytest.approx(100.0)  # 20 x 20 is a small object


def test_a_part_of_a_file_is_evaluated_alone(tmp_path):
    ids = list(range(12))
    write(tmp_path, [*ids, 99], [{**BOX, "image_id": i, "area": 2000} for i in ids])
    cfg = config(tmp_path, "DATASETS.ON_BAD_IMAGE", "drop", PART=[0, 0.5])
    part = [r["image_id"] for r in load_checked_dicts(cfg, ["cats"], filter_empty=False)]
    assert 0 < len(part) < 12
    result = metrics(cfg, {i: [[5, 5, 25, 25]] for i in part})
    # The areas are those of the file, not of the boxes: medium, not small.
    assert result["AP"] == pytest.approx(100.0) and result["APm"] == pytest.approx(100.0) and np.isnan(result["APs"])


def test_data_without_faults_are_evaluated_as_they_are(tmp_path):
    write(tmp_path, [1, 2], [{**BOX, "image_id": 1}])
    cfg = config(tmp_path, "DATASETS.CHECK_IMAGES", "header")
    assert dataset_for_evaluation(cfg, "cats") == "cats" and not (tmp_path / "out").exists()


def test_a_test_set_without_annotations(tmp_path):
    write(tmp_path, [1, 2], [])
    content = json.loads((tmp_path / "cats.json").read_text())
    del content["annotations"]
    (tmp_path / "cats.json").write_text(json.dumps(content))
    records = [{"file_name": str(tmp_path / f"{i}.jpg"), "image_id": i, "width": 40, "height": 30} for i in (1, 2)]
    DatasetCatalog.register("cats", lambda: records)
    MetadataCatalog.get("cats").set(
        thing_classes=["cat"], json_file=str(tmp_path / "cats.json"), evaluator_type="coco"
    )
    words = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "('cats',)", "OUTPUT_DIR", str(tmp_path / "out")]
    name = dataset_for_evaluation(load_config(None, [*words, "DATASETS.ON_BAD_IMAGE", "drop"]), "cats")
    content = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
    assert [i["id"] for i in content["images"]] == [1] and "annotations" not in content


@pytest.mark.parametrize(
    ("field", "value", "legal"),
    [("area", "x", "a number, or no area"), ("area", [3], "a number"), ("iscrowd", "1", "0 or 1, as numbers")],
)
def test_values_that_an_evaluation_would_stop_at_are_refused_before_it(field, value, legal):
    annotations = [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, field: value}]
    coco = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": annotations}
    with pytest.raises(ValueError, match=rf"(?s)data.json: 1 values.*annotation 7 of .*: {field} .*legal: {legal}"):
        Protocol(("bbox",)).check_truth(GroundTruth.of(coco, "data.json"))

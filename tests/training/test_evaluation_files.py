"""What an evaluation leaves is enough to repeat its statistics without the dataset; on both engines."""

import json
import logging
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet_ext import d2
from retinanet_ext.ablation.run import _flat_metrics
from retinanet_ext.evaluation.average_precision import average_precision, summarize
from retinanet_ext.evaluation.image_matches import match_dataset
from retinanet_ext.evaluation.result_files import find_evaluations, read_evaluation, read_result_files
from retinanet_ext.training.compact_evaluator import DefaultCOCOEvaluator
from retinanet_ext.training.explained_results import write_intervals
from retinanet_ext.training.trainer import Trainer
from tests.builders import shapes_config

NAME = "evaluation_files_test"


@pytest.fixture
def pets(tmp_path):
    """Two images of cats and dogs, as a COCO file with category ids 3 and 8, and the folder of the images."""
    images, annotations = [], []
    for n in (1, 2, 3):
        Image.new("RGB", (64, 48)).save(tmp_path / f"{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "width": 64, "height": 48})
        for k, box in ((3, [4.5, 4, 20, 20]), (8, [30, 8, 30, 36])):
            annotation = {"image_id": n, "category_id": k, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **annotation})
    categories = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "pets.json").write_text(json.dumps(content))
    yield tmp_path
    for name in list(d2.DatasetCatalog.data):
        if name == NAME:
            d2.DatasetCatalog.remove(name)
            d2.MetadataCatalog.remove(name)


def register_file(folder):
    d2.DatasetCatalog.register(NAME, list)
    d2.MetadataCatalog.get(NAME).set(
        json_file=str(folder / "pets.json"), image_root=str(folder), evaluator_type="coco",
        thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={3: 0, 8: 1},
    )  # fmt: skip


def register_dicts(folder):
    content = json.loads((folder / "pets.json").read_text())
    dicts = [
        {
            "file_name": str(folder / image["file_name"]), "image_id": image["id"], "height": 48, "width": 64,
            "annotations": [
                {"bbox": a["bbox"], "bbox_mode": d2.BoxMode.XYWH_ABS, "category_id": {3: 0, 8: 1}[a["category_id"]],
                 "iscrowd": 0}
                for a in content["annotations"] if a["image_id"] == image["id"]
            ],
        }
        for image in content["images"]
    ]  # fmt: skip
    d2.DatasetCatalog.register(NAME, lambda: dicts)
    d2.MetadataCatalog.get(NAME).set(evaluator_type="coco", thing_classes=["cat", "dog"])


def evaluate(output_dir, predictions):
    """Metrics of {image id: [(class, XYXY box, score)]}."""
    evaluator = DefaultCOCOEvaluator(NAME, output_dir=str(output_dir), distributed=False, allow_cached_coco=False)
    evaluator.reset()
    for image_id, found in predictions.items():
        instances = d2.Instances((48, 64))
        instances.pred_boxes = d2.Boxes(torch.tensor([box for _, box, _ in found], dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.tensor([score for *_, score in found], dtype=torch.float32)
        instances.pred_classes = torch.tensor([k for k, *_ in found], dtype=torch.int64)
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


PREDICTIONS = {
    1: [(0, [4, 4, 25, 24], 0.9), (1, [31, 8, 60, 40], 0.8), (1, [4, 4, 24, 24], 0.7)],
    2: [(0, [6, 5, 24, 26], 0.3), (1, [10, 8, 40, 44], 0.6)],
    3: [],
}


@pytest.mark.parametrize("register", [register_file, register_dicts])
def test_the_folder_of_an_evaluation_gives_its_metrics_again(pets, register):
    register(pets)
    folder = pets / "run" / "inference" / NAME
    expected = evaluate(folder, PREDICTIONS)
    d2.DatasetCatalog.remove(NAME)
    d2.MetadataCatalog.remove(NAME)
    shutil.copytree(pets / "run", pets / "moved")  # a run may be moved
    (found,) = find_evaluations(pets / "moved")
    data = read_evaluation(found)
    matches = match_dataset(data)
    again = summarize(average_precision(matches), matches.area_ranges, matches.class_names)
    assert expected["AP"] > 10 and set(expected) <= set(again)
    for name, value in expected.items():
        assert again[name] == pytest.approx(value, abs=1e-9, nan_ok=True)
    assert data.name == NAME and data.class_names == ["cat", "dog"] and data.image_ids == [1, 2, 3]
    assert all(data.image_path(n) == str(pets / f"{n}.png") for n in data.image_ids)
    assert [a["category_id"] for a in data.objects(3)] == list(data.truth.category_ids.values())


def test_undefined_metrics_have_their_reasons(pets, caplog):
    caplog.set_level(logging.INFO)
    register_file(pets)
    metrics = evaluate(pets / "out", PREDICTIONS)
    record = json.loads((pets / "out" / "evaluation.json").read_text())
    undefined = {name for name, value in metrics.items() if np.isnan(value)}
    assert record["reasons"]["bbox"].keys() == undefined == {"APl"}
    reason = record["reasons"]["bbox"]["APl"]
    assert "large (from 96^2 pixels): the areas of the 6 objects to be found are 400 to 1,080" in reason
    assert f"APl is NaN: {reason}." in caplog.text
    nothing = evaluate(pets / "out", {1: [], 2: [], 3: []})
    record = json.loads((pets / "out" / "evaluation.json").read_text())
    assert record["reasons"]["bbox"].keys() == nothing.keys()
    assert all("nothing was predicted in 3 images" in text for text in record["reasons"]["bbox"].values())


def change(folder, **sections):
    content = json.loads((folder / "pets.json").read_text())
    for annotation in content["annotations"]:
        annotation.update(sections)
    (folder / "pets.json").write_text(json.dumps(content))


@pytest.mark.parametrize(("edit", "reason"), [
    ({"iscrowd": 1}, "all 6 are crowds"),
    ({"category_id": 5}, r"ids do not map: the 6 annotations have the category ids \[5\].*\[3, 8\]"),
    ({"image_id": 77}, r"image ids differ: the 6 annotations have image ids like \[77\].*\[1, 2, 3\]"),
])  # fmt: skip
def test_the_first_cause_of_an_undefined_ap_is_named(pets, edit, reason):
    change(pets, **edit)
    register_file(pets)
    evaluate(pets / "out", PREDICTIONS)
    reasons = json.loads((pets / "out" / "evaluation.json").read_text())["reasons"]["bbox"]
    assert re.search(reason, reasons["AP"]) and reasons["AP-cat"]


def test_a_changed_or_missing_file_is_refused(pets):
    register_file(pets)
    evaluate(pets / "out", PREDICTIONS)
    change(pets, area=1.0)
    with pytest.raises(ValueError, match="pets.json has changed since the evaluation"):
        read_evaluation(pets / "out")
    (pets / "pets.json").unlink()
    with pytest.raises(FileNotFoundError, match="pets.json, which does not exist"):
        read_evaluation(pets / "out")
    (pets / "out" / "ground_truth.json").write_text("[]")
    with pytest.raises(ValueError, match="ground_truth.json is not what this version writes"):
        read_evaluation(pets / "out")
    with pytest.raises(FileNotFoundError, match="is not the folder of an evaluation"):
        read_evaluation(pets)


@pytest.mark.parametrize(("record", "message"), [
    ("x", "prediction 1 must be a mapping, found a str"),
    ({"image_id": 9, "category_id": 3, "score": 0.5, "bbox": [1, 2, 3, 4]}, "image_id 9, but .*pets.json has ids"),
    ({"image_id": [1], "category_id": 3, "score": 0.5, "bbox": [1, 2, 3, 4]}, r"image_id \[1\]"),
    ({"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}, "category_id 1, but the classes of"),
    ({"image_id": 1, "category_id": 3, "score": None, "bbox": [1, 2, 3, 4]}, "the score None; legal: a finite number"),
    ({"image_id": 1, "category_id": 3, "score": 0.5, "bbox": [1, 2, 3]}, r"the bbox \[1, 2, 3\]; legal: 4 finite"),
    ({"image_id": 1, "category_id": 3, "score": 0.5}, "prediction 1 has no bbox"),
])  # fmt: skip
def test_malformed_predictions_are_named(pets, record, message):
    good = {"image_id": 1, "category_id": 3, "score": 0.5, "bbox": [1, 2, 3, 4]}
    (pets / "found.json").write_text(json.dumps([good, record]))
    with pytest.raises(ValueError, match=message):
        read_result_files(pets / "pets.json", pets / "found.json")
    (pets / "found.json").write_text("[{")
    with pytest.raises(ValueError, match="found.json is not valid JSON"):
        read_result_files(pets / "pets.json", pets / "found.json")


@pytest.mark.parametrize(("edit", "message"), [
    ({"category_id": [3]}, r"annotations\[0\] has the category_id \[3\]; legal: a whole number"),
    ({"image_id": {}}, r"annotations\[0\] has the image_id {}"),
    ({"bbox": [1, 2, 3, "x"]}, r"annotation 1 needs a bbox .*found \[1, 2, 3, 'x'\]"),
    ({"bbox": [1, 2, 3, 10**400]}, "annotation 1 needs a bbox"),
    ({"area": "x"}, "annotation 1: area is 'x'"),
    ({"iscrowd": None}, "annotation 1: iscrowd is None; legal: 0 or 1"),
    ({"segmentation": {"size": [4, 4], "counts": "zz"}}, "annotation 1 has a mask that does not decode"),
    ({"segmentation": [[1, 2]]}, "annotation 1 has a malformed segmentation"),
    ({"keypoints": [1, 2]}, "annotation 1 has malformed keypoints"),
])  # fmt: skip
def test_malformed_annotations_are_named(pets, edit, message):
    change(pets, **edit)
    (pets / "found.json").write_text("[]")
    with pytest.raises(ValueError, match=message):
        read_result_files(pets / "pets.json", pets / "found.json")


def test_results_hold_reasons_and_intervals(shapes, tmp_path):
    cfg = shapes_config(
        shapes, tmp_path / "run", "MODEL.RETINANET.PRIOR_PROB", "0.6", "MODEL.RETINANET.TOPK_CANDIDATES_TEST", "20"
    )
    torch.manual_seed(0)
    results = Trainer.test(cfg, Trainer.build_model(cfg))
    write_intervals(cfg)
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    undefined = {name for name, value in results["bbox"].items() if np.isnan(value)}
    assert set(found.get("reasons", {}).get("bbox", {})) == undefined
    low, high = found["intervals"]["bbox"]["AP50"]
    assert low <= high and set(found["bbox"]) == set(results["bbox"])
    assert set(_flat_metrics(found)) == {*(f"bbox/{name}" for name in results["bbox"]),
                                         *(f"data/{name}" for name in found["data"])}  # fmt: skip

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import Boxes, BoxMode, COCOEvaluator, DatasetCatalog, Instances, MetadataCatalog
from retinanet_ext.data import checked_records as loading
from retinanet_ext.data.checked_records import dataset_for_evaluation, load_checked_dicts, load_training_dicts
from retinanet_ext.data.doctor import image_probe

pytestmark = pytest.mark.usefixtures("catalogs")

GOOD = {"bbox": [5.0, 5.0, 20.0, 20.0], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
UNKNOWN = {**GOOD, "bbox": [2.0, 2.0, 9.0, 9.0], "category_id": -1, "category_name": "cow"}
OUTSIDE = {**GOOD, "bbox": [30.0, 5.0, 60.0, 20.0]}


@pytest.fixture
def register(tmp_path):
    """A function that registers one image per list of annotations; it returns a list with one item per reading."""

    def make(*annotation_lists, name="pets", **metadata):
        path = tmp_path / "image.png"
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path)
        records = [
            {"file_name": str(path), "image_id": k, "width": 40, "height": 30, "annotations": list(annotations)}
            for k, annotations in enumerate(annotation_lists)
        ]
        readings = []
        DatasetCatalog.register(name, lambda: readings.append(1) or copy.deepcopy(records))
        MetadataCatalog.get(name).set(thing_classes=["cat", "dog"], evaluator_type="coco", **metadata)
        return readings

    return make


def config(*overrides):
    return load_config(None, ["MODEL.RETINANET.NUM_CLASSES", "2", *overrides])


def drop(policy="drop"):
    return config("DATASETS.ON_BAD_ANNOTATION", policy)


def annotations(records):
    return [[a["bbox"] for a in record["annotations"]] for record in records]


def test_images_without_objects(register):
    register([GOOD], [{**GOOD, "iscrowd": 1}], [])
    assert len(load_checked_dicts(config(), ["pets"], filter_empty=True)) == 1
    assert len(load_checked_dicts(config(), ["pets"], filter_empty=False)) == 3
    register([], name="empty")
    with pytest.raises(ValueError, match="no image of empty has an object to train on"):
        load_checked_dicts(config(), ["empty"], filter_empty=True)


def test_records_that_do_not_speak_of_annotations_are_not_filtered(tmp_path):
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "image_id": 1, "width": 40, "height": 30}
    DatasetCatalog.register("bare", lambda: [dict(record)])
    assert load_checked_dicts(config(), ["bare"], filter_empty=True) == [record]


@pytest.mark.parametrize("filter_empty", [True, False])
def test_no_dataset(filter_empty):
    with pytest.raises(ValueError, match="no dataset is named; give DATASETS.TRAIN or"):
        load_checked_dicts(config(), (), filter_empty)


def test_a_dataset_is_read_and_checked_once(register, monkeypatch):
    readings, checks = register([GOOD, UNKNOWN]), []
    check = loading.check_dataset_dicts
    monkeypatch.setattr(loading, "check_dataset_dicts", lambda *a, **k: checks.append(1) or check(*a, **k))
    first = load_checked_dicts(drop(), ["pets"], filter_empty=False)
    first[0]["annotations"].clear()
    del first[0]["file_name"]
    again = load_checked_dicts(drop(), ["pets"], filter_empty=False)
    # Changes that a caller makes to its records do not reach other callers.
    assert annotations(again) == [[GOOD["bbox"]]] and "file_name" in again[0]
    assert dataset_for_evaluation(drop(), "pets") == "pets+checked"
    assert len(readings) == len(checks) == 1
    # A training set is needed only once and may be large, so it is not kept.
    cfg = drop()
    cfg.DATASETS.TRAIN = ("pets",)
    load_training_dicts(cfg)
    assert "pets" not in loading._checked_datasets


def test_other_policies_and_other_data_are_checked_anew(register):
    register([GOOD, OUTSIDE])
    assert annotations(load_checked_dicts(drop(), ["pets"], False)) == [[GOOD["bbox"]]]
    assert annotations(load_checked_dicts(drop("clip"), ["pets"], False)) == [[GOOD["bbox"], [30, 5, 40, 20]]]
    with pytest.raises(ValueError, match="box outside the image"):
        load_checked_dicts(config(), ["pets"], False)
    DatasetCatalog.remove("pets")
    MetadataCatalog.remove("pets")
    with pytest.raises(KeyError, match="pets"):
        load_checked_dicts(drop("clip"), ["pets"], False)
    register([GOOD], [GOOD])
    assert annotations(load_checked_dicts(drop("clip"), ["pets"], False)) == [[GOOD["bbox"]]] * 2


def test_sets_that_an_evaluator_can_take_as_they_are(register):
    register([GOOD])
    assert dataset_for_evaluation(drop(), "pets") == "pets"
    register([GOOD, UNKNOWN], name="file", json_file="file.json")
    assert dataset_for_evaluation(drop(), "file") == "file"
    register([GOOD, UNKNOWN], name="refused")
    with pytest.raises(ValueError, match="unknown category"):
        dataset_for_evaluation(config(), "refused")


def test_the_checked_dataset_follows_the_data(register):
    register([GOOD, OUTSIDE], source="somewhere")
    name = dataset_for_evaluation(drop(), "pets")
    assert name == "pets+checked" and annotations(DatasetCatalog.get(name)) == [[GOOD["bbox"]]]
    metadata = MetadataCatalog.get(name)
    assert (metadata.thing_classes, metadata.evaluator_type, metadata.source) == (["cat", "dog"], "coco", "somewhere")
    assert metadata.name == name
    function = DatasetCatalog[name]
    assert dataset_for_evaluation(drop(), "pets") == name and DatasetCatalog[name] is function
    assert dataset_for_evaluation(drop("clip"), "pets") == name
    assert annotations(DatasetCatalog.get(name)) == [[GOOD["bbox"], [30, 5, 40, 20]]]
    DatasetCatalog.remove("pets")
    MetadataCatalog.remove("pets")
    register([UNKNOWN], [GOOD], source="elsewhere")
    assert dataset_for_evaluation(drop("clip"), "pets") == name
    assert annotations(DatasetCatalog.get(name)) == [[], [GOOD["bbox"]]]
    assert MetadataCatalog.get(name).source == "elsewhere"


def test_a_name_that_belongs_to_someone_else(register):
    register([GOOD, UNKNOWN])
    register([GOOD], name="pets+checked")
    with pytest.raises(ValueError, match=r"'pets\+checked' is needed for the checked records of 'pets'"):
        dataset_for_evaluation(drop(), "pets")


def test_dropped_annotations_are_not_evaluated(register, tmp_path):
    """The raw records would stop the evaluator: it has no category -1."""
    register([GOOD, UNKNOWN], [UNKNOWN])
    name = dataset_for_evaluation(drop(), "pets")
    evaluator = COCOEvaluator(name, tasks=("bbox",), distributed=False, output_dir=str(tmp_path / "out"))
    evaluator.reset()
    for record in load_checked_dicts(drop(), ["pets"], filter_empty=False):
        instances = Instances((30, 40))
        instances.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in record["annotations"]]).reshape(-1, 4))
        instances.scores = torch.ones(len(instances.pred_boxes))
        instances.pred_classes = torch.zeros(len(instances.pred_boxes), dtype=torch.int64)
        evaluator.process([record], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP-cat"] == pytest.approx(100.0)
    converted = json.loads((tmp_path / "out" / f"{name}_coco_format.json").read_text())
    assert len(converted["images"]) == 2 and len(converted["annotations"]) == 1


def test_an_unregistered_dataset_says_what_to_do(register):
    """The usual cause: the config was read by merge_from_file, which does not register DATASETS.CUSTOM."""
    register([GOOD], name="cells_train")
    with pytest.raises(KeyError) as caught:
        load_checked_dicts(config(), ["cells_trian"], filter_empty=False)
    for part in ("'cells_trian' is not registered", "Did you mean cells_train", "retinanet_ext.load_config", "CUSTOM"):
        assert part in str(caught.value)


def test_missing_built_in_data_say_where_they_are_looked_for(tmp_path):
    # Like COCO's names without the files: the error comes from Python itself.
    DatasetCatalog.register("coco_like", (tmp_path / "coco" / "gone.json").read_text)
    MetadataCatalog.get("coco_like").set(thing_classes=["cat"])
    with pytest.raises(FileNotFoundError, match="Dataset 'coco_like': .*gone.json.*DETECTRON2_DATASETS names"):
        load_checked_dicts(config(), ["coco_like"], filter_empty=False)


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "ABSOLUTE"])
def test_file_names_that_leave_the_folder_of_the_images_are_refused_and_not_opened(tmp_path, monkeypatch, name):
    secret = tmp_path / "secret.png"
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(secret)
    inside = tmp_path / "images"
    inside.mkdir()
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(inside / "a.png")
    names = ["a.png", str(secret) if name == "ABSOLUTE" else name]
    (inside / "sub").mkdir()
    content = {
        "images": [{"id": i, "file_name": file, "width": 40, "height": 30} for i, file in enumerate(names)],
        "annotations": [], "categories": [{"id": 1, "name": "a"}],
    }  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps(content))
    custom = [{"NAME": f"paths_{name}", "FORMAT": "coco", "JSON": str(tmp_path / "data.json"), "IMAGES": str(inside)}]
    words = ["DATASETS.CUSTOM", repr(custom), "DATASETS.TRAIN", f"('paths_{name}',)", "DATASETS.TEST", "()"]
    cfg = load_config("quick/retinanet.yaml", words)
    opened, probe = [], image_probe._probe
    monkeypatch.setattr(image_probe, "_probe", lambda path, decode: opened.append(path) or probe(path, decode))
    with pytest.raises(ValueError, match="1 x image file outside of the image folder(?s:.*)ALLOW_FILES_OUTSIDE True"):
        load_checked_dicts(cfg, cfg.DATASETS.TRAIN, filter_empty=False)
    assert opened == [str(inside / "a.png")]
    cfg.DATASETS.ON_BAD_IMAGE = "drop"
    assert len(load_checked_dicts(cfg, cfg.DATASETS.TRAIN, filter_empty=False)) == 1
    cfg.DATASETS.ALLOW_FILES_OUTSIDE = True
    assert len(load_checked_dicts(cfg, cfg.DATASETS.TRAIN, filter_empty=False)) == 2

"""Validation data with faults stop a run before its first step, or are left out of the evaluation and counted."""

import json
import logging
import shutil
from argparse import Namespace

import pytest

from retinanet_ext import d2
from retinanet_ext.config.loading import load_config
from retinanet_ext.training.launch import evaluate
from retinanet_ext.training.trainer import Trainer
from tests.builders import shapes_config


@pytest.fixture
def broken(shapes, tmp_path):
    """A copy of the generated set whose last validation image is cut short."""
    folder = tmp_path / f"broken_{tmp_path.name}"
    shutil.copytree(shapes, folder)
    last = sorted((folder / "val").iterdir())[-1]
    data = last.read_bytes()
    last.write_bytes(data[: len(data) // 2])
    return folder


def test_a_damaged_validation_image_stops_the_run_before_its_first_step(broken, tmp_path):
    cfg = shapes_config(broken, tmp_path / "run", "SOLVER.MAX_ITER", "1")
    with pytest.raises(ValueError, match="1 x unreadable image"):
        Trainer(cfg)
    with pytest.raises(ValueError, match="1 x unreadable image"):
        evaluate(cfg, resume=False)


def test_a_dropped_validation_image_is_counted_in_the_results(broken, tmp_path, caplog):
    cfg = shapes_config(broken, tmp_path / "run", "SOLVER.MAX_ITER", "1", "DATASETS.ON_BAD_IMAGE", "drop")
    d2.default_setup(cfg, Namespace(eval_only=False, config_file=""))
    trainer = Trainer(cfg)
    trainer.train()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["data"] == {"images": 5, "images_left_out": 1, "annotations_left_out": 0}
    assert "AP" in results["bbox"]
    truth = json.loads(
        (tmp_path / "run" / "inference" / cfg.DATASETS.TEST[0] / "checked_annotations.json").read_text()
    )
    assert len(truth["images"]) == 5


def test_a_bad_annotation_file_stops_the_run_before_its_first_step(shapes, tmp_path):
    """With CLASSES in the config, nothing else reads the file before the first evaluation."""
    folder = tmp_path / f"bad_{tmp_path.name}"
    shutil.copytree(shapes, folder)
    cfg = shapes_config(folder, tmp_path / "run")
    classes = list(cfg.MODEL.CLASS_NAMES)
    custom = [{**item, "CLASSES": classes, "NAME": item["NAME"] + "2"} for item in cfg.DATASETS.CUSTOM]
    (folder / "annotations" / "shapes_val.json").write_text('{"images": []}')
    cfg.DATASETS.CUSTOM = custom
    (tmp_path / "config.yaml").write_text(cfg.dump())
    names = [str((item["NAME"],)) for item in custom]
    words = ["DATASETS.TRAIN", names[0], "DATASETS.TEST", names[1]]
    with pytest.raises(ValueError, match="shapes_val.json is not a COCO annotation file: no annotations, categories"):
        Trainer(load_config(str(tmp_path / "config.yaml"), words))


def test_an_unknown_kind_of_evaluation_stops_the_run_before_its_first_step(shapes, tmp_path):
    cfg = shapes_config(shapes, tmp_path / "run")
    metadata = d2.MetadataCatalog.get(cfg.DATASETS.TEST[0])
    vars(metadata)["evaluator_type"] = "lvis"
    try:
        with pytest.raises(ValueError, match="evaluator_type 'lvis'; legal values: coco"):
            Trainer(cfg)
    finally:
        vars(metadata)["evaluator_type"] = "coco"


@pytest.mark.parametrize(("metric", "key"), [("segm/AP", "MASK_ON"), ("keypoints/AP", "KEYPOINT_ON")])
def test_a_best_metric_that_the_model_cannot_have_stops_the_run_before_its_first_step(shapes, tmp_path, metric, key):
    cfg = shapes_config(shapes, tmp_path, "TEST.BEST_METRIC", metric)
    with pytest.raises(ValueError, match=f"TEST.BEST_METRIC is '{metric}', but MODEL.{key} is False"):
        Trainer(cfg)


@pytest.mark.parametrize("least, warns", [("0.8", True), ("0", False)])
def test_anchors_that_fit_few_objects_are_a_warning_before_the_first_step(
    shapes, tmp_path, caplog, monkeypatch, least, warns
):
    # Loggers may not pass records on to the root logger, which caplog listens to, depending on what ran before.
    source = logging.getLogger("retinanet_ext.data.doctor.coverage_warning")
    monkeypatch.setattr(source, "handlers", [caplog.handler])
    words = ["MODEL.ANCHOR_GENERATOR.SIZES", "[[512.0]]", "DATASETS.MIN_ANCHOR_COVERAGE", least]
    cfg = shapes_config(shapes, tmp_path / "run", *words)
    (tmp_path / "run").mkdir()
    trainer = Trainer(cfg)
    messages = {record.getMessage() for record in caplog.records if "Anchor coverage: 0.0 %" in record.getMessage()}
    assert len(messages) == warns and all("doctor data --config-file" in message for message in messages)
    assert trainer.data_loader.coverage_sample == []

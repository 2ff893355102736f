"""Whole runs with masks and keypoints, in one stage and in two: training, evaluation, prediction."""

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_api

from retinanet_ext.cli.main import main
from retinanet_ext.training.trainer import Trainer
from tests.builders import INSTANCE_RUNS, shapes_config


@pytest.fixture(scope="module", params=INSTANCE_RUNS)
def run_folder(request, shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    file, *opts = INSTANCE_RUNS[request.param]
    opts += ["SOLVER.MAX_ITER", "2", "VIS_PERIOD", "1", "SOLVER.ACCUMULATE", "2", "SOLVER.IMS_PER_BATCH", "4"]
    cfg = shapes_config(shapes, folder, *opts, file=file)
    (folder / "config.yaml").write_text(cfg.dump())
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return folder


def test_training_and_evaluation_leave_all_metrics(run_folder):
    lines = [json.loads(line) for line in (run_folder / "metrics.json").read_text().splitlines()]
    losses = {name for line in lines for name in line if name.startswith("loss_")}
    assert {"loss_cls", "loss_box_reg", "loss_mask", "loss_keypoint"} <= losses
    results = json.loads((run_folder / "results.json").read_text())
    assert {"bbox", "segm", "keypoints", "data"} == set(results) - {"reasons"}  # of sizes without an object
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl"} <= set(results["segm"])
    assert {"AP", "AP50", "AP75", "APm", "APl"} <= set(results["keypoints"])
    assert results["data"]["images"] == 6


def test_prediction_writes_masks_keypoints_and_pictures(run_folder, shapes, tmp_path):
    photo = sorted((shapes / "val").iterdir())[0]
    arguments = ["--config-file", str(run_folder / "config.yaml"), "--device", "cpu", "--score-threshold", "0.0001"]
    assert main(["predict", *arguments, "--input", str(photo), "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "predictions.json").read_text())["annotations"]
    assert found
    for detection in found:
        mask = mask_api.decode(detection["segmentation"])
        assert mask.shape == (96, 96) and len(detection["keypoints"]) == 5 * 3
    picture, before = cv2.imread(str(tmp_path / photo.name)), cv2.imread(str(photo))
    assert picture.shape == before.shape
    assert np.abs(picture.astype(int) - before).max() > 50

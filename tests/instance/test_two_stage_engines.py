"""A two-stage YAML file of Detectron2 gives the same model and numbers on `lite`, with weights from either engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from tests.conftest import REPO_ROOT

FOLDER = "COCO-InstanceSegmentation"
WEIGHTS_OF_DETECTRON2 = [f"{FOLDER}/mask_rcnn_R_50_FPN_1x.yaml", f"{FOLDER}/mask_rcnn_R_50_DC5_1x.yaml"]
WEIGHTS_OF_LITE = [f"{FOLDER}/mask_rcnn_R_50_C4_1x.yaml", "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    from detectron2 import model_zoo

    folder = tmp_path_factory.mktemp("two_stages")

    def work(engine: str, *files: str) -> None:
        command = [sys.executable, "-m", "tests.instance.side_by_side_worker", str(folder)]
        command += [model_zoo.get_config_file(file) for file in files]
        subprocess.run(command, cwd=REPO_ROOT, env={**os.environ, "RETINANET_EXT_ENGINE": engine}, check=True)

    work("detectron2", *WEIGHTS_OF_DETECTRON2)
    work("lite", *WEIGHTS_OF_DETECTRON2, *WEIGHTS_OF_LITE)
    work("detectron2", *WEIGHTS_OF_LITE)
    return folder


@pytest.mark.parametrize("file", [*WEIGHTS_OF_DETECTRON2, *WEIGHTS_OF_LITE])
def test_same_numbers_from_the_same_file(file, results):
    name = Path(file).stem + ".pth"
    ours, theirs = torch.load(results / "lite" / name), torch.load(results / "detectron2" / name)
    assert not any([*ours["did_not_fit"].values(), *theirs["did_not_fit"].values()])
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4, abs=1e-6)
    assert ours["gradients"].keys() == theirs["gradients"].keys()
    largest = max(gradient.abs().max().item() for gradient in theirs["gradients"].values())
    for parameter, gradient in theirs["gradients"].items():
        difference = (ours["gradients"][parameter] - gradient).norm()
        # A rounding error that flips a ReLU changes few entries by much: hence the norm.
        assert difference <= 5e-4 * gradient.norm() + 1e-6 * largest, parameter
    for a, b in zip(ours["detections"], theirs["detections"], strict=True):
        assert a.keys() == b.keys() and len(b["scores"]) > 5
        assert torch.equal(a["pred_classes"], b["pred_classes"])
        torch.testing.assert_close(a["scores"], b["scores"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(a["pred_boxes"], b["pred_boxes"], rtol=0, atol=1e-3)
        if "pred_masks" in b:
            assert (a["pred_masks"] != b["pred_masks"]).float().mean() < 1e-4
        if "pred_keypoints" in b:
            torch.testing.assert_close(a["pred_keypoints"], b["pred_keypoints"], rtol=1e-3, atol=1e-2)

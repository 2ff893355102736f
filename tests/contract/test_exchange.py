"""A checkpoint trained on either engine gives the same detections on both."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from tests.conftest import REPO_ROOT


def work(engine, verb, data, folder):
    command = [sys.executable, "-m", "tests.contract.exchange_worker", verb, str(data), str(folder)]
    subprocess.run(command, cwd=REPO_ROOT, env={**os.environ, "RETINANET_EXT_ENGINE": engine}, check=True)


@pytest.mark.parametrize("trained_on", ["lite", "detectron2"])
def test_same_detections_on_coco_mini(trained_on, shared_data, tmp_path):
    work(trained_on, "train", shared_data, tmp_path)
    for engine in ("lite", "detectron2"):
        work(engine, "detect", shared_data, tmp_path)
    ours, theirs = torch.load(tmp_path / "lite.pth"), torch.load(tmp_path / "detectron2.pth")
    assert sum(len(image["scores"]) for image in ours) > 100
    for a, b in zip(ours, theirs, strict=True):
        assert a["file"] == b["file"]
        assert torch.equal(a["classes"], b["classes"])
        torch.testing.assert_close(a["boxes"], b["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(a["scores"], b["scores"], rtol=1e-4, atol=1e-6)

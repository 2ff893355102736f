"""A NaN in a real run of ``train_net.py``: at a random step, under each policy, and by a learning rate of 1e4."""

import json
import os
import random
import subprocess
import sys

import pytest
import torch

from tests.builders import shapes_config
from tests.conftest import REPO_ROOT

STEPS = 8
# Runs train_net.py with a mapper that spoils the batch of one step: a fault that the config does not know.
SPOIL = """
import runpy, sys, torch
from retinanet_ext.training.step import TrainStep
step, train_net = int(sys.argv[1]), sys.argv[2]
next_batch, left = TrainStep._next_batch, [step]
def spoilt(self):
    batch = next_batch(self)
    if self.iter in left:
        left.remove(self.iter)
        batch[0]["image"] = batch[0]["image"].float().fill_(torch.nan)
    return batch
TrainStep._next_batch = spoilt
sys.argv = sys.argv[2:]
runpy.run_path(train_net, run_name="__main__")
"""


def run(folder, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=REPO_ROOT, env=environment, capture_output=True, text=True, timeout=300
    )  # fmt: skip


def config(shapes, folder, *opts) -> str:
    cfg = shapes_config(shapes, folder / "run", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", str(STEPS), *opts)
    (folder / "config.yaml").write_text(cfg.dump())
    return str(folder / "config.yaml")


def test_a_nan_at_a_random_step(shapes, tmp_path, times):
    for index in range(times(1)):
        folder = tmp_path / str(index)
        folder.mkdir()
        policy, step = ("rollback", "stop", "skip")[index % 3], random.Random(index).randrange(2, STEPS - 1)
        file = config(shapes, folder, "SOLVER.NONFINITE.POLICY", policy, "SOLVER.CHECKPOINT_PERIOD", "2")
        done = run(folder, "-c", SPOIL, str(step), "train_net.py", "--config-file", file)
        incident = folder / "run" / "incidents" / f"iter_{step:07d}"
        log = done.stdout + done.stderr
        assert f"retinanet-ext replay {incident}" in log and "loss_cls = nan" in log, log[-3000:]
        assert json.loads((incident / "incident.json").read_text())["causes"][0]["cause"] == "an image is not finite"
        assert (done.returncode == 0) == (policy != "stop")
        assert (folder / "run" / "model_final.pth").exists() == (policy != "stop")
        for path in (folder / "run").glob("*.pth"):
            weights = torch.load(path, weights_only=True)["model"]
            assert all(bool(value.isfinite().all()) for value in weights.values()), path
        again = run(folder, "-m", "retinanet_ext.cli.main", "replay", str(incident)) if index == 0 else None
        assert again is None or (again.returncode == 0 and "Reproduced" in again.stdout), again


@pytest.mark.parametrize("rate", ["1e4"])
def test_a_run_that_diverges_fails_and_leaves_no_checkpoint_of_it(shapes, tmp_path, rate):
    plain = ["MODEL.RETINANET.NORM", "", "MODEL.FPN.NORM", ""]
    file = config(shapes, tmp_path, "SOLVER.BASE_LR", rate, *plain)
    done = run(tmp_path, "train_net.py", "--config-file", file)
    assert done.returncode != 0
    assert "is not finite" in done.stderr and "the learning rate is too high: " in done.stderr
    assert "times the 0.00125 that 2 images suggest" in done.stderr
    assert not list((tmp_path / "run").glob("*.pth")) and not (tmp_path / "run" / "last_checkpoint").exists()

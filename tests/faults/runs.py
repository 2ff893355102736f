"""Runs of the training command in processes of their own, for faults that a test injects from outside."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.conftest import REPO_ROOT

TIMES = {"time", "data_time", "rank_data_time", "eta_seconds"}
CONFIG = """
_BASE_: quick/retinanet.yaml
DATASETS:
  CUSTOM:
    - {{NAME: fault_train, FORMAT: coco, JSON: {0}/annotations/shapes_train.json, IMAGES: {0}/train}}
    - {{NAME: fault_val, FORMAT: coco, JSON: {0}/annotations/shapes_val.json, IMAGES: {0}/val}}
  TRAIN: ["fault_train"]
  TEST: ["fault_val"]
MODEL: {{DEVICE: cpu, WEIGHTS: "", FPN: {{OUT_CHANNELS: 16}}, RETINANET: {{NUM_CONVS: 1, SCORE_THRESH_TEST: 0.0}}}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 24, BASE_LR: 0.01, AMP: {{ENABLED: False}}, CHECKPOINT_PERIOD: 10}}
TEST: {{EVAL_PERIOD: 6}}
SEED: 1
"""


class Run:
    """A training command that runs; its output is in ``stdout.txt`` and ``stderr.txt`` of ``folder``."""

    def __init__(self, shapes: Path, folder: Path, *words: str, slow: str = "none 0", opts: tuple = ()) -> None:
        folder.mkdir(exist_ok=True, parents=True)
        self.folder, self.output = folder, folder / "run"
        config = folder / "config.yaml"
        config.write_text(CONFIG.format(shapes))
        command = [sys.executable, "-m", "tests.faults.slow_run", "--config-file", str(config), *words]
        environment = {**os.environ, "SLOW": slow, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with open(folder / "stdout.txt", "w") as out, open(folder / "stderr.txt", "w") as err:
            self.process = subprocess.Popen(
                [*command, *opts, "OUTPUT_DIR", str(self.output)], stdout=out, stderr=err, cwd=REPO_ROOT,
                env=environment, start_new_session=True,
            )  # fmt: skip

    def wait_for(self, text: str, times: int = 1, seconds: float = 120) -> None:
        """Wait until the output has ``text`` this often."""
        deadline = time.monotonic() + seconds
        while self.stdout.count(text) < times:
            assert self.process.poll() is None, f"ended early: {self.stderr}\n{self.stdout[-3000:]}"
            assert time.monotonic() < deadline, f"no {text!r} in {self.stdout[-3000:]}"
            time.sleep(0.02)

    def end(self, seconds: float = 120) -> int:
        """Wait for the end; returns the exit code."""
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout.txt").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr.txt").read_text()

    def rows(self) -> list[dict]:
        """The rows of metrics.json without times."""
        rows = [json.loads(line) for line in (self.output / "metrics.json").read_text().splitlines()]
        return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def processes_of(session: int) -> dict[int, str]:
    """The living processes of a session: process id and command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except (OSError, IndexError):
            continue
    return found


def assert_nothing_left(session: int, seconds: float = 10) -> None:
    """All processes of the session end in this time."""
    deadline = time.monotonic() + seconds
    while left := processes_of(session):
        assert time.monotonic() < deadline, f"orphans: {left}"
        time.sleep(0.1)


def assert_same_run(actual: Run, expected: Run) -> None:
    """Weights, optimizer, predictions and metrics of two complete runs agree to the last bit."""
    first, second = (torch.load(run.output / "model_final.pth", weights_only=True) for run in (actual, expected))
    assert first["model"].keys() == second["model"].keys()
    for name, value in second["model"].items():
        assert torch.equal(first["model"][name], value), name
    states = [checkpoint["trainer"]["_trainer"]["optimizer"]["state"] for checkpoint in (first, second)]
    for index, state in states[1].items():
        assert torch.equal(states[0][index]["momentum_buffer"], state["momentum_buffer"])
    predictions = "inference/fault_val/coco_instances_results.json"
    assert (actual.output / predictions).read_bytes() == (expected.output / predictions).read_bytes()
    assert actual.rows() == expected.rows()

"""Stops inside a run and what a resumed run makes of them, in one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from retinanet_ext.d2 import ENGINE
from retinanet_ext.training import stops
from retinanet_ext.training.arguments import seconds_of
from retinanet_ext.training.stop_hook import StoppableLoader
from retinanet_ext.training.trainer import Trainer
from tests.builders import shapes_config

TIMES = {"time", "data_time", "rank_data_time", "eta_seconds"}
# Evaluations after iterations 3 and 6, and at the end; a periodic checkpoint after iteration 6.
COMMON = ["SOLVER.MAX_ITER", "8", "TEST.EVAL_PERIOD", "3", "SOLVER.CHECKPOINT_PERIOD", "6"]
COMMON += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]
COMMON += ["MODEL.RETINANET.TOPK_CANDIDATES_TEST", "20"]


@pytest.fixture(autouse=True)
def stop_state(monkeypatch):
    """A fresh state of stops, without handlers of signals."""
    state = stops._State()
    monkeypatch.setattr(stops, "_state", state)
    return state


class Run:
    """A tiny run. ``stop_after``: the iteration in which a stop is requested; ``stop_in``: number of an evaluation."""

    def __init__(self, shapes, folder, monkeypatch, *, stop_after=None, stop_in=None, resume=False):
        torch.manual_seed(0)
        self.trainer = trainer = Trainer(shapes_config(shapes, folder, *COMMON))
        trainer.resume_or_load(resume=resume)
        self.evaluated = []

        class Watched(StoppableLoader):
            def __iter__(loader):
                self.evaluated.append(trainer.iter)
                if len(self.evaluated) == stop_in:
                    stops.request("SIGTERM")
                return super().__iter__()

        monkeypatch.setattr("retinanet_ext.training.trainer.StoppableLoader", Watched)
        run_step = trainer._trainer.run_step

        def step():
            if trainer.iter == stop_after:
                stops.request("SIGINT")
            run_step()

        trainer._trainer.run_step = step
        self.folder, self.message = Path(folder), ""
        try:
            trainer.train()
        except stops.StopRequested as stop:
            self.message = str(stop)

    def rows(self):
        rows = [json.loads(line) for line in (self.folder / "metrics.json").read_text().splitlines()]
        return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.fixture(scope="module")
def unbroken(shapes, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        run = Run(shapes, tmp_path_factory.mktemp("unbroken"), patch)
    assert run.message == "" and run.evaluated == [2, 5, 8]
    return run


@pytest.mark.parametrize(
    ("stop", "saved", "again"),
    [
        ({"stop_after": 2}, "model_0000002.pth", [2, 5, 8]),  # an evaluation is due, and not begun
        ({"stop_in": 1}, "model_0000002.pth", [2, 5, 8]),  # it is broken off
        ({"stop_in": 2}, "model_0000005.pth", [5, 8]),  # after a periodic checkpoint, which is not written twice
        ({"stop_in": 3}, "model_final.pth", [8]),  # the evaluation at the end
    ],
)
def test_a_stopped_and_resumed_run_is_the_unbroken_run(shapes, tmp_path, monkeypatch, unbroken, stop, saved, again):
    first = Run(shapes, tmp_path, monkeypatch, **stop)
    assert first.message.startswith(f"stopped by {'SIGINT' if 'stop_after' in stop else 'SIGTERM'} after iteration")
    assert saved in first.message and "--resume" in first.message
    assert (tmp_path / "last_checkpoint").read_text() == saved
    monkeypatch.setattr(stops, "_state", stops._State())
    second = Run(shapes, tmp_path, monkeypatch, resume=True)
    assert second.message == "" and second.evaluated == again
    rows, expected = second.rows(), unbroken.rows()
    assert [row["iteration"] for row in rows] == [row["iteration"] for row in expected]
    assert [set(row) for row in rows] == [set(row) for row in expected]
    if ENGINE == "lite":  # Detectron2's loader starts again from the first image
        assert rows == expected
        for name, value in unbroken.trainer.model.state_dict().items():
            assert torch.equal(second.trainer.model.state_dict()[name], value), name


def test_rows_of_a_crashed_run_are_not_written_twice(shapes, tmp_path, monkeypatch, unbroken):
    Run(shapes, tmp_path, monkeypatch)
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"iteration": 9, "total_l')  # killed while writing
    again = Run(shapes, tmp_path, monkeypatch, resume=True)
    assert [row["iteration"] for row in again.rows()] == [row["iteration"] for row in unbroken.rows()]


def test_a_longer_schedule_keeps_the_rows_of_the_run_before(shapes, tmp_path, monkeypatch):
    first = Run(shapes, tmp_path, monkeypatch).rows()
    monkeypatch.setattr(f"{__name__}.COMMON", [*COMMON, "SOLVER.MAX_ITER", "10"])
    rows = Run(shapes, tmp_path, monkeypatch, resume=True).rows()
    # Iteration 8 was evaluated as the end of the first run, and is again as the ninth of the longer one.
    assert rows[: len(first)] == first and [row["iteration"] for row in rows[len(first) :]] == [8, 9, 10]


def test_a_time_limit_keeps_time_for_a_checkpoint(stop_state):
    stop_state.deadline = time.monotonic() + 10
    assert stops.stop_wanted() is None
    stops.step_took(2.0)
    stops.expect_saving(3.0)
    assert stops.stop_wanted() is None  # 1 + 1.5 * (2 + 3) = 8.5 seconds are kept
    stops.expect_saving(4.5)
    stops.expect_saving(0.1)  # the longest counts
    assert stops.stop_wanted() == "--time-limit"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("2h30m", 9000), ("45", 45), ("1-02:03:04", 93784), ("12:00:00", 43200), ("05:30", 330)],
)
def test_times_as_people_and_slurm_write_them(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "1h 30", "-5", "1-30", "1.5h"])
def test_other_times_are_refused(text):
    with pytest.raises(Exception, match="is no time above zero; legal"):
        seconds_of(text)


SCRIPT = """
import os, signal, sys, time
from retinanet_ext.training import stops
worker = None
try:
    with stops.handled_signals():
        if sys.argv[1] == "fork":
            worker = os.fork()
            if not worker:
                time.sleep(60)
        with stops.polled():
            print(worker, flush=True)
            for _ in range(600):
                time.sleep(0.1)
                if stops.stop_wanted() and sys.argv[1] != "twice":
                    break
        stops.raise_if_wanted()
except stops.StopRequested as stop:
    print(stop.reason, flush=True)
"""


def script(mode):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, mode], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def test_a_second_interrupt_aborts_at_once():
    process, _ = script("twice")
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(10) in (130, -signal.SIGINT)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers look for their parent themselves")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_forked_worker_leaves_stops_to_its_parent_and_ends_with_it(number):
    process, worker = script("fork")
    os.kill(int(worker), signal.SIGTERM)
    os.kill(int(worker), signal.SIGINT)
    time.sleep(0.3)
    assert Path(f"/proc/{worker}").exists() and process.poll() is None
    os.kill(process.pid, number)
    process.wait(10)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{worker}").exists() and _state_of(worker) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _state_of(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"

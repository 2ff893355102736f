"""SIGTERM, SIGINT and the time limit: a run that was stopped and resumed is the unbroken run."""

import os
import random
import signal
import time

import pytest

from retinanet_ext.d2 import ENGINE
from tests.faults.runs import Run, assert_nothing_left, assert_same_run

SAVED = "stopped by SIGTERM after iteration"
on_lite = pytest.mark.skipif(ENGINE != "lite", reason="Detectron2's loader starts again, and its RNG is not saved")


@pytest.fixture(scope="module")
def unbroken(shapes, tmp_path_factory):
    run = Run(shapes, tmp_path_factory.mktemp("unbroken"))
    assert run.end() == 0, run.stderr
    return run


def stop(run: Run, *numbers: int) -> None:
    """Send signals, expect exit code 75, one message, no traceback, and no process that is left."""
    for number in numbers:
        os.kill(run.process.pid, number)
    assert run.end() == 75, run.stderr
    assert run.stderr.count("stopped by") == 1 and "Traceback" not in run.stderr, run.stderr
    assert_nothing_left(run.process.pid)


@on_lite
def test_stops_at_random_moments_lose_nothing(shapes, unbroken, tmp_path, times):
    """A stop in an evaluation, after the resume one at a random moment of training, then on to the end."""
    for number in range(times(1)):
        chance, folder = random.Random(number), tmp_path / str(number)
        workers = ("DATALOADER.NUM_WORKERS", str(number % 3))
        run = Run(shapes, folder, slow="evaluation 0.2", opts=workers)
        run.wait_for("SLOW evaluation", times=chance.randint(1, 5))
        stop(run, signal.SIGTERM)
        assert f"{SAVED} 6 of 24" in run.stderr and "model_0000005.pth" in run.stderr
        run = Run(shapes, folder, "--resume", slow="step 0.2", opts=workers)
        run.wait_for("SLOW step")
        time.sleep(chance.uniform(0, 3.0))
        stop(run, chance.choice((signal.SIGTERM, signal.SIGINT)))
        run = Run(shapes, folder, "--resume", opts=workers)
        assert run.end() == 0, run.stderr
        assert_same_run(run, unbroken)


def test_a_stop_while_data_are_checked(shapes, tmp_path, times):
    for attempt in range(times(1)):
        number = (signal.SIGTERM, signal.SIGINT)[attempt % 2]
        run = Run(shapes, tmp_path / str(attempt), slow="data 60")
        run.wait_for("SLOW data")
        time.sleep(random.Random(attempt).uniform(0, 0.5))
        stop(run, number)
        assert f"stopped by {number.name} before the first iteration: nothing had to be saved" in run.stderr


@pytest.mark.skipif(ENGINE == "lite", reason="the tests above show more")
def test_stops_and_resumes_of_detectron2(shapes, tmp_path):
    run = Run(shapes, tmp_path, slow="evaluation 0.5", opts=("DATALOADER.NUM_WORKERS", "2"))
    run.wait_for("SLOW evaluation", times=2)
    os.killpg(run.process.pid, signal.SIGINT)  # as Ctrl-C does, the workers get it too
    assert run.end() == 75 and "stopped by SIGINT after iteration 6 of 24" in run.stderr, run.stderr
    assert "Traceback" not in run.stderr + run.stdout
    assert_nothing_left(run.process.pid)
    run = Run(shapes, tmp_path, "--resume", slow="step 0.2")
    run.wait_for("SLOW step")
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.end() == 75 and SAVED in run.stderr, run.stderr
    run = Run(shapes, tmp_path, "--resume")
    assert run.end() == 0, run.stderr
    # The file is written every 20 iterations, and then has the newest evaluation.
    assert [row["iteration"] for row in run.rows() if "bbox/AP" in row] == [17, 24]
    iterations = [row["iteration"] for row in run.rows()]
    assert iterations == sorted(set(iterations))

"""Whole studies: what runs, in which order, what is kept, and what is refused. A stand-in does the runs."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from retinanet_ext.ablation import jobs, local_jobs
from retinanet_ext.ablation.comparison import unfinished_runs
from retinanet_ext.ablation.results import read_study_folder
from retinanet_ext.ablation.runner import run_study
from retinanet_ext.ablation.status import Status, is_locked, read_status, write_status
from retinanet_ext.ablation.study import load_study, study_from_dict, with_changes

STUB = Path(__file__).with_name("stub_worker.py")
BASE = """
_BASE_: {root}/configs/Base-RetinaNet.yaml
MODEL:
  DEVICE: cpu
  RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64}}
  FPN: {{OUT_CHANNELS: 16}}
  RETINANET: {{NUM_CONVS: 2}}
SOLVER: {{MAX_ITER: 1300}}
"""
FINE, DIVERGES, IS_KILLED, ENDS_EARLY, IS_INTERRUPTED = 1.0, 2.0, 3.0, 4.0, 5.0


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    monkeypatch.setattr(jobs, "WORKER", (sys.executable, str(STUB)))


def study_of(tmp_path, **behaviours):
    arms = [{"NAME": name, "OVERRIDES": {"SOLVER.BASE_LR": value}} for name, value in behaviours.items()]
    (tmp_path / "base.yaml").write_text(BASE.format(root=Path.cwd()))
    content = {
        "TITLE": "t", "SOURCE": "s", "BASE": "base.yaml", "METRIC": "bbox/AP",
        "SEEDS": [0, 1], "BASELINE": arms[0]["NAME"], "ARMS": arms,
    }  # fmt: skip
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_study(path)


def order_of_runs(folder) -> list[list[str]]:
    return [line.split() for line in (folder / "order.txt").read_text().splitlines()]


def states(results) -> dict:
    return {f"{arm}/{seed}": status.state for (arm, seed), status in results.items()}


def test_all_arms_of_a_seed_come_before_the_next_and_nothing_is_repeated(tmp_path):
    study, out = study_of(tmp_path, a=FINE, b=1.5, c=1.25), tmp_path / "out"
    results = run_study(study, out)
    assert [run[:2] for run in order_of_runs(out)] == [[arm, seed] for seed in "01" for arm in "abc"]
    assert list(results) == [(arm, seed) for seed in (0, 1) for arm in "abc"]
    assert results["a", 1] == Status("done", None, 1.0, {"bbox/AP": 11.0}, 1300)
    assert study_from_dict(json.loads((out / "study.json").read_text())) == study
    assert run_study(study, out) == results
    assert len(order_of_runs(out)) == 6


def test_what_diverged_or_failed_is_recorded_and_the_study_goes_on(tmp_path):
    study, out = study_of(tmp_path, nan=DIVERGES, killed=IS_KILLED, code=ENDS_EARLY, fine=FINE), tmp_path / "out"
    results = run_study(with_changes(study, seeds=[0]), out, jobs=2)
    assert states(results) == {"nan/0": "diverged", "killed/0": "failed", "code/0": "failed", "fine/0": "done"}
    assert results["nan", 0].reason == "iteration 7: loss is not finite"
    assert "killed by SIGKILL (often by the system, because memory ran out)" in results["killed", 0].reason
    assert results["killed", 0].reason.endswith("\nthe last words")
    assert "ended with exit code 3" in results["code", 0].reason and results["code", 0].iterations == 20
    for (arm, seed), status in results.items():
        assert read_status(out / arm / f"seed_{seed}") == status

    # Failed runs are tried again, diverged runs only with `retry`.
    for retry, again in ((False, {"killed", "code"}), (True, {"killed", "code", "nan"})):
        (out / "order.txt").unlink()
        run_study(with_changes(study, seeds=[0]), out, retry=retry)
        assert {run[0] for run in order_of_runs(out)} == again


def test_seeds_come_in_later_and_the_study_file_knows_all(tmp_path):
    study, out = study_of(tmp_path, a=FINE), tmp_path / "out"
    run_study(with_changes(study, seeds=[3]), out)
    results = run_study(with_changes(study, seeds=[1]), out)
    assert list(results) == [("a", 1)]
    assert study_from_dict(json.loads((out / "study.json").read_text())).seeds == (1, 3)


def test_arms_come_in_later_and_the_study_file_knows_all(tmp_path):
    study, out = study_of(tmp_path, a=FINE, b=1.5, c=1.25), tmp_path / "out"
    for arms, known, baseline in ((["b"], ["b"], "b"), (["c"], ["c", "b"], "b"), ([], ["a", "b", "c"], "a")):
        results = run_study(with_changes(study, arms=arms, seeds=[0]), out)
        assert [arm for arm, _ in results] == (arms or ["a", "b", "c"])
        written = study_from_dict(json.loads((out / "study.json").read_text()))
        assert [arm.name for arm in written.arms] == known and written.baseline == baseline
    assert [run[0] for run in order_of_runs(out)] == ["b", "c", "a"]
    with pytest.raises(ValueError, match="study trial has no arm d; its arms: a, b, c"):
        with_changes(study, arms=["a", "d"])


def test_an_interrupted_study_stops_its_runs_and_goes_on(tmp_path):
    study, out = study_of(tmp_path, long=IS_INTERRUPTED, fine=FINE), tmp_path / "out"
    code = (
        "import signal, sys; from retinanet_ext.ablation import jobs, runner, study\n"
        # A background process ignores SIGINT, and its children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"jobs.WORKER = (sys.executable, {str(STUB)!r})\n"
        f"runner.run_study(study.load_study({str(tmp_path / 'trial.yaml')!r}), {str(out)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    pid_file = out / "long" / "seed_0" / "pid"
    while not (pid_file.exists() and pid_file.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    with pytest.raises(OSError, match="in use"):
        run_study(study, out)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    interrupted = read_status(out / "long" / "seed_0")
    assert (interrupted.state, interrupted.reason) == ("stopped", "interrupted") and interrupted.seconds > 0
    assert [run[:2] for run in order_of_runs(out)] == [["long", "0"]]  # no waiting run was started

    (out / "long" / "seed_1").mkdir()
    (out / "long" / "seed_1" / "checkpoint").touch()
    results = run_study(study, out)
    assert set(states(results).values()) == {"done"}
    assert results["long", 0].seconds == pytest.approx(interrupted.seconds + 1.0)


def test_a_run_that_was_killed_with_its_study_is_stopped_and_one_that_lives_is_running(tmp_path):
    study, out = study_of(tmp_path, long=IS_INTERRUPTED), tmp_path / "out"
    code = (
        "import sys; from retinanet_ext.ablation import jobs, runner, study\n"
        f"jobs.WORKER = (sys.executable, {str(STUB)!r})\n"
        f"runner.run_study(study.load_study({str(tmp_path / 'trial.yaml')!r}), {str(out)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    folder = out / "long" / "seed_0"
    while not ((folder / "pid").exists() and (folder / "pid").read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    (folder / "metrics.json").write_text('{"iteration": 19}\n')
    process.kill()
    process.wait()
    # The run has outlived its study.
    assert [run.state for run in read_study_folder(out)[1]] == ["running", "missing"]
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
    while is_locked(folder):  # until the system has ended the process
        time.sleep(0.05)
    run, _ = read_study_folder(out)[1]
    assert (run.state, run.reason, run.iterations) == ("stopped", "no process runs it", 20)
    assert unfinished_runs([run], "bbox/AP") == ["arm long, seed 0: stopped (no process runs it)"]
    assert states(run_study(with_changes(study, seeds=[0]), out)) == {"long/0": "done"}


def test_before_runs_had_locks_the_lock_of_the_study_tells(tmp_path):
    study, out = study_of(tmp_path, a=FINE), tmp_path / "out"
    run_study(study, out)
    for seed in study.seeds:
        write_status(out / "a" / f"seed_{seed}", Status("running"))
    (out / "a" / "seed_1" / ".lock").unlink()
    with open(out / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert [run.state for run in read_study_folder(out)[1]] == ["stopped", "running"]
    assert [run.state for run in read_study_folder(out)[1]] == ["stopped", "stopped"]


def test_seconds_of_a_start_that_was_killed_with_its_study_count(tmp_path):
    study, out = study_of(tmp_path, a=FINE), tmp_path / "out"
    folder = out / "a" / "seed_0"
    write_status(folder, Status("running", seconds=5.0))
    (folder / "console.txt").write_text("iteration 20\n")
    began = (folder / "status.json").stat().st_mtime
    os.utime(folder / "console.txt", (began + 100, began + 100))
    assert run_study(with_changes(study, seeds=[0]), out)["a", 0].seconds == pytest.approx(106.0)


def test_another_config_in_the_folder_is_refused_with_its_keys(tmp_path):
    study, out = study_of(tmp_path, a=FINE), tmp_path / "out"
    run_study(study, out)
    changed = with_changes(study, overrides=["SOLVER.MAX_ITER", "7", "MODEL.RETINANET.NUM_CONVS", "1"])
    with pytest.raises(ValueError, match="another config(.|\n)*NUM_CONVS: 2 -> 1(.|\n)*SOLVER.MAX_ITER: 1300 -> 7"):
        run_study(changed, out)
    out.rename(tmp_path / "moved")
    assert set(states(run_study(study, tmp_path / "moved")).values()) == {"done"}
    assert len(order_of_runs(tmp_path / "moved")) == 2


def test_another_study_in_the_folder_is_refused(tmp_path):
    study, out = study_of(tmp_path, a=FINE), tmp_path / "out"
    run_study(study, out)
    (tmp_path / "trial.yaml").rename(tmp_path / "other.yaml")
    with pytest.raises(ValueError, match="holds the study 'trial', not 'other'"):
        run_study(load_study(tmp_path / "other.yaml"), out)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_a_device_that_is_not_here_is_refused_before_anything_runs(tmp_path):
    study = with_changes(study_of(tmp_path, a=FINE), overrides=["MODEL.DEVICE", "cuda"])
    with pytest.raises(ValueError, match="finds no CUDA device"):
        run_study(study, tmp_path / "out")
    assert not (tmp_path / "out" / "a").exists()


def test_cores_and_gpus_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(local_jobs, "usable_cores", lambda: 8)
    run_study(study_of(tmp_path, a=FINE, b=1.5), tmp_path / "out", jobs=3)
    assert {threads for *_, threads in order_of_runs(tmp_path / "out")} == {"2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    shares = [share["CUDA_VISIBLE_DEVICES"] for share in local_jobs.shares_of_the_machine(3, on_gpu=True)]
    assert shares == ["4", "6", "4"]
    assert len(local_jobs.shares_of_the_machine(None, on_gpu=True)) == 2
    with pytest.raises(ValueError, match="at a time is 0"):
        run_study(study_of(tmp_path, a=FINE), tmp_path / "out", jobs=0)

"""Two trainings never write to one output folder; the lock of a dead process does not stand in the way."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from retinanet_ext.training import run_lock
from retinanet_ext.training.launch import main
from retinanet_ext.training.run_lock import (
    FolderInUse,
    RunLock,
    holder,
    lock_run_folder,
    releasing_run_folders,
    warn_of_holder,
)
from tests.conftest import REPO_ROOT

# Holds the lock until its standard input closes; in between, it forks a child as a data loader does.
HOLDER = """
import os, sys
from retinanet_ext.training.run_lock import RunLock
lock = RunLock(sys.argv[1])
lock.acquire()
if os.fork() == 0:
    sys.stdout.close(); os.close(1)
    import time; time.sleep(float(sys.argv[2])); os._exit(0)
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


def start_holder(folder, child_seconds=0):
    words = [sys.executable, "-c", HOLDER, str(folder), str(child_seconds)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPO_ROOT)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def other(tmp_path):
    process = start_holder(tmp_path)
    yield process
    process.kill()
    process.communicate()


def lock(folder):
    lock_run_folder(str(folder), True, lambda value: [value])


def test_a_second_run_is_refused_and_told_who_holds_the_folder(tmp_path, other):
    with pytest.raises(FolderInUse) as caught:
        RunLock(str(tmp_path)).acquire()
    for part in (f"process {other.pid} on {socket.gethostname()}, started 20", "-c", "run.lock", "another OUTPUT_DIR"):
        assert part in str(caught.value)
    assert f"process {other.pid} on" in holder(str(tmp_path))
    other.communicate("")  # ends it
    assert os.listdir(tmp_path) == [] and holder(str(tmp_path)) is None
    RunLock(str(tmp_path)).acquire()


def test_the_lock_of_a_killed_run_is_taken_over_although_its_workers_live(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    process = start_holder(tmp_path, child_seconds=20)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        lock = RunLock(str(tmp_path))
        lock.acquire()
        assert f"left by process {process.pid} on" in caplog.text
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
        lock.release()
    finally:
        process.stdin.close()
        process.stdout.close()


def write_lock(folder, **changes):
    record = {"host": "elsewhere", "pid": 1, "process_start": 1, "started": "then", "command": ["train_net.py"]}
    (folder / "run.lock").write_text(json.dumps({**record, **changes}))


def test_the_lock_of_another_host_counts_while_it_gives_signs_of_life(tmp_path):
    write_lock(tmp_path)
    with pytest.raises(FolderInUse, match="process 1 on elsewhere, started then: train_net.py.*remove the file"):
        RunLock(str(tmp_path)).acquire()
    long_ago = time.time() - 3600
    os.utime(tmp_path / "run.lock", (long_ago, long_ago))
    lock = RunLock(str(tmp_path))
    lock.acquire()
    lock.release()
    assert os.listdir(tmp_path) == []


def test_a_later_process_with_the_same_number_does_not_hold_it(tmp_path):
    write_lock(tmp_path, host=socket.gethostname(), pid=os.getppid())  # lives, but began at another time
    RunLock(str(tmp_path)).acquire()


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[1]", b'{"host": 3, "pid": 4}', b'{"host": "a", "pi'])
def test_a_damaged_lock_is_taken_over(tmp_path, content):
    (tmp_path / "run.lock").write_bytes(content)
    assert holder(str(tmp_path)) is None
    RunLock(str(tmp_path)).acquire()


def test_the_holder_may_lock_again_and_all_locks_end_with_the_run(tmp_path):
    @releasing_run_folders
    def run():
        lock(tmp_path)
        lock(tmp_path)
        assert holder(str(tmp_path)) is None and run_lock._held
        code = "import sys\nfrom retinanet_ext.training.run_lock import RunLock\nRunLock(sys.argv[1]).acquire()"
        words = [sys.executable, "-c", code, str(tmp_path)]
        assert b"FolderInUse" in subprocess.run(words, capture_output=True, cwd=REPO_ROOT).stderr
        raise KeyError

    with pytest.raises(KeyError):
        run()
    assert not run_lock._held and os.listdir(tmp_path) == []


def test_other_ranks_hear_of_a_refusal(tmp_path, other):
    heard = []
    with pytest.raises(FolderInUse):
        lock_run_folder(str(tmp_path), True, lambda message: heard.append(message) or [message, None])
    (message,) = heard
    with pytest.raises(RuntimeError, match=f"rank 0: FolderInUse: .*process {other.pid} on"):
        lock_run_folder(str(tmp_path), False, lambda value: [message, value])


def test_a_removed_lock_of_another_run_stays(tmp_path):
    mine = RunLock(str(tmp_path))
    mine.acquire()
    (tmp_path / "run.lock").unlink()
    write_lock(tmp_path)
    mine.release()
    assert json.loads((tmp_path / "run.lock").read_text())["host"] == "elsewhere"


def test_training_is_refused_before_it_writes_and_evaluation_says_whose_results_it_replaces(
    tmp_path, other, caplog, monkeypatch, shapes
):
    from tests.builders import shapes_config

    cfg = shapes_config(shapes, tmp_path)
    monkeypatch.setattr("retinanet_ext.training.launch.load_config", lambda *_: cfg)

    class Args:
        config_file, opts, eval_only, resume = "", [], False, False

    with pytest.raises(FolderInUse):
        main(Args())
    assert os.listdir(tmp_path) == ["run.lock"]
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    warn_of_holder(str(tmp_path))
    assert f"process {other.pid} on" in caplog.text and "replaces its results.json" in caplog.text

"""Two trainings never write to one output folder; the lock of a dead process does not stand in the way."""

import json
import logging
import os
import signal
import socket
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


class Holder:
    """A process that holds the lock until :meth:`end`; like a data loader, it may have forked a child that lives on."""

    def __init__(self, folder, child_seconds=0):
        self._lives, end = os.pipe()
        held, self._end = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(end), os.close(held)
            assert os.read(self._lives, 4) == b"held"
            return
        lock = RunLock(str(folder))
        lock.acquire()
        if child_seconds and os.fork() == 0:
            os.close(end), os.close(self._end)
            time.sleep(child_seconds)
            os._exit(0)
        os.close(self._end)
        os.write(end, b"held")
        os.read(held, 1)  # until the other end closes
        lock.release()
        os._exit(0)

    def end(self, sign=None):
        if self.pid and sign:
            os.kill(self.pid, sign)
        if self.pid:
            os.close(self._end), os.close(self._lives)
            os.waitpid(self.pid, 0)
        self.pid = 0


@pytest.fixture
def other(tmp_path):
    process = Holder(tmp_path)
    yield process
    process.end()


def lock(folder):
    lock_run_folder(str(folder), True, lambda value: [value])


def test_a_second_run_is_refused_and_told_who_holds_the_folder(tmp_path, other):
    with pytest.raises(FolderInUse) as caught:
        RunLock(str(tmp_path)).acquire()
    who = f"process {other.pid} on {socket.gethostname()}, started 20"
    for part in (who, "pytest", "run.lock", "another OUTPUT_DIR"):
        assert part in str(caught.value)
    assert f"process {other.pid} on" in holder(str(tmp_path))
    other.end()
    assert os.listdir(tmp_path) == [] and holder(str(tmp_path)) is None
    RunLock(str(tmp_path)).acquire()


def test_the_lock_of_a_killed_run_is_taken_over_although_its_workers_live(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    process = Holder(tmp_path, child_seconds=5)
    number = process.pid
    process.end(signal.SIGKILL)
    lock = RunLock(str(tmp_path))
    lock.acquire()
    assert f"left by process {number} on" in caplog.text
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    lock.release()


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
        (tmp_path / "model_0000001.pth.unfinished").write_bytes(b"half")  # of an earlier, killed run
        lock(tmp_path)
        assert os.listdir(tmp_path) == ["run.lock"]
        lock(tmp_path)
        assert holder(str(tmp_path)) is None and run_lock._held
        pid = os.fork()
        if pid == 0:
            try:
                RunLock(str(tmp_path)).acquire()
            except FolderInUse:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
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

"""Faults around checkpoints, injected for real: kills, full disks, cut files, flipped bytes, forged pickles."""

import io
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch

from retinanet_ext.checkpoint import checkpoint_writing
from retinanet_ext.checkpoint.checked_checkpointer import CheckedCheckpointer
from retinanet_ext.checkpoint.checkpoint_file import read_checkpoint
from retinanet_ext.checkpoint.checkpoint_writing import CheckpointNotWritten
from tests.conftest import REPO_ROOT


class _Iteration:
    """The state of a trainer, as far as this file needs it."""

    def __init__(self):
        self.value = -1

    def state_dict(self):
        return {"iteration": self.value}

    def load_state_dict(self, state):
        self.value = state["iteration"]


def checkpointer(folder, size=400):
    saver = CheckedCheckpointer(torch.nn.Linear(size, size), str(folder), trainer=_Iteration())
    saver.logger.disabled = True
    saver.keep = 2
    return saver


def resumed(folder) -> int:
    """The iteration that a resumed run would go on from; all its weights have the value of that iteration."""
    fresh = checkpointer(folder)
    fresh.resume_or_load("", resume=True)
    iteration = fresh.checkpointables["trainer"].value
    if iteration >= 0:
        assert fresh.model.weight.eq(iteration % 1000).all()
    return iteration


def save_for_ever(folder, told):
    """Save one iteration after the other, and tell each one that is saved; never returns."""
    saver = checkpointer(folder)
    saver.resume_or_load("", resume=True)
    state = saver.checkpointables["trainer"]
    while True:
        state.value += 1
        with torch.no_grad():
            saver.model.weight.fill_(state.value % 1000)
        saver.save(f"model_{state.value:07d}", iteration=state.value)
        os.write(told, b"%8d" % state.value)


def test_no_kill_while_checkpoints_are_written_loses_a_saved_iteration(tmp_path, times):
    draw, last = random.Random(0), -1
    for _ in range(times(8)):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                torch.set_num_threads(1)
                save_for_ever(tmp_path, writing)
            finally:
                os._exit(1)
        os.close(writing)
        time.sleep(draw.uniform(0.005, 0.25))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        told = b"".join(iter(lambda pipe=reading: os.read(pipe, 1 << 16), b""))
        os.close(reading)
        last = max([last, *(int(told[place : place + 8]) for place in range(0, len(told) // 8 * 8, 8))])
        found = resumed(tmp_path)
        assert found >= last
        last = found
    assert last > 0 and len(list(tmp_path.glob("*.pth"))) <= 4


def test_a_killed_training_resumes(shapes, tmp_path, times):
    from retinanet_ext.training.trainer import Trainer
    from tests.builders import shapes_config

    opts = ["SOLVER.MAX_ITER", "1000", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CHECKPOINTS_KEPT", "2"]
    opts += ["DATASETS.TEST", "()"]
    cfg = shapes_config(shapes, tmp_path / "run", *opts)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    draw, last = random.Random(0), -1
    for _ in range(max(1, times(1) // 10)):
        words = [sys.executable, "train_net.py", "--config-file", str(tmp_path / "config.yaml"), "--resume"]
        process = subprocess.Popen(words, cwd=REPO_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and _newest(tmp_path / "run") <= last:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        assert process.poll() is None, "the training ended by itself"
        process.kill()
        process.wait()
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
        assert trainer.start_iter > last + 1
        last = trainer.start_iter - 1


def _newest(folder) -> int:
    return max((int(path.stem[6:]) for path in folder.glob("model_*.pth")), default=-1)


def written(folder) -> bytes:
    """A checkpoint with weights, state and entries."""
    saver = checkpointer(folder, size=40)
    saver.model.weight.data.fill_(7)
    saver.checkpointables["trainer"].value = 7
    saver.save("model_0000007", iteration=7, best={"metric": "bbox/AP", "value": 1.5})
    return (folder / "model_0000007.pth").read_bytes()


def test_every_flipped_byte_is_found(tmp_path, times):
    data, draw = written(tmp_path), random.Random(0)
    for _ in range(times(50)):
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        (tmp_path / "model_0000007.pth").write_bytes(changed)
        with pytest.raises(ValueError, match="model_0000007.pth"):
            read_checkpoint(str(tmp_path / "model_0000007.pth"))


def test_every_cut_is_found_and_the_run_resumes_from_an_older_file(tmp_path, times):
    (tmp_path / "model_0000006.pth").write_bytes(written(tmp_path))
    data, draw = written(tmp_path), random.Random(0)
    for _ in range(times(20)):
        (tmp_path / "model_0000007.pth").write_bytes(data[: draw.randrange(len(data))])
        with pytest.raises(ValueError, match="model_0000007.pth"):
            read_checkpoint(str(tmp_path / "model_0000007.pth"))
        fresh = checkpointer(tmp_path, size=40)
        fresh.resume_or_load("", resume=True)
        assert fresh.get_checkpoint_file().endswith("model_0000006.pth") and fresh.model.weight.eq(7).all()


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no mount on this machine")
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("looks_free", [False, True])
def test_a_full_disk_keeps_what_was_there(small_disk, monkeypatch, looks_free):
    if looks_free:  # the space is gone only while the file is written
        monkeypatch.setattr(checkpoint_writing, "_free", lambda _: 1 << 40)
    saver = checkpointer(small_disk)
    saver.keep = 0
    saved = 0
    with pytest.raises(CheckpointNotWritten, match=f"{small_disk}.*bytes.*earlier checkpoints are whole.*Free some"):
        for iteration in range(10):
            with torch.no_grad():
                saver.model.weight.fill_(iteration)
            saver.checkpointables["trainer"].value = iteration
            saver.save(f"model_{iteration:07d}", iteration=iteration)
            saved += 1
    assert saved >= 1 and resumed(small_disk) == saved - 1
    assert sorted(os.listdir(small_disk)) == ["last_checkpoint", *(f"model_{i:07d}.pth" for i in range(saved))]


def test_a_limit_on_the_size_of_files_keeps_what_was_there(tmp_path, times):
    saver, draw = checkpointer(tmp_path, size=100), random.Random(0)
    saver.model.weight.data.fill_(0)
    saver.checkpointables["trainer"].value = 0
    saver.save("model_0000000")
    for _ in range(times(5)):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (draw.randrange(42_000), resource.RLIM_INFINITY))
                saver.save("model_0000001")
            except CheckpointNotWritten as error:
                code = 7 if "File too large" in str(error) else 2
            finally:
                os._exit(code)
        draw.random()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000000.pth"]


class _Canary:
    touched = False

    def __reduce__(self):
        return _touch, ()


def _touch():
    _Canary.touched = True


def _mutated(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 5)):
        place = draw.randrange(len(changed))
        kind = draw.randrange(4)
        if kind == 0:
            changed[place] = draw.randrange(256)
        elif kind == 1:
            del changed[place : place + draw.randrange(1, 9)]
        elif kind == 2:
            changed[place:place] = draw.randbytes(draw.randrange(1, 9))
        else:
            changed[place:place] = changed[draw.randrange(len(changed)) :][: draw.randrange(1, 40)]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")  # of forged protocols and escapes
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_mutated_pickles_load_or_are_refused_by_name(tmp_path, times, suffix):
    """The container's CRCs are right, so that only the reader of the pickle stands between the file and the model."""
    draw, path = random.Random(0), tmp_path / f"forged{suffix}"
    # The module's name in the pickle of the canary lets mutations reach something that would run.
    if suffix == ".pkl":
        arrays = {"model": {"a": np.arange(6.0), "b": np.float32(3)}, "c": [1, "x", (2.5, None)]}
        originals = [pickle.dumps(arrays, protocol) for protocol in range(5)] + [pickle.dumps({"model": _Canary()})]
    else:
        buffer = io.BytesIO()
        torch.save({"model": {"a": torch.arange(6.0), "b": torch.ones(2, 3)}, "c": [1, "x", (2.5, None)]}, buffer)
        archive = zipfile.ZipFile(buffer)
        members = {name: archive.read(name) for name in archive.namelist()}
        (name,) = (name for name in members if name.endswith("data.pkl"))
        originals = [members[name], pickle.dumps({"model": _Canary()}, 2)]
    for _ in range(times(150)):
        forged = _mutated(draw.choice(originals), draw)
        if suffix == ".pth":
            with zipfile.ZipFile(path, "w") as target:
                for member, content in members.items():
                    target.writestr(member, forged if member == name else content)
        else:
            path.write_bytes(forged)
        try:
            content = read_checkpoint(str(path))
        except ValueError as error:
            assert f"forged{suffix}" in str(error)
        else:
            assert isinstance(content["model"], dict)
        assert not _Canary.touched

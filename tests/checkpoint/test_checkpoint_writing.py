"""Writing a checkpoint: full disks, interrupts, diverged weights, and which files stay."""

import logging
import os
import shutil
import signal

import pytest
import torch

from retinanet_ext.checkpoint import checkpoint_writing
from retinanet_ext.checkpoint.checked_checkpointer import CheckedCheckpointer
from retinanet_ext.checkpoint.checkpoint_file import read_checkpoint
from retinanet_ext.checkpoint.checkpoint_writing import CheckpointNotWritten, first_nonfinite
from retinanet_ext.machine import atomic_file


def files(folder):
    return sorted(os.listdir(folder))


def test_space_is_checked_before_anything_is_written(tmp_path, monkeypatch):
    checkpointer = CheckedCheckpointer(torch.nn.Linear(1000, 1000), str(tmp_path))
    checkpointer.save("model_0000001")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint_writing.shutil, "disk_usage", lambda _: usage._replace(free=4_003_999))
    monkeypatch.setattr(checkpoint_writing, "atomic_file", None)  # would fail if it were called
    # A million weights and a thousand biases, of four bytes.
    with pytest.raises(CheckpointNotWritten, match="model_0000003.pth .*needs 4,004,000 bytes, and 4,003,999 are free"):
        checkpointer.save("model_0000003")
    assert files(tmp_path) == ["last_checkpoint", "model_0000001.pth"]


class _FullDisk:
    """A file that takes some bytes and then fails as a full disk does."""

    def __init__(self, file, left):
        self.file, self.left = file, left

    def write(self, data):
        self.left -= memoryview(data).nbytes
        if self.left < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)


@pytest.mark.parametrize("left", [0, 100, 3000, 30_000])
def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch, left):
    checkpointer = CheckedCheckpointer(torch.nn.Linear(100, 100), str(tmp_path))
    checkpointer.save("model_0000001")
    before = read_checkpoint(str(tmp_path / "model_0000001.pth"))["model"]["weight"]
    full = lambda *arguments: _FullDisk(open(*arguments), left)  # noqa: E731, SIM115
    monkeypatch.setattr(atomic_file, "open", full, raising=False)
    with pytest.raises(CheckpointNotWritten, match=r"model_0000003.pth .*No space left.*bytes.*earlier checkpoints"):
        checkpointer.save("model_0000003")
    assert files(tmp_path) == ["last_checkpoint", "model_0000001.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert torch.equal(read_checkpoint(str(tmp_path / "model_0000001.pth"))["model"]["weight"], before)


def test_an_interrupt_comes_after_the_file_is_whole(tmp_path, monkeypatch):
    save = torch.save
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background

    def interrupted(content, file):
        os.kill(os.getpid(), signal.SIGINT)
        save(content, file)

    monkeypatch.setattr(checkpoint_writing.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CheckedCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).save("model_0000001")
    assert files(tmp_path) == ["model_0000001.pth"]  # the tag comes next
    assert "weight" in read_checkpoint(str(tmp_path / "model_0000001.pth"))["model"]
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["1.weight", "1.running_var"])
def test_weights_that_are_not_finite_are_never_written(tmp_path, value, name):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    checkpointer = CheckedCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    with torch.no_grad():
        model.state_dict()[name][1] = value
    with pytest.raises(FloatingPointError, match=rf"first {name} \(1 of 2 values\).*model_0000003.pth is not written"):
        checkpointer.save("model_0000003")
    assert files(tmp_path) == ["last_checkpoint", "model_0000001.pth"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e5m2])
def test_finite_is_asked_in_every_type(dtype):
    good = torch.ones(3).to(dtype)
    bad = torch.tensor([1, float("inf"), 1]).to(dtype)
    tensors = {"count": torch.tensor(3), "none": torch.zeros(0), "good": good}
    assert first_nonfinite(tensors) is None
    assert first_nonfinite({**tensors, "bad": bad}) == "bad (1 of 3 values)"


def test_the_newest_are_kept_and_the_tag_comes_first(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    checkpointer = CheckedCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    for name in ("model_best", "model_0000090"):  # the second one is of an earlier, longer run
        checkpointer.save(name)
    checkpointer.keep = 2
    for iteration in (9, 19, 29, 39):
        checkpointer.save(f"model_{iteration:07d}")
    checkpointer.save("model_final")
    kept = ["model_0000029.pth", "model_0000039.pth", "model_0000090.pth", "model_best.pth", "model_final.pth"]
    assert files(tmp_path) == ["last_checkpoint", *kept]


def test_nothing_is_removed_before_the_new_file_is_whole(tmp_path, monkeypatch):
    checkpointer = CheckedCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    checkpointer.keep = 1
    checkpointer.save("model_0000009")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_writing.torch, "save", fail)
    with pytest.raises(CheckpointNotWritten):
        checkpointer.save("model_0000019")
    assert files(tmp_path) == ["last_checkpoint", "model_0000009.pth"]


def test_a_disk_that_has_no_room_for_the_tag_is_named(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("retinanet_ext.checkpoint.checked_checkpointer.write_atomically", fail)
    with pytest.raises(CheckpointNotWritten, match="model_0000009.pth is written, but last_checkpoint .*No space"):
        CheckedCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).save("model_0000009")

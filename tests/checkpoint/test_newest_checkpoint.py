"""Which checkpoint a run resumes from when files of its folder are damaged."""

import logging

import pytest
import torch

from retinanet_ext.checkpoint.checked_checkpointer import CheckedCheckpointer
from retinanet_ext.checkpoint.newest_checkpoint import NewestCheckpoint


class Counter:
    """A trainer, as far as its checkpoints go."""

    def __init__(self, iteration=-1):
        self.iteration = iteration

    def state_dict(self):
        return {"iteration": self.iteration}

    def load_state_dict(self, state):
        self.iteration = state["iteration"]


def checkpointer(folder, iteration=-1):
    return CheckedCheckpointer(torch.nn.Linear(1, 1), str(folder), trainer=Counter(iteration))


@pytest.fixture
def run(tmp_path):
    for iteration in (4, 9, 14):
        checkpointer(tmp_path, iteration).save(f"model_{iteration:07d}", iteration=iteration)
    return tmp_path


def resumed(folder) -> int:
    fresh = checkpointer(folder)
    fresh.resume_or_load("", resume=True)
    return fresh.checkpointables["trainer"].iteration


def flip(path, place=-200):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    return caplog


def test_the_tagged_file_is_taken_in_silence(run, log):
    (run / "last_checkpoint").write_text("model_0000009.pth\n")
    assert resumed(run) == 9
    assert not [record for record in log.records if record.levelno >= logging.WARNING]


def test_damaged_files_are_passed_over_with_one_warning(run, log):
    flip(run / "model_0000014.pth")
    (run / "model_0000009.pth").write_bytes((run / "model_0000009.pth").read_bytes()[:500])
    assert resumed(run) == 4
    (warning,) = [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]
    assert "resuming from model_0000004.pth" in warning
    assert "model_0000014.pth: damaged: " in warning and "model_0000009.pth: damaged: " in warning


@pytest.mark.parametrize(
    ("tag", "found"),
    [
        (b"\xff\xfe\x00\x80", "bytes that are no text"),
        (b"", "it is empty"),
        (b"  \n", "it is empty"),
        (b"model_0000099.pth", "FileNotFoundError"),
        (b"../other/model_0000001.pth", "it names '../other/model_0000001.pth'"),
        (b"/etc/passwd", "it names '/etc/passwd'"),
        (b"..", "it names '..'"),
        (b"a\0b.pth", "it names"),
        (b"events.txt", "unknown kind of checkpoint '.txt'"),
        (None, "last_checkpoint is missing"),
    ],
)
def test_a_tag_that_is_wrong(run, log, tag, found):
    (run / "last_checkpoint").unlink()
    if tag is not None:
        (run / "last_checkpoint").write_bytes(tag)
    (run / "events.txt").write_text("no checkpoint")
    assert resumed(run) == 14
    (warning,) = [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]
    assert found in warning


def test_files_with_bad_weights_or_without_a_trainer_are_passed_over(run, log):
    nan = {"weight": torch.tensor([[float("nan")]])}
    torch.save({"model": nan, "trainer": {"iteration": 19}}, run / "model_19.pth")
    torch.save({"model": {"weight": torch.ones(1, 1)}}, run / "model_24.pth")
    (run / "last_checkpoint").write_text("model_24.pth")
    assert resumed(run) == 14
    assert "model_24.pth: ValueError: it holds weights but no trainer state" in log.text
    assert "model_19.pth: ValueError: its weights are NaN or infinite, first weight" in log.text


def test_the_final_file_stands_where_its_iteration_says(run):
    checkpointer(run, 11).save("model_final", iteration=11)  # of an earlier run with a lower MAX_ITER
    (run / "last_checkpoint").write_text("")
    assert resumed(run) == 14
    flip(run / "model_0000014.pth")
    assert resumed(run) == 11


def test_without_a_good_file_each_is_named_with_its_fault(run):
    for path in run.glob("*.pth"):
        flip(path)
    with pytest.raises(ValueError) as caught:
        resumed(run)
    for part in ("model_0000004.pth: ", "model_0000009.pth: ", "model_0000014.pth: ", "MODEL.WEIGHTS", "damaged"):
        assert part in str(caught.value)


def test_an_empty_folder_has_nothing_to_resume(tmp_path):
    assert not checkpointer(tmp_path).has_checkpoint()
    assert resumed(tmp_path) == -1
    assert resumed(tmp_path / "not_made") == -1


def test_a_fault_that_only_another_process_sees_counts(run, log):
    def all_gather(value):
        if isinstance(value, (list, tuple)):
            return [value, value]
        calls.append(value)
        return [value, "ValueError: damaged here" if len(calls) == 1 else None]

    calls = []
    path, content = NewestCheckpoint(str(run), True, all_gather).find()
    assert path.endswith("model_0000009.pth") and content["trainer"] == {"iteration": 9}
    assert "model_0000014.pth (on rank 1): ValueError: damaged here" in log.text


def test_processes_that_see_different_folders_are_told(run):
    with pytest.raises(ValueError, match="rank 0: model_0000014.pth, rank 1: none"):
        NewestCheckpoint(str(run), True, lambda value: [value, (None, None)]).find()

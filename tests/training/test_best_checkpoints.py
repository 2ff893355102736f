"""The best checkpoints of a run: which files stay, and what a resumed run remembers, on either engine."""

import json
import logging
import math

import pytest
import torch

from retinanet_ext.d2 import hooks
from retinanet_ext.training.best_checkpoints import BestCheckpoints, UntaggedCheckpointer


class _Storage:
    def __init__(self):
        self.values = {}

    def latest(self):
        return self.values


class _Trainer:
    """As much of a trainer as the hook sees."""

    def __init__(self, start_iter, max_iter):
        self.iter = self.start_iter = start_iter
        self.max_iter, self.storage = max_iter, _Storage()


def evaluated(folder, values, start_iter=0, keep=1, metric="bbox/AP"):
    """Evaluates after each iteration; the weight of the model is the value."""
    model = torch.nn.Linear(1, 1)
    best = BestCheckpoints(UntaggedCheckpointer(model, str(folder)), metric, period=1, keep=keep)
    best.trainer = trainer = _Trainer(start_iter, start_iter + len(values))
    best.before_train()
    for iteration, value in enumerate(values, start_iter):
        trainer.iter = iteration
        torch.nn.init.constant_(model.weight, value if math.isfinite(value) else -1.0)
        if iteration == trainer.max_iter - 1:
            best.after_step()
            trainer.iter += 1
            trainer.storage.values[metric] = (value, iteration)
            best.after_train()
        else:
            trainer.storage.values[metric] = (value, iteration)
            best.after_step()
    return best


def weights(folder):
    return {path.name: torch.load(path)["model"]["weight"].item() for path in folder.glob("*.pth")}


def test_it_is_a_hook_of_the_engine():
    assert issubclass(BestCheckpoints, hooks.HookBase) and not BestCheckpoints(None, "", period=1).state_dict()


@pytest.mark.parametrize(
    ("values", "keep", "expected"),
    [
        ([math.nan, 10.0, 9.0, 10.0, 11.0], 1, {"model_best.pth": 11}),
        ([10.0, 9.0, 8.0], 2, {"model_best.pth": 10, "model_best_0000001.pth": 9}),
        ([8.0, 9.0, 10.0], 2, {"model_best.pth": 10, "model_best_0000001.pth": 9}),
        ([5.0, 1.0, 7.0, 6.0, 2.0], 3, {"model_best.pth": 7, "model_best_0000000.pth": 5, "model_best_0000003.pth": 6}),
        ([5.0, 5.0, 5.0], 2, {"model_best.pth": 5, "model_best_0000001.pth": 5}),  # of equals the earlier ones
        ([math.nan, math.inf], 2, {}),
    ],
)
def test_the_best_stay(tmp_path, values, keep, expected):
    evaluated(tmp_path, values, keep=keep)
    assert weights(tmp_path) == expected
    assert not (tmp_path / "last_checkpoint").exists()
    if expected:
        record = json.loads((tmp_path / "model_best.json").read_text())
        finite = sorted(expected.values(), reverse=True)
        assert [entry["value"] for entry in record["kept"]] == finite and record["value"] == finite[0]
        assert {entry["file"]: entry["value"] for entry in record["kept"]} == expected


def test_any_order_keeps_the_k_highest(tmp_path, generator):
    for trial in range(20):
        values = torch.randperm(7, generator=generator).tolist()
        folder = tmp_path / str(trial)
        half = evaluated(folder, [float(value) for value in values[:4]], keep=3)
        assert half is not None
        evaluated(folder, [float(value) for value in values[4:]], start_iter=4, keep=3)
        assert sorted(weights(folder).values()) == [4, 5, 6] and weights(folder)["model_best.pth"] == 6


def test_the_best_value_survives_a_restart(tmp_path):
    evaluated(tmp_path, [10.0, 50.0])
    evaluated(tmp_path, [40.0], start_iter=2)
    assert weights(tmp_path) == {"model_best.pth": 50}
    record = json.loads((tmp_path / "model_best.json").read_text())
    assert (record["metric"], record["value"], record["iteration"]) == ("bbox/AP", 50.0, 1)
    evaluated(tmp_path, [40.0, 60.0], start_iter=2)
    assert weights(tmp_path) == {"model_best.pth": 60}


def test_a_repeated_iteration_is_not_kept_twice(tmp_path):
    evaluated(tmp_path, [1.0, 5.0, 3.0], keep=2)
    evaluated(tmp_path, [5.0, 3.0, 4.0], start_iter=1, keep=2)  # resumed from before the best one
    assert weights(tmp_path) == {"model_best.pth": 5, "model_best_0000003.pth": 4}


@pytest.mark.parametrize(
    "text",
    [
        "", "[1]", "\0\0", '{"metric": "bbox/AP", "va', '{"metric": "bbox/AP", "value": "x"}',
        '{"metric": "bbox/AP", "value": 1, "iteration": 0, "kept": [3]}',
        '{"metric": "bbox/AP", "kept": [{"value": 9, "iteration": 0, "file": "../a.pth"}]}',
    ],
)  # fmt: skip
def test_a_damaged_record_is_set_aside_and_the_checkpoint_remembers(tmp_path, text, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    evaluated(tmp_path, [10.0, 50.0])
    (tmp_path / "model_best.json").write_text(text)
    evaluated(tmp_path, [40.0], start_iter=2)
    assert weights(tmp_path) == {"model_best.pth": 50}
    assert (tmp_path / "model_best.json.damaged").read_text() == text
    assert "model_best.json cannot be read" in caplog.text


def test_a_run_killed_before_it_wrote_the_record_remembers_too(tmp_path):
    evaluated(tmp_path, [50.0])
    (tmp_path / "model_best.json").unlink()
    evaluated(tmp_path, [40.0], start_iter=1)
    assert weights(tmp_path) == {"model_best.pth": 50}


def test_another_metric_or_a_new_training_starts_afresh(tmp_path):
    evaluated(tmp_path, [50.0])
    evaluated(tmp_path, [1.0], start_iter=1, metric="bbox/AP50")
    assert weights(tmp_path) == {"model_best.pth": 1}
    evaluated(tmp_path, [0.5], metric="bbox/AP50")
    assert weights(tmp_path) == {"model_best.pth": 0.5}


def test_a_metric_that_does_not_exist_is_reported(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    best = BestCheckpoints(UntaggedCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)), "bbox/APP", period=0)
    best.trainer = _Trainer(0, 1)
    best.trainer.storage.values["bbox/AP"] = (1.0, 0)
    best.before_train()
    best.trainer.iter = 1
    best.after_train()
    assert "'bbox/APP'" in caplog.text and "evaluated: bbox/AP" in caplog.text

import json
import math

import pytest
import torch
from torch import nn

from retinanet_ext.lite.checkpointer import DetectionCheckpointer
from retinanet_ext.lite.engine import TrainerBase, hooks
from retinanet_ext.lite.events import EventWriter


class _Idle(TrainerBase):
    """Iterations in which nothing happens."""

    def run_step(self):
        pass


def _train(hook_list, max_iter, start_iter=0):
    trainer = _Idle()
    trainer.register_hooks(hook_list)
    trainer.train(start_iter, max_iter)
    return trainer


def _evaluations(period, **kwargs):
    """The iterations at which a hook evaluates, in a training of 10 iterations."""
    seen = []

    def evaluate():
        seen.append(trainer.iter)
        return {}

    trainer = _Idle()
    trainer.register_hooks([hooks.EvalHook(period, evaluate, **kwargs)])
    trainer.train(0, 10)
    return seen


@pytest.mark.parametrize("period, expected", [(0, [10]), (4, [3, 7, 10]), (5, [4, 10]), (20, [10])])
def test_evaluation_every_period_and_once_at_the_end(period, expected):
    assert _evaluations(period) == expected


def test_evaluation_at_the_end_can_be_left_out():
    assert _evaluations(4, eval_after_train=False) == [3, 7]


def test_no_evaluation_after_a_failure():
    def fail(trainer):
        if trainer.iter == 9:
            raise KeyError

    seen = []
    trainer = _Idle()
    trainer.register_hooks([hooks.CallbackHook(after_step=fail), hooks.EvalHook(0, lambda: seen.append(1))])
    with pytest.raises(KeyError):
        trainer.train(0, 10)
    assert seen == []


def test_results_are_flattened_and_texts_left_out():
    results = {"bbox": {"AP": 3, "AP-cat": math.nan, "note": "12", "box": None, "deep": {"x": torch.tensor(1.5)}}}
    latest = _train([hooks.EvalHook(0, lambda: results)], 1).storage.latest()
    assert latest.pop("bbox/AP-cat")[0] != latest.get("bbox/AP-cat")  # NaN
    assert latest == {"bbox/AP": (3.0, 1), "bbox/deep/x": (1.5, 1)}


def test_results_must_be_a_dict():
    with pytest.raises(TypeError, match="dict of results, found list"):
        _train([hooks.EvalHook(0, lambda: [1])], 1)


def test_evaluation_leaves_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    _train([hooks.EvalHook(1, lambda: {"random": torch.rand(5).sum()})], 3)
    assert torch.equal(torch.rand(1), expected)


class _Notes(EventWriter):
    def __init__(self):
        self.notes = []

    def write(self):
        from retinanet_ext.lite.events import get_event_storage

        self.notes.append(get_event_storage().iter)

    def close(self):
        self.notes.append("closed")


def test_writers_write_every_period_at_the_last_iteration_and_at_the_end():
    writer = _Notes()
    _train([hooks.PeriodicWriter([writer], period=3)], 8)
    assert writer.notes == [2, 5, 7, 8, "closed"]


def test_the_timer_leaves_out_the_first_iterations():
    trainer = _train([hooks.IterationTimer(warmup_iter=3)], 5)
    assert [iteration for _, iteration in trainer.storage.history("time").values()] == [2, 3, 4]


def test_callbacks_get_the_trainer():
    seen = []
    moments = ("before_train", "before_step", "after_step", "after_train")
    callbacks = {moment: lambda trainer, m=moment: seen.append((m, trainer.iter)) for moment in moments}
    _train([hooks.CallbackHook(**callbacks)], 1)
    assert seen == [("before_train", 0), ("before_step", 0), ("after_step", 0), ("after_train", 1)]


def test_the_rate_of_the_largest_group_is_written_before_it_changes():
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))], "lr": 5.0},
        {"params": [nn.Parameter(torch.zeros(1)) for _ in range(2)], "lr": 1.0},
    ]
    optimizer = torch.optim.SGD(groups)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    step = hooks.CallbackHook(before_step=lambda _: optimizer.step())
    trainer = _train([step, hooks.LRScheduler(optimizer, scheduler)], 3)
    assert trainer.storage.history("lr").values() == [(1.0, 0), (0.5, 1), (0.25, 2)]


def _best_of(folder, values, mode="max", start_iter=0, metric="bbox/AP"):
    """Trains with one evaluation per iteration; returns the hook and the iterations that were saved."""
    checkpointer = DetectionCheckpointer(nn.Linear(1, 1), str(folder))
    saved = []
    checkpointer.save = lambda name, **extra: saved.append((name, extra))
    best = hooks.BestCheckpointer(1, checkpointer, metric, mode)
    results = iter(values)
    evaluate = hooks.EvalHook(1, lambda: {"bbox": {metric.removeprefix("bbox/"): next(results)}})
    _train([evaluate, best], start_iter + len(values), start_iter)
    assert all(name == "model_best" for name, _ in saved)
    return best, [extra["iteration"] for _, extra in saved]


def test_the_best_model_is_saved_when_it_is_better(tmp_path):
    best, saved = _best_of(tmp_path, [math.nan, 10.0, 9.0, 10.0, 11.0])
    assert saved == [1, 4]
    assert (best.best_metric, best.best_iter) == (11.0, 4)


def test_the_best_may_be_the_smallest(tmp_path):
    assert _best_of(tmp_path, [3.0, 4.0, 2.0], mode="min")[1] == [0, 2]


def test_the_best_value_survives_a_restart(tmp_path):
    _best_of(tmp_path, [10.0, 50.0])
    best, saved = _best_of(tmp_path, [40.0], start_iter=2)
    assert saved == []
    assert (best.best_metric, best.best_iter) == (50.0, 1)
    assert _best_of(tmp_path, [40.0, 60.0], start_iter=2)[1] == [3]
    record = {"metric": "bbox/AP", "value": 60.0, "iteration": 3}
    assert json.loads((tmp_path / "model_best.json").read_text()) == record


def test_a_restart_that_chooses_by_another_metric_starts_afresh(tmp_path):
    _best_of(tmp_path, [50.0])
    assert _best_of(tmp_path, [1.0], start_iter=1, metric="bbox/AP50")[1] == [1]


def test_a_damaged_record_of_the_best_value_is_named(tmp_path):
    (tmp_path / "model_best.json").write_text('{"metric": "bbox/AP", "va')
    with pytest.raises(ValueError, match="model_best.json cannot be read.*remove the file"):
        _best_of(tmp_path, [1.0], start_iter=1)


def test_a_full_disk_leaves_the_last_record(tmp_path, monkeypatch):
    _best_of(tmp_path, [10.0])
    record = (tmp_path / "model_best.json").read_text()

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError):
        _best_of(tmp_path, [20.0], start_iter=1)
    assert (tmp_path / "model_best.json").read_text() == record


def test_a_new_training_in_an_old_folder_starts_afresh(tmp_path):
    _best_of(tmp_path, [50.0])
    assert _best_of(tmp_path, [1.0])[1] == [0]


def test_a_metric_that_does_not_exist_is_reported(tmp_path, caplog):
    best = hooks.BestCheckpointer(0, DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path)), "bbox/APP")
    _train([hooks.EvalHook(0, lambda: {"bbox": {"AP": 1.0}}), best], 1)
    assert "'bbox/APP'" in caplog.text
    assert "bbox/AP\n" in caplog.text + "\n"
    assert best.best_metric is None


def test_mode_is_max_or_min():
    with pytest.raises(ValueError, match="'best'.*max, min"):
        hooks.BestCheckpointer(0, None, "bbox/AP", mode="best")


def test_checkpoints_every_period_and_at_the_end(tmp_path):
    checkpointer = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path))
    _train([hooks.PeriodicCheckpointer(checkpointer, 2, max_to_keep=1)], 5)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["model_0000003.pth", "model_final.pth"]
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_final.pth")

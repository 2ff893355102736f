"""A run ends as finished when its metric no longer improves."""

import json
import logging
import math

import pytest

from retinanet_ext import d2
from retinanet_ext.training import trainer as trainer_module
from retinanet_ext.training.early_stop import best_and_waited
from retinanet_ext.training.trainer import Trainer
from tests.builders import shapes_config, small_config

WORDS = ["SOLVER.MAX_ITER", "10", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "2", "DATASETS.CHECK_IMAGES",
         "none"]  # fmt: skip


@pytest.mark.parametrize(("values", "min_delta", "expected"), [
    ([], 0.0, (None, None, 0)),
    ([1.0, 2.0, 3.0], 0.0, (3.0, 2, 0)),
    ([3.0, 2.0, 3.0], 0.0, (3.0, 0, 2)),
    ([3.0, 3.4, 3.8], 0.5, (3.8, 2, 0)),
    ([3.0, 3.4, 3.5], 0.5, (3.0, 0, 2)),
    ([None, 1.0, None, None], 0.0, (1.0, 1, 2)),
    ([None, None], 0.0, (None, None, 2)),
])  # fmt: skip
def test_best_and_waited(values, min_delta, expected):
    assert best_and_waited(list(enumerate(values)), min_delta) == expected


class _Scripted(d2.DatasetEvaluator):
    """Returns the next of the values that the test wrote down."""

    def __init__(self, values):
        self.values = values

    def process(self, inputs, outputs):
        pass

    def evaluate(self):
        value = self.values.pop(0)
        return {"bbox": {} if value is None else {"AP": value}}


@pytest.fixture
def scripted(monkeypatch, shapes, tmp_path):
    """Trains with given values of AP: one for each evaluation."""

    def run(values, *words, folder="run", resume=False, max_iter=None):
        values = list(values)
        monkeypatch.setitem(trainer_module.EVALUATORS, "coco", lambda name, *, output_dir, cfg: _Scripted(values))
        (tmp_path / folder).mkdir(exist_ok=True)  # Detectron2 expects it
        trainer = Trainer(shapes_config(shapes, tmp_path / folder, *WORDS, *words))
        trainer.resume_or_load(resume=resume)
        trainer.max_iter = max_iter or trainer.max_iter
        trainer.train()
        return trainer, values

    return run


def test_the_run_ends_as_finished(scripted, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    caplog.set_level("INFO")
    trainer, left = scripted([1.0, 3.0, 2.0, 3.0, 9.0, 8.0], "TEST.EARLY_STOP.PATIENCE", "2")
    # Evaluations after iterations 1, 3, 5 and 7; the fifth is the one at the end.
    assert left == [8.0] and trainer.iter == trainer.max_iter == 8
    folder = tmp_path / "run"
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert json.loads((folder / "results.json").read_text())["bbox"]["AP"] == 9.0
    values = json.loads((folder / "early_stop.json").read_text())["values"]
    assert values == [[1, 1.0], [3, 3.0], [5, 2.0], [7, 3.0]]
    assert "Early stop at iteration 7: bbox/AP did not improve by more than 0 in 2 evaluations" in caplog.text
    assert "the best is 3.00000 at iteration 3" in caplog.text
    assert "Exception during training" not in caplog.text and "by an error" not in caplog.text


def test_an_improving_run_goes_to_its_end(scripted):
    trainer, left = scripted([float(i) for i in range(20)], "TEST.EARLY_STOP.PATIENCE", "1")
    assert trainer.iter == 10 and len(left) == 15


def test_too_small_a_gain_is_none(scripted):
    words = ["TEST.EARLY_STOP.PATIENCE", "2", "TEST.EARLY_STOP.MIN_DELTA", "0.5"]
    trainer, _ = scripted([1.0, 1.4, 1.5, 7.0], *words)
    assert trainer.iter == 6


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_metric_without_a_value_counts_as_no_improvement(scripted, value, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    trainer, _ = scripted([1.0, value, value, value], "TEST.EARLY_STOP.PATIENCE", "2")
    assert trainer.iter == 6
    found = "no metric 'bbox/AP' in this evaluation" if value is None else "bbox/AP is nan"
    assert found in caplog.text and "counts as no improvement" in caplog.text


def test_the_count_survives_a_resume(scripted, tmp_path):
    words = ["TEST.EARLY_STOP.PATIENCE", "3"]
    # Evaluations after 1 and 3, and at the end of the first part.
    scripted([5.0, 1.0, 1.0], *words, max_iter=5)
    record = json.loads((tmp_path / "run" / "early_stop.json").read_text())
    assert (record["best"], record["best_iteration"], record["evaluations_without_improvement"]) == (5.0, 1, 1)
    trainer, _ = scripted([2.0, 2.0, 2.0, 2.0], *words, resume=True)
    assert trainer.start_iter == 5 and trainer.iter == 8  # after 5 and 7
    # A new run in the folder begins anew.
    trainer, _ = scripted([1.0, 1.0, 1.0, 1.0, 1.0], *words)
    assert trainer.iter == 8


def test_an_early_stop_that_could_never_come_is_refused(shapes, tmp_path):
    base = [*WORDS, "TEST.EARLY_STOP.PATIENCE", "2"]
    for words, key in (
        (["TEST.EVAL_PERIOD", "0"], "TEST.EVAL_PERIOD"),
        (["DATASETS.TEST", "()"], "DATASETS.TEST"),
        (["TEST.BEST_METRIC", ""], "TEST.EARLY_STOP.METRIC"),
    ):
        with pytest.raises(ValueError, match=f"PATIENCE is 2, which needs {key}"):
            Trainer(shapes_config(shapes, tmp_path, *base, *words))
    with pytest.raises(ValueError, match="TEST.EARLY_STOP.PATIENCE is -1"):
        small_config("TEST.EARLY_STOP.PATIENCE", "-1")

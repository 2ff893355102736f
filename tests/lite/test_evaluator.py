"""The evaluator interface, the inference loop, and printing and checking results."""

import gc
import logging
import weakref

import pytest
import torch

from retinanet_ext.lite.cfg_node import get_cfg
from retinanet_ext.lite.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)


class Recorder(DatasetEvaluator):
    def __init__(self, result):
        self.result = result
        self.calls = []

    def reset(self):
        self.calls = ["reset"]

    def process(self, inputs, outputs):
        self.calls.append((inputs, outputs))

    def evaluate(self):
        self.calls.append("evaluate")
        return self.result


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.frozen = torch.nn.BatchNorm1d(1)
        self.train()
        self.frozen.eval()

    def forward(self, batch):
        assert not self.training and not self.layer.training
        assert not torch.is_grad_enabled()
        return [record["x"] + 1 for record in batch]


def test_loop_feeds_evaluators_in_order():
    first, second = Recorder({"a": {"m": 1}}), Recorder({"b": {"m": 2}})
    loader = [[{"x": 1}, {"x": 2}], [{"x": 3}]]
    results = inference_on_dataset(Model(), loader, [first, second])
    assert results == {"a": {"m": 1}, "b": {"m": 2}}
    assert list(results) == ["a", "b"]
    for evaluator in (first, second):
        assert evaluator.calls == ["reset", (loader[0], [2, 3]), (loader[1], [4]), "evaluate"]


def test_without_evaluator_the_model_still_runs():
    seen = []
    assert inference_on_dataset(seen.append, iter([[1], [2]]), None) == {}
    assert seen == [[1], [2]]


def test_no_result_becomes_an_empty_dict():
    assert inference_on_dataset(Model(), [[{"x": 1}]], Recorder(None)) == {}


def test_every_module_gets_its_mode_back_also_after_an_error():
    model = Model()
    inference_on_dataset(model, [[{"x": 1}]], None)
    assert model.training and model.layer.training and not model.frozen.training
    with pytest.raises(KeyError):
        inference_on_dataset(model, [[{}]], None)
    assert model.training and model.layer.training and not model.frozen.training
    assert torch.is_grad_enabled()


def test_callbacks_are_called_around_the_model():
    calls = []
    names = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {name: lambda name=name: calls.append(name) for name in names}
    inference_on_dataset(lambda batch: calls.append("model"), [[1], [2]], None, callbacks)
    per_batch = ["before_inference", "model", "after_inference"]
    assert calls == ["on_start", *per_batch, *per_batch, "on_end"]
    with pytest.raises(ValueError, match="before_infer.*legal names: on_start"):
        inference_on_dataset(lambda batch: None, [], None, {"before_infer": print})


def test_a_batch_is_freed_before_the_next_one_is_loaded():
    class Batch(list):
        pass

    alive = []

    def loader():
        for _ in range(3):
            gc.collect()
            assert not [ref for ref in alive if ref() is not None]
            batch = Batch([0])
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    inference_on_dataset(lambda batch: None, loader(), None)
    assert len(alive) == 3


def test_progress_is_logged_with_eta_only_now_and_then(caplog, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("retinanet_ext.lite.evaluation.evaluator.time.perf_counter", lambda: next(clock))
    with caplog.at_level(logging.INFO):
        inference_on_dataset(lambda batch: None, [[0]] * 12, None)
    # The clock advances by 1 per reading and is read 4 times per batch, so at most every second batch logs a line.
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "Inference on 12 batches"
    assert "12 batches" in lines[-1] and "s/batch" in lines[-1]
    progress = lines[1:-1]
    assert 3 <= len(progress) <= 6
    assert all("/12 batches; " in line and "ETA 0:00:" in line for line in progress[:-1])


def test_merging_refuses_a_key_that_occurs_twice():
    with pytest.raises(ValueError, match="'bbox': Recorder and Recorder"):
        DatasetEvaluators([Recorder({"bbox": 1}), Recorder({"bbox": 2})]).evaluate()
    assert DatasetEvaluators([Recorder(None), Recorder({"bbox": 2})]).evaluate() == {"bbox": 2}


def test_only_the_main_process_has_merged_results(monkeypatch):
    monkeypatch.setattr("retinanet_ext.lite.comm.is_main_process", lambda: False)
    evaluator = Recorder({"bbox": 1})
    assert DatasetEvaluators([evaluator]).evaluate() == {}
    assert evaluator.calls == ["evaluate"]


def test_csv_lines(caplog):
    with caplog.at_level(logging.INFO):
        print_csv_format({"bbox": {"AP": 12.34567, "AP50": float("nan"), "AP-cat": 1.0}, "seconds": 3.5})
    assert [record.getMessage() for record in caplog.records] == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 12.3457,nan",
        "copypaste: seconds=3.5",
    ]
    with pytest.raises(TypeError, match="NoneType"):
        print_csv_format(None)


def test_verify_results():
    cfg = get_cfg()
    assert verify_results(cfg, {}) is True
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 38.5, 0.2], ["bbox", "AP50", 60.0, 1.0]]
    assert verify_results(cfg, {"bbox": {"AP": 38.69, "AP50": 59.01}}) is True
    with pytest.raises(ValueError, match=r"AP: expected 38.5 \+- 0.2, found 38.7100; bbox AP50: .* missing"):
        verify_results(cfg, {"bbox": {"AP": 38.71}})
    with pytest.raises(ValueError, match="found nan"):
        verify_results(cfg, {"bbox": {"AP": float("nan"), "AP50": 60.0}})
    with pytest.raises(ValueError, match="missing"):
        verify_results(cfg, {})

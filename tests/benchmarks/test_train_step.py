"""The benchmarks of whole models time rows with the same results, and refuse to time others."""

import math

import pytest
import torch

from benchmarks.inference import modes
from benchmarks.workers import available_rows, format_results, make_model_parser, measure, open_workers

TINY = ["--height=64", "--width=96", "--depth=18", "--images=1", "--threads=1", "--classes=5", "--boxes=2"]
PARTS = ("forward", "backward", "optimizer")


@pytest.fixture(scope="module")
def workers():
    with open_workers(available_rows("cpu"), make_model_parser("").parse_args(TINY)) as workers:
        yield workers


def test_rows_agree_and_their_training_steps_are_timed(workers):
    results = measure(workers, "train_step", repeats=1)
    assert [result["row"] for result in results] == [str(row) for row in available_rows("cpu")]
    for result in results:
        seconds = {name: values[0] for name, values in result["seconds"].items()}
        assert all(len(values) == 1 for values in result["seconds"].values())
        assert set(seconds) == {*PARTS, "step"} and min(seconds.values()) > 0
        assert math.isclose(sum(seconds[name] for name in PARTS), seconds["step"])
        assert result["peak_mib"] > 100
    # torchvision divides its losses by another number, so only its network can be compared.
    assert set(results[0]["differences"]) >= {"network"}
    assert all(str(worker.row) in format_results(results, whole="step") for worker in workers)


def test_inference_of_the_same_rows(workers):
    results = measure(workers, "inference", repeats=1)
    assert all(len(result["seconds"]["inference"]) == 1 for result in results)
    assert all(result["differences"]["network"] < 0.2 for result in results)


def test_rows_of_inference_are_unique():
    for device in ("cpu", "cuda"):
        names = [str(row) for row in available_rows(device, modes(device, compile=True))]
        assert len(set(names)) == len(names)


def test_wrong_weights_are_not_timed(workers, tmp_path, monkeypatch):
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    workers[0].ask("make_weights", good)
    state = torch.load(good, weights_only=True)
    torch.save({**state, "head.cls_score.bias": state["head.cls_score.bias"] + 1.0}, bad)
    for worker in workers:
        worker.ask("load_weights", good if worker is not workers[0] else bad)
    asked = []
    for worker in workers:
        monkeypatch.setattr(worker, "ask", lambda method, ask=worker.ask: asked.append(method) or ask(method))
    with pytest.raises(RuntimeError, match=f"{workers[0].row} differs from .*network"):
        measure(workers, "train_step", repeats=1)
    assert set(asked) == {"train_step_outputs"}

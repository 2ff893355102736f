"""The benchmark times rows that compute the same, and refuses to time others."""

import math

import pytest
import torch

from benchmarks.train_step import available_rows, format_table, measure, open_workers, parse_arguments

ROWS = available_rows()
if len(ROWS) == 1:  # without Detectron2: something to compare with
    ROWS = ROWS * 2
PARTS = ("forward", "backward", "optimizer")


@pytest.fixture(scope="module")
def workers():
    tiny = parse_arguments(["--height=64", "--width=64", "--depth=18", "--images=1", "--threads=1"])
    with open_workers(ROWS, tiny) as workers:
        yield workers


def test_rows_agree_and_are_timed(workers):
    results = measure(workers, repeats=1)
    assert [result["model"] for result in results] == [f"{model} on {engine}" for model, engine in ROWS]
    for result in results:
        assert set(result["differences"]) == {"loss_cls", "loss_box_reg", "gradient", "detections"}
        seconds = {name: values[0] for name, values in result["seconds"].items()}
        assert all(len(values) == 1 for values in result["seconds"].values())
        assert set(seconds) == {*PARTS, "step", "inference"} and min(seconds.values()) > 0
        assert math.isclose(sum(seconds[name] for name in PARTS), seconds["step"])
        assert result["peak_mib"] > 100
    table = format_table(results)
    assert all(result["model"] in table for result in results)


@pytest.mark.parametrize("layer, wrong", [("head.cls_score", "loss_cls"), ("head.bbox_pred", "loss_box_reg")])
def test_wrong_weights_are_not_timed(workers, layer, wrong, tmp_path, monkeypatch):
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    workers[0].ask("make_weights", good)
    state = torch.load(good, weights_only=True)
    torch.save({**state, f"{layer}.bias": state[f"{layer}.bias"] + 0.01}, bad)
    for worker in workers:
        worker.ask("load_weights", good if worker is not workers[1] else bad)
    asked = []
    for worker in workers:
        monkeypatch.setattr(worker, "ask", lambda method, ask=worker.ask: asked.append(method) or ask(method))
    with pytest.raises(RuntimeError, match=f"differs from .*{wrong}"):
        measure(workers, repeats=1)
    assert set(asked) == {"outputs"}

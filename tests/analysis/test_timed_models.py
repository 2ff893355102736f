"""Order of timing, statistics and the picture; the test of the command times real models."""

from types import SimpleNamespace

import pytest
import torch

from retinanet_ext.analysis.timed_models import (
    PAPER_OTHERS,
    PAPER_RETINANET,
    WARMUP,
    Row,
    Subject,
    conditions,
    draw,
    time_in_turns,
)


def config_on(device):
    return SimpleNamespace(MODEL=SimpleNamespace(DEVICE=device))


def test_the_clock_waits_for_the_device_of_the_model(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    time_in_turns([Subject("a", config_on("cuda:1"), lambda batch: None)], [["image"]])
    assert waited == [torch.device("cuda:1")] * 2 * (WARMUP + 1)
    time_in_turns([Subject("a", config_on("cpu"), lambda batch: None)], [["image"]])
    assert len(waited) == 2 * (WARMUP + 1)


def test_models_take_turns_and_see_the_same_images():
    calls = []

    def model(name):
        def run(batch):
            assert not torch.is_grad_enabled()
            calls.append((name, batch))

        return run

    subjects = [Subject(name, config_on("cpu"), model(name)) for name in "abc"]
    times = time_in_turns(subjects, [[f"{name}{i}" for i in range(4)] for name in "abc"])
    assert [len(t) for t in times] == [4, 4, 4] and min(map(min, times)) >= 0
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == WARMUP + 4
    for found in rounds:
        assert sorted(name for name, _ in found) == ["a", "b", "c"]
        assert len({batch[1] for _, batch in found}) == 1 and all(batch[0] == name for name, batch in found)
    assert [batch[1] for ((_, batch), *_) in rounds[WARMUP:]] == ["0", "1", "2", "3"]
    assert {found[0][0] for found in rounds} == {"a", "b", "c"}  # each subject is first in some rounds


def test_quartiles():
    assert Row("a", 1.0, 2.0, [4.0, 1.0, 3.0, 2.0, 5.0]).quartiles == (2, 3, 4)
    assert Row("a", 1.0, 2.0, [7.0]).quartiles == (7, 7, 7)


def test_picture_has_a_point_for_each_defined_ap():
    rows = [
        Row("small", 30.0, 50.0, [10.0, 11.0, 12.0]),
        Row("none", None, None, [5.0]),
        Row("big", 40.0, 60.0, [20.0]),
    ]
    here, paper = draw(rows, "some device", "some data").axes
    assert {text.get_text() for text in here.texts} == {"small", "big"}
    assert [container.lines[0].get_xydata().tolist() for container in here.containers] == [[[11, 30]], [[20, 40]]]
    assert "some device" in here.get_title() and "M40" in paper.get_title()
    assert {text.get_text() for text in paper.texts} == set(PAPER_OTHERS)


def test_paper_points():
    """The remark of section 5.2: RetinaNet-101-600 has the AP of FPN Faster R-CNN, in 122 ms against 172."""
    assert PAPER_RETINANET["RetinaNet-101"][2] == (122, 36.0) and PAPER_OTHERS["FPN FRCN"] == (172, 36.2)


def test_conditions_name_the_device():
    found = conditions("cpu")
    assert f"{torch.get_num_threads()} thread" in found["device"] and found["torch"] == torch.__version__
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError)):
            conditions("cuda")

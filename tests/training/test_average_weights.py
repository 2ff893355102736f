"""The moving average of the weights: its arithmetic, and what a run does with it."""

import json
import random
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn

from retinanet_ext import d2
from retinanet_ext.checkpoint.weights import load_weights
from retinanet_ext.training.average_weights import AverageWeights
from retinanet_ext.training.trainer import Trainer
from tests.builders import free_port, shapes_config, small_config
from tests.two_processes import run_two

COMMON = ["SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "MODEL.EMA.ENABLED", "True"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), d2.FrozenBatchNorm2d(4), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_the_average_is_that_of_a_loop_by_hand(decay, generator):
    model = network()
    average = AverageWeights(model, decay)
    model.train()
    expected = {name: value.clone().double() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(30):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 4, 4, generator=generator)).square().mean().backward()
        optimizer.step()
        average.update()
        kept = min(decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            expected[name] = kept * expected[name] + (1 - kept) * value.double()
    state = average.model_state()
    assert state.keys() == model.state_dict().keys()
    for name, value in state.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert state["1.num_batches_tracked"] == 30


def test_what_never_changes_is_not_doubled():
    model = network()
    model[3].weight.requires_grad = False
    kept = AverageWeights(model, 0.9).state_dict()["weights"]
    assert set(kept) == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.bias"}


def test_the_weights_come_back_bit_for_bit():
    model = network()
    average = AverageWeights(model, 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    averaged = {name: value.clone() for name, value in average.model_state().items()}
    with pytest.raises(ZeroDivisionError), average.in_model():
        assert all(value.equal(averaged[name]) for name, value in model.state_dict().items())
        assert not model[0].weight.equal(own["0.weight"])
        raise ZeroDivisionError
    assert all(value.equal(own[name]) for name, value in model.state_dict().items())
    assert all(value.equal(averaged[name]) for name, value in average.model_state().items())


def test_the_average_of_another_model_is_refused():
    with pytest.raises(ValueError, match="MODEL.EMA.*another model: 1 names or shapes differ, such as 0.weight"):
        model = network()
        model[0] = nn.Conv2d(5, 4, 1)
        AverageWeights(network(), 0.9).load_state_dict(AverageWeights(model, 0.9).state_dict())


def test_illegal_decay():
    with pytest.raises(ValueError, match="MODEL.EMA.DECAY is 1.0; legal: a number from 0 to below 1"):
        small_config("MODEL.EMA.DECAY", "1.0")


def train(cfg, resume=False, stop_at=None):
    d2.default_setup(cfg, Namespace(eval_only=False, config_file=""))
    trainer = Trainer(cfg)
    torch.manual_seed(0)
    for parameter in trainer.model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    trainer.resume_or_load(resume=resume)
    trainer.max_iter = stop_at or trainer.max_iter
    trainer.train()
    return trainer


def test_a_run_evaluates_the_average_and_is_not_changed_by_it(shapes, tmp_path):
    words = [*COMMON, "TEST.EVAL_PERIOD", "2", "TEST.BEST_METRIC", "bbox_EMA/AP", "MODEL.RETINANET.NORM", "BN"]
    trainer = train(shapes_config(shapes, tmp_path / "with", *words))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    random_states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    trainer.test_average(trainer.cfg, trainer.model, trainer.average)
    for name, value in trainer.model.state_dict().items():
        assert value.equal(before[name]), name
    assert trainer.model.training
    assert torch.get_rng_state().equal(random_states[0]) and random.getstate() == random_states[2]
    assert (np.random.get_state()[1] == random_states[1]).all()
    results = json.loads((tmp_path / "with" / "results.json").read_text())
    assert {"bbox", "bbox_EMA", "data"} <= results.keys() and "AP" in results["bbox_EMA"]
    rows = [json.loads(line) for line in (tmp_path / "with" / "metrics.json").read_text().splitlines()]
    assert any("bbox_EMA/AP" in row and "bbox/AP" in row for row in rows)
    # Inference with the average: a file of its own.
    final = torch.load(tmp_path / "with" / "model_final.pth", weights_only=True)
    averaged = torch.load(tmp_path / "with" / "model_final_ema.pth", weights_only=True)["model"]
    assert (tmp_path / "with" / "last_checkpoint").read_text() == "model_final.pth"
    assert all(value.equal(averaged[name]) for name, value in final["ema"]["weights"].items())
    assert not averaged["head.cls_score.weight"].equal(final["model"]["head.cls_score.weight"])
    report = load_weights(trainer.model, str(tmp_path / "with" / "model_final_ema.pth"), strict=True)
    assert not report.missing and not report.unexpected
    # The best one is chosen by the average, so it holds the average.
    best = torch.load(tmp_path / "with" / "model_best.pth", weights_only=True)["model"]
    sources = [torch.load(tmp_path / "with" / f"model_{name}.pth", weights_only=True) for name in ("0000001", "final")]
    assert any(all(best[n].equal(value) for n, value in source["ema"]["weights"].items()) for source in sources)


def test_a_resumed_average_goes_on(shapes, tmp_path):
    words = [*COMMON, "DATASETS.TEST", "()"]
    if d2.ENGINE == "lite":  # Detectron2's loader starts again, so there only the state is compared
        unbroken = train(shapes_config(shapes, tmp_path / "unbroken", *words))
        train(shapes_config(shapes, tmp_path / "broken", *words), stop_at=2)
        resumed = train(shapes_config(shapes, tmp_path / "broken", *words), resume=True)
        assert unbroken.average.updates == resumed.average.updates == 4
        for name, value in unbroken.average.model_state().items():
            assert resumed.average.model_state()[name].equal(value), name
        return
    first = train(shapes_config(shapes, tmp_path / "run", *words), stop_at=2)
    second = Trainer(shapes_config(shapes, tmp_path / "run", *words))
    second.resume_or_load(resume=True)
    assert second.average.updates == 2
    for name, value in first.average.model_state().items():
        assert second.average.model_state()[name].equal(value), name


def test_a_metric_of_the_average_needs_the_average(shapes, tmp_path):
    with pytest.raises(ValueError, match="TEST.BEST_METRIC is 'bbox_EMA/AP', but MODEL.EMA.ENABLED is False"):
        Trainer(shapes_config(shapes, tmp_path, "TEST.BEST_METRIC", "bbox_EMA/AP"))


def test_processes_have_the_same_average(tmp_path):
    run_two("tests.training.average_weights_worker", free_port(), tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    assert not first["own"]["1.running_mean"].equal(second["own"]["1.running_mean"])
    for name, value in first["average"].items():
        assert second["average"][name].equal(value), name
    # Averaging buffers over processes and over steps may be done in either order.
    mean = (first["alone"]["1.running_mean"] + second["alone"]["1.running_mean"]) / 2
    torch.testing.assert_close(first["average"]["1.running_mean"], mean)

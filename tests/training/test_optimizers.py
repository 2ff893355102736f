import copy

import pytest
import torch
from torch import nn

from retinanet_ext.d2 import DefaultTrainer
from retinanet_ext.training.optimizers import with_optimizer
from retinanet_ext.training.trainer import Trainer
from tests.builders import small_config


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.linear(x))


def make(name, *opts):
    cfg = small_config("SOLVER.OPTIMIZER", name, "SOLVER.BASE_LR", "0.1", "SOLVER.WEIGHT_DECAY", "0.0", *opts)
    net = Net()
    return cfg, net, Trainer.build_optimizer(cfg, net)


def step(optimizer, net, gradients):
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()


def gradients(scale=1.0):
    generator = torch.Generator().manual_seed(1)
    return [scale * torch.randn(p.shape, generator=generator) for p in Net().parameters()]


def test_sgd_is_the_engine_s():
    cfg, net, optimizer = make("SGD")
    assert isinstance(optimizer, torch.optim.SGD)
    assert with_optimizer(cfg, optimizer) is optimizer


@pytest.mark.parametrize("name", ["AdaGrad", "AdamW"])
def test_groups_keep_their_rates_and_decays(name):
    opts = ["SOLVER.BIAS_LR_FACTOR", "2.0", "SOLVER.WEIGHT_DECAY", "0.3", "SOLVER.WEIGHT_DECAY_NORM", "0.1"]
    opts += ["SOLVER.WEIGHT_DECAY_BIAS", "0.0"]
    cfg, net, optimizer = make(name, *opts)
    names = {parameter: key for key, parameter in net.named_parameters()}
    settings = {names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    engine = DefaultTrainer.build_optimizer(cfg, net)
    assert settings == {names[p]: (g["lr"], g["weight_decay"]) for g in engine.param_groups for p in g["params"]}
    assert settings["linear.weight"] == (0.1, 0.3) and settings["linear.bias"] == (0.2, 0.0)
    assert settings["norm.weight"] == (0.1, 0.1)


def test_two_steps_of_adagrad_by_hand():
    _, net, optimizer = make("AdaGrad")
    expected = [p.detach().clone() for p in net.parameters()]
    g = gradients()
    step(optimizer, net, g)
    step(optimizer, net, [2 * v for v in g])
    for parameter, start, v in zip(net.parameters(), expected, g, strict=True):
        # lr g / sqrt(g^2), then lr 2g / sqrt(g^2 + 4 g^2)
        by_hand = start - 0.1 * v.sign() - 0.1 * 2 * v.sign() / 5**0.5
        torch.testing.assert_close(parameter.detach(), by_hand)


def test_the_first_step_of_adamw_is_the_rate_and_the_decoupled_decay():
    _, net, optimizer = make("AdamW", "SOLVER.WEIGHT_DECAY", "0.5", "SOLVER.WEIGHT_DECAY_NORM", "0.5")
    expected = [p.detach().clone() for p in net.parameters()]
    g = gradients()
    step(optimizer, net, g)
    for parameter, start, v in zip(net.parameters(), expected, g, strict=True):
        torch.testing.assert_close(parameter.detach(), start * (1 - 0.1 * 0.5) - 0.1 * v.sign(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("clip_type", ["value", "norm"])
def test_gradients_are_clipped_as_those_of_sgd(clip_type):
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip_type]
    clip += ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.5"]
    clipped = {}
    for name in ("SGD", "AdaGrad", "AdamW"):
        _, net, optimizer = make(name, *clip)
        step(optimizer, net, gradients(10.0))
        clipped[name] = [p.grad for p in net.parameters()]
    for name in ("AdaGrad", "AdamW"):
        for ours, engine in zip(clipped[name], clipped["SGD"], strict=True):
            torch.testing.assert_close(ours, engine)
    for gradient in clipped["AdaGrad"]:
        size = gradient.abs().max() if clip_type == "value" else gradient.norm()
        assert size <= 0.5 + 1e-6


@pytest.mark.parametrize("name", ["AdaGrad", "AdamW"])
def test_a_resumed_optimizer_goes_on_as_the_unbroken_one(name):
    _, net, optimizer = make(name)
    step(optimizer, net, gradients())
    _, other, resumed = make(name)
    other.load_state_dict(net.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, o in ((net, optimizer), (other, resumed)):
        step(o, model, gradients(3.0))
    assert all(a.equal(b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER is 'Lion'; legal values: 'SGD', 'AdaGrad', 'AdamW'"):
        make("Lion")

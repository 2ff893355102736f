import copy

import pytest
import torch
from torch import nn

from retinanet_ext.lite.cfg_node import get_cfg
from retinanet_ext.lite.solver import build_lr_scheduler, build_optimizer, get_default_optimizer_params


def _cfg(**solver):
    cfg = get_cfg()
    cfg.SOLVER.STEPS = (6, 8)
    cfg.SOLVER.MAX_ITER = 10
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.WARMUP_ITERS = 0
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def _rates(cfg):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_steps_divide_the_rate_at_their_iterations():
    assert _rates(_cfg()) == pytest.approx([1] * 6 + [0.1] * 2 + [0.01] * 2)


def test_linear_warmup_rises_by_equal_amounts():
    # From 0.1 to 1.0 in 3 iterations: 0.3 per iteration.
    rates = _rates(_cfg(WARMUP_ITERS=3, WARMUP_FACTOR=0.1))
    assert rates[:5] == pytest.approx([0.1, 0.4, 0.7, 1.0, 1.0])


def test_constant_warmup_waits():
    rates = _rates(_cfg(WARMUP_ITERS=3, WARMUP_FACTOR=0.1, WARMUP_METHOD="constant"))
    assert rates[:4] == pytest.approx([0.1, 0.1, 0.1, 1.0])


def test_cosine_is_half_way_down_in_the_middle():
    rates = _rates(_cfg(LR_SCHEDULER_NAME="WarmupCosineLR"))
    assert rates[0] == 1.0
    assert rates[5] == pytest.approx(0.5)
    assert rates == sorted(rates, reverse=True)


def test_equal_steps():
    rates = _rates(_cfg(LR_SCHEDULER_NAME="WarmupStepWithFixedGammaLR", NUM_DECAYS=1))
    assert rates == pytest.approx([1] * 5 + [0.1] * 5)


def test_steps_beyond_the_end_are_reported(caplog):
    assert _rates(_cfg(STEPS=(6, 10, 80))) == pytest.approx([1] * 6 + [0.1] * 4)
    assert "[10, 80]" in caplog.text


@pytest.mark.parametrize(
    "key, legal",
    [("LR_SCHEDULER_NAME", "WarmupCosineLR"), ("WARMUP_METHOD", "linear, constant")],
)
def test_unknown_names_are_refused_with_the_legal_ones(key, legal):
    with pytest.raises(ValueError, match=f"SOLVER.{key} is 'nonsense'.*{legal}"):
        _rates(_cfg(**{key: "nonsense"}))


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.again = self.conv


def test_parameters_are_grouped_by_rate_and_decay():
    net = _Net()
    groups = get_default_optimizer_params(net, base_lr=1.0, weight_decay=0.5, weight_decay_norm=0.0, bias_lr_factor=2.0)
    assert groups == [
        {"params": [net.conv.weight], "lr": 1.0, "weight_decay": 0.5},
        {"params": [net.conv.bias], "lr": 2.0, "weight_decay": 0.5},
        {"params": [net.norm.weight], "lr": 1.0, "weight_decay": 0.0},
        {"params": [net.norm.bias], "lr": 2.0, "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(
    "clip_type, expected",
    [
        # Gradients are (3, 4) and (0, 12); a plain step of rate 1 subtracts the clipped gradients.
        ("value", [[1.0, 1.0], [0.0, 1.0]]),
        ("norm", [[0.6, 0.8], [0.0, 1.0]]),
    ],
)
def test_gradient_clipping(clip_type, expected):
    cfg = _cfg(MOMENTUM=0.0, WEIGHT_DECAY=0.0)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    model = nn.ParameterList([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))])
    optimizer = build_optimizer(cfg, model)
    model[0].grad, model[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 12.0])
    optimizer.step()
    for parameter, step in zip(model, expected, strict=True):
        assert (-parameter).tolist() == pytest.approx(step, rel=1e-5)


@pytest.mark.parametrize("clip_type", ["nonsense", "full_model"])
def test_unknown_clip_type_is_refused(clip_type):
    cfg = _cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    with pytest.raises(ValueError, match=f"CLIP_TYPE is '{clip_type}'; legal values: value, norm$"):
        build_optimizer(cfg, _Net())


def test_the_optimizer_is_torchs_sgd():
    """Momentum, decay, hooks, closure and saved state as in torch.optim.SGD, and no graph through the parameters."""
    cfg = _cfg(MOMENTUM=0.9, NESTEROV=True, WEIGHT_DECAY=0.1, BASE_LR=0.1)
    model = nn.Linear(3, 2)
    twin = copy.deepcopy(model)
    ours = build_optimizer(cfg, model)
    groups = get_default_optimizer_params(twin, base_lr=0.1, weight_decay=0.1)
    torchs = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    inputs = torch.randn(4, 3)
    for step in range(4):
        for net, optimizer in ((model, ours), (twin, torchs)):
            optimizer.zero_grad()
            net(inputs).square().sum().backward()
            optimizer.step()
        assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)
        assert model.weight.is_leaf and model.weight.requires_grad
        if step == 1:
            torchs.load_state_dict(copy.deepcopy(ours.state_dict()))
            ours.load_state_dict(copy.deepcopy(torchs.state_dict()))
    assert ours.step(lambda: torch.tensor(3.0)) == 3.0

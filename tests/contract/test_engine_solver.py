"""Optimizer groups and learning rates of the embedded engine, side by side with Detectron2's."""

import pytest
import torch
from torch import nn

from retinanet_ext.lite import cfg_node as lite_config
from retinanet_ext.lite import solver as lite_solver
from retinanet_ext.lite.engine import DefaultTrainer

REASON = "Detectron2 is not installed: nothing to compare with"
d2_config = pytest.importorskip("detectron2.config", reason=REASON)
d2_solver = pytest.importorskip("detectron2.solver", reason=REASON)
d2_engine = pytest.importorskip("detectron2.engine.defaults", reason=REASON)

BOTH = [(lite_config, lite_solver), (d2_config, d2_solver)]


def _cfg(module, overrides):
    cfg = module.get_cfg()
    cfg.merge_from_list([item for key, value in overrides.items() for item in (f"SOLVER.{key}", value)])
    return cfg


def _rates(config, solver, overrides, iterations):
    cfg = _cfg(config, overrides)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = solver.build_lr_scheduler(cfg, optimizer)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(iterations):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


STEPS = {"MAX_ITER": 300, "STEPS": (200, 266), "WARMUP_ITERS": 40, "BASE_LR": 0.01}


@pytest.mark.parametrize(
    "overrides",
    [
        STEPS,
        {**STEPS, "WARMUP_METHOD": "constant", "WARMUP_FACTOR": 0.3},
        {**STEPS, "STEPS": (20, 200), "GAMMA": 0.3},
        {**STEPS, "STEPS": (), "WARMUP_ITERS": 0},
        {**STEPS, "STEPS": (200, 1000)},
        {**STEPS, "WARMUP_ITERS": 1000},
        {**STEPS, "RESCALE_INTERVAL": True},
        {**STEPS, "LR_SCHEDULER_NAME": "WarmupCosineLR"},
        {**STEPS, "LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 0.001, "RESCALE_INTERVAL": True},
    ],
    ids=str,
)
def test_rates(overrides):
    ours, theirs = (_rates(*engine, overrides, 300) for engine in BOTH)
    assert ours == theirs
    assert len(set(ours)) > 1 or overrides["WARMUP_ITERS"] == 0


@pytest.mark.parametrize("decays", [1, 3])
def test_rates_of_equal_steps(decays):
    overrides = {**STEPS, "LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR", "NUM_DECAYS": decays}
    # Detectron2's schedule fails when asked for the rate after the last iteration; ours does not.
    ours, theirs = (_rates(*engine, overrides, 299) for engine in BOTH)
    assert ours == theirs
    _rates(*BOTH[0], overrides, 300)


@pytest.mark.parametrize("last_iteration", [0, 130, 299])
def test_state_of_the_schedule_moves_between_engines(last_iteration):
    def build_scheduler(config, solver):
        cfg = _cfg(config, STEPS)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
        return solver.build_lr_scheduler(cfg, optimizer)

    theirs, ours = build_scheduler(*BOTH[1]), build_scheduler(*BOTH[0])
    for _ in range(last_iteration):
        theirs.optimizer.step()
        theirs.step()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    ours.optimizer.step()
    ours.step()
    theirs.optimizer.step()
    theirs.step()
    assert ours.get_last_lr() == theirs.get_last_lr()


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.free = nn.Parameter(torch.zeros(2))
        self.conv = nn.Conv2d(3, 4, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(2), nn.InstanceNorm1d(3)])
        self.linear = nn.Linear(4, 2)
        self.shared = self.linear
        self.partly_frozen = nn.Linear(2, 2)
        self.partly_frozen.weight.requires_grad = False
        self.embedding = nn.Embedding(3, 2)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"BIAS_LR_FACTOR": 2.0, "WEIGHT_DECAY_BIAS": 0.5},
        {"WEIGHT_DECAY_BIAS": 0.0},
        {"WEIGHT_DECAY_NORM": 0.25, "WEIGHT_DECAY_BIAS": 0.5},
        {"WEIGHT_DECAY_NORM": 0.0001, "NESTEROV": True, "MOMENTUM": 0.8},
    ],
    ids=str,
)
def test_optimizer_groups(overrides):
    net = _Net()
    names = {parameter: name for name, parameter in net.named_parameters()}

    def groups(config, solver):
        optimizer = solver.build_optimizer(_cfg(config, overrides), net)
        assert isinstance(optimizer, torch.optim.SGD)
        # Kernels are not compared: Detectron2 requests those that are the default on CUDA; results are the same.
        compared = ("lr", "weight_decay", "momentum", "nesterov", "dampening")
        return sorted(
            (sorted(names[p] for p in group["params"]), [group[key] for key in compared])
            for group in optimizer.param_groups
        )

    ours, theirs = (groups(*engine) for engine in BOTH)
    if overrides.get("WEIGHT_DECAY_NORM") == 0.0001:
        # lite puts parameters with equal settings into one group, Detectron2 into two.
        ours, theirs = (sorted(_by_parameter(side)) for side in (ours, theirs))
    assert ours == theirs


def _by_parameter(groups):
    return [(name, values) for group_names, values in groups for name in group_names]


@pytest.mark.parametrize("clip_type, norm_type", [("value", 2.0), ("norm", 2.0), ("norm", 1.0)])
def test_a_clipped_step(clip_type, norm_type):
    def step(config, solver):
        cfg = _cfg(config, {"BASE_LR": 0.5})
        cfg.SOLVER.CLIP_GRADIENTS.merge_from_list(
            ["ENABLED", True, "CLIP_TYPE", clip_type, "CLIP_VALUE", 0.05, "NORM_TYPE", norm_type]
        )
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        optimizer = solver.build_optimizer(cfg, net)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        return torch.cat([parameter.flatten() for parameter in net.parameters()])

    torch.testing.assert_close(step(*BOTH[0]), step(*BOTH[1]), rtol=0, atol=0)


@pytest.mark.parametrize("reference, workers", [(8, 4), (8, 16), (0, 4), (2, 1), (1, 3)])
def test_scaling_to_the_number_of_processes(reference, workers):
    def scaled(config, trainer):
        cfg = _cfg(
            config,
            {"REFERENCE_WORLD_SIZE": reference, "STEPS": (101, 203), "MAX_ITER": 303, "WARMUP_ITERS": 55,
             "CHECKPOINT_PERIOD": 77, "BASE_LR": 0.02},
        )  # fmt: skip
        cfg.TEST.EVAL_PERIOD = 13
        cfg = trainer.auto_scale_workers(cfg, workers)
        return cfg.TEST.EVAL_PERIOD, {key: cfg.SOLVER[key] for key in lite_config.get_cfg().SOLVER}

    assert scaled(lite_config, DefaultTrainer) == scaled(d2_config, d2_engine.DefaultTrainer)

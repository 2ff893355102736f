"""Optimizer and learning-rate schedule from ``cfg.SOLVER``, with Detectron2's groups and numbers.

Schedules are those of :mod:`fvcore.common.param_scheduler`.
"""

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn

from .cfg_node import CfgNode

logger = logging.getLogger(__name__)

# Maps the fraction of training done (0 to 1) to a factor of the base rate.
Schedule = Callable[[float], float]

# `_NormBase` is the base class of every BatchNorm, SyncBatchNorm and InstanceNorm.
_NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class EagerSGD(torch.optim.SGD):
    """SGD without PyTorch's compiler: PyTorch wraps these methods so that their first call imports ``torch._dynamo``.

    That import takes as long as the import of PyTorch itself, and training compiles nothing.
    """

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    state_dict = inspect.unwrap(torch.optim.SGD.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.SGD.load_state_dict)
    # The wrapper of `step` also switches gradients off.
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD over the trainable parameters of ``model``, with the gradient clipping that the config asks for."""
    solver = cfg.SOLVER
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    optimizer = EagerSGD(
        params,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
    )
    if solver.CLIP_GRADIENTS.ENABLED:
        clip = _gradient_clipper(solver.CLIP_GRADIENTS)
        # As a hook of `step`, clipping comes after a gradient scaler has undone its scale.
        optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: clip(_all_params(optimizer)))
    return optimizer


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float = 1.0,
    weight_decay_bias: float | None = None,
) -> list[dict[str, Any]]:
    """Group the trainable parameters of a model by learning rate and weight decay.

    Args:
        weight_decay_norm: weight decay of normalisation layers; ``None``: as everything else.
        bias_lr_factor: learning rate of biases, relative to ``base_lr``.
        weight_decay_bias: weight decay of biases, also in normalisation layers; ``None``: that of the layer's weights.

    Returns:
        Parameter groups ``{"params", "lr", "weight_decay"}``, in the order of their first parameters in the model.
        A parameter that several modules share is listed once.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            lr, decay = base_lr, weight_decay
            if isinstance(module, _NORM_LAYERS) and weight_decay_norm is not None:
                decay = weight_decay_norm
            if name == "bias":
                lr = base_lr * bias_lr_factor
                decay = decay if weight_decay_bias is None else weight_decay_bias
            groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def _all_params(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _gradient_clipper(clip_cfg: CfgNode) -> Callable[[Iterable[nn.Parameter]], None]:
    limit, norm_type = clip_cfg.CLIP_VALUE, clip_cfg.NORM_TYPE

    def clip_values(params: Iterable[nn.Parameter]) -> None:
        nn.utils.clip_grad_value_(params, limit)

    def clip_norm_of_each(params: Iterable[nn.Parameter]) -> None:
        for parameter in params:
            nn.utils.clip_grad_norm_(parameter, limit, norm_type=norm_type)

    return _choose(
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE",
        clip_cfg.CLIP_TYPE,
        {"value": clip_values, "norm": clip_norm_of_each},
    )


def _choose(key: str, name: str, choices: dict[str, Any]) -> Any:
    if name not in choices:
        raise ValueError(f"{key} is {name!r}; legal values: {', '.join(choices)}")
    return choices[name]


class LRMultiplier(torch.optim.lr_scheduler.LRScheduler):
    """Sets each group's learning rate to its initial value times the schedule's factor."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: Schedule,
        max_iter: int,
        last_iter: int = -1,
    ):
        """``max_iter``: iterations of the whole training; ``last_iter``: the last completed iteration, or -1."""
        self._multiplier, self._max_iter = multiplier, max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Only what training changes: the schedule itself comes from the config, which may extend a run."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """The schedule ``SOLVER.LR_SCHEDULER_NAME``: warm-up, then steps or a half cosine, over ``MAX_ITER``."""
    build_schedule = _choose(
        "SOLVER.LR_SCHEDULER_NAME",
        cfg.SOLVER.LR_SCHEDULER_NAME,
        {
            "WarmupMultiStepLR": _multi_step,
            "WarmupCosineLR": _cosine,
            "WarmupStepWithFixedGammaLR": _equal_steps,
        },
    )
    return LRMultiplier(optimizer, _with_warmup(cfg.SOLVER, build_schedule(cfg.SOLVER)), cfg.SOLVER.MAX_ITER)


def _multi_step(solver: CfgNode) -> Schedule:
    steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
    if len(steps) < len(solver.STEPS):
        late = sorted(set(solver.STEPS) - set(steps))
        logger.warning("SOLVER.STEPS %s are not below SOLVER.MAX_ITER %d: never reached", late, solver.MAX_ITER)
    return MultiStepParamScheduler(
        values=[solver.GAMMA**k for k in range(len(steps) + 1)], milestones=steps, num_updates=solver.MAX_ITER
    )


def _cosine(solver: CfgNode) -> Schedule:
    end = solver.BASE_LR_END / solver.BASE_LR
    if not 0.0 <= end <= 1.0:
        raise ValueError(f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}; legal: 0 to SOLVER.BASE_LR ({solver.BASE_LR})")
    return CosineParamScheduler(1.0, end)


def _equal_steps(solver: CfgNode) -> Schedule:
    schedule = StepWithFixedGammaParamScheduler(
        base_value=1.0, gamma=solver.GAMMA, num_decays=solver.NUM_DECAYS, num_updates=solver.MAX_ITER
    )
    # fvcore's schedule has no value at 1, but every scheduler is evaluated there after the last iteration.
    return lambda where: schedule(min(where, 1.0 - 1e-5))


def _with_warmup(solver: CfgNode, schedule: Schedule) -> Schedule:
    """Begin a schedule with ``WARMUP_ITERS`` iterations of warm-up, from ``WARMUP_FACTOR`` times its first value.

    Linear warm-up ends at the value with which the schedule goes on. Warm-up replaces the beginning of the
    schedule or, with ``RESCALE_INTERVAL``, squeezes the whole schedule into the remaining iterations.
    """
    length = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    start = solver.WARMUP_FACTOR * schedule(0.0)
    end = schedule(0.0) if solver.RESCALE_INTERVAL else schedule(length)
    warmup = _choose(
        "SOLVER.WARMUP_METHOD",
        solver.WARMUP_METHOD,
        {"linear": LinearParamScheduler(start, end), "constant": ConstantParamScheduler(start)},
    )
    return CompositeParamScheduler(
        [warmup, schedule],
        lengths=[length, 1.0 - length],
        interval_scaling=["rescaled", "rescaled" if solver.RESCALE_INTERVAL else "fixed"],
    )

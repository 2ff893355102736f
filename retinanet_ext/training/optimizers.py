"""Optimizers besides the engine's SGD: AdaGrad (the FaceNet paper) and AdamW."""

from collections.abc import Iterable

import torch

from retinanet_ext.d2 import CfgNode

OPTIMIZERS = {"AdaGrad": torch.optim.Adagrad, "AdamW": torch.optim.AdamW}


def with_optimizer(cfg: CfgNode, sgd: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that SOLVER.OPTIMIZER names, with the parameter groups of the engine's SGD.

    Each group keeps its learning rate and its weight decay (which AdamW decouples from the gradient). Gradients are
    clipped as SOLVER.CLIP_GRADIENTS says, each parameter by itself, as the engines do. Everything else is PyTorch's
    default.

    Args:
        cfg: the config.
        sgd: the engine's optimizer for the same config; returned itself for "SGD".

    Raises:
        ValueError: no such optimizer.
    """
    name = cfg.SOLVER.OPTIMIZER
    if name == "SGD":
        return sgd
    if name not in OPTIMIZERS:
        raise ValueError(f"SOLVER.OPTIMIZER is {name!r}; legal values: SGD, {', '.join(OPTIMIZERS)}")
    groups = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in sgd.param_groups]
    optimizer = OPTIMIZERS[name](groups, lr=cfg.SOLVER.BASE_LR)
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        clip = cfg.SOLVER.CLIP_GRADIENTS.clone()
        # As a hook of `step`, clipping comes after a gradient scaler has undone its scale.
        optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: _clip(clip, optimizer.param_groups))
    return optimizer


def _clip(clip: CfgNode, groups: Iterable[dict]) -> None:
    for parameter in (p for group in groups for p in group["params"] if p.grad is not None):
        if clip.CLIP_TYPE == "value":
            torch.nn.utils.clip_grad_value_(parameter, clip.CLIP_VALUE)
        else:
            torch.nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)

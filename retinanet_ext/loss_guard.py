"""Stops a training run at the first loss that is not finite, and says where it came from."""

import math

import torch
from torch import nn


def guard_losses(model: nn.Module) -> None:
    """Make ``model``, called in training mode with a list of input dicts, refuse to return a non-finite loss.

    The error is raised before the backward pass, on the process that saw it, so the weights are still sound.
    """
    model.register_forward_hook(_check_losses)


def _check_losses(model: nn.Module, args: tuple, losses) -> None:
    if not (model.training and isinstance(losses, dict)):
        return
    values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
    bad = [f"{name} = {value}" for name, value in zip(losses, values) if not math.isfinite(value)]
    if not bad:
        return
    images = [str(x.get("file_name", "(no file name)")) for x in args[0]]
    raise FloatingPointError(
        f"loss is not finite: {', '.join(bad)} (all: {dict(zip(losses, values))}). Images in the batch: "
        f"{', '.join(images)}. Usual causes, likeliest first: SOLVER.BASE_LR too high for SOLVER.IMS_PER_BATCH "
        "(halve both together), too short a SOLVER.WARMUP_ITERS, no SOLVER.CLIP_GRADIENTS.ENABLED, MODEL.WEIGHTS "
        "that do not fit, a broken image or box among those named."
    )

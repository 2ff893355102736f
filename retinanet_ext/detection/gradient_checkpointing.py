"""Gradient checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost").

Only the input of each residual block, and of each head subnet on each level, is kept. The activations inside are
computed again during the backward pass.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .head import _Subnet

logger = logging.getLogger(__name__)


def recompute_in_backward(detector: nn.Module) -> None:
    """Change ``detector`` in place to keep fewer activations in training.

    The blocks of ResNets in ``detector.backbone`` and the subnets of ``detector.head`` (its children that are
    ``nn.Sequential``) are recomputed, and of a two-stage model the blocks of ``detector.roi_heads.res5``, but no other
    heads. Parameters, buffers, their names, losses and gradients stay the same; running statistics of batch norms are
    updated once per step.

    Raises:
        ValueError: ``detector`` has neither such blocks nor such subnets.
    """
    resnets = [module for module in detector.backbone.modules() if hasattr(module, "stage_names")]
    stages = [getattr(resnet, name) for resnet in resnets for name in resnet.stage_names]
    stages += [child for name, child in detector.named_modules() if name == "roi_heads.res5"]
    head = getattr(detector, "head", None)  # a two-stage model has none
    subnets = [child for child in head.children() if type(child) in _RECOMPUTED_SUBNETS] if head is not None else []
    if not stages and not subnets:
        no_subnets = f", and the head {type(head).__name__} has no nn.Sequential subnets" if head is not None else ""
        raise ValueError(
            f"MODEL.GRADIENT_CHECKPOINTING is True, but the backbone {type(detector.backbone).__name__} has no stages "
            f"of residual blocks{no_subnets}; set MODEL.GRADIENT_CHECKPOINTING to False"
        )
    for stage in stages:
        stage.__class__ = _RecomputedStage
    for subnet in subnets:
        subnet.__class__ = _RECOMPUTED_SUBNETS[type(subnet)]
    logger.info("Gradient checkpointing recomputes %d backbone stages and %d head subnets", len(stages), len(subnets))


class _RecomputedStage(nn.Sequential):
    """A stage of a ResNet whose blocks are recomputed one by one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self:
            x = _recompute(block, block, x)
        return x


class _RecomputedSequential(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _recompute(self, super().forward, x)


class _RecomputedSubnet(_Subnet):
    def forward(self, x: torch.Tensor, level: int) -> torch.Tensor:
        return _recompute(self, super().forward, x, level)


# The subnets of Detectron2's head are plain nn.Sequential.
_RECOMPUTED_SUBNETS = {nn.Sequential: _RecomputedSequential, _Subnet: _RecomputedSubnet}


def _recompute(module: nn.Module, function: Callable, x: torch.Tensor, *arguments) -> torch.Tensor:
    """``function(x, *arguments)``, which runs ``module``; training keeps only the arguments for the backward pass."""
    learns = x.requires_grad or any(parameter.requires_grad for parameter in module.parameters())
    if not (module.training and learns and torch.is_grad_enabled()):
        return function(x, *arguments)
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.training]
    return checkpoint(
        function, x, *arguments, use_reentrant=False, context_fn=lambda: (nullcontext(), _SpareStatistics(norms))
    )


class _SpareStatistics:
    """A context in which batch norms in training mode update copies of their running statistics.

    The norms get copies, not None, because the recomputation must save tensors of the same shapes as the forward pass.
    """

    def __init__(self, norms: list[_BatchNorm]):
        self._norms = norms

    def __enter__(self) -> None:
        self._kept = [(norm, dict(norm.named_buffers(recurse=False))) for norm in self._norms]
        for norm, buffers in self._kept:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())

    def __exit__(self, *error) -> None:
        for norm, buffers in self._kept:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)

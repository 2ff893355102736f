"""Gradient checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost").

Of a residual block, or of a subnet of the head on one level, only the input is kept; what lies between is computed
again when the backward pass comes there.
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
    """Let training of ``detector`` keep less memory, in place.

    The blocks of ResNets in ``detector.backbone`` and the subnets of ``detector.head`` (its children that are
    ``nn.Sequential``) are recomputed. Parameters, buffers and their names stay; so do losses and gradients, and running
    statistics of batch norms are updated once a step.

    Raises:
        ValueError: nothing of this is there.
    """
    resnets = [module for module in detector.backbone.modules() if hasattr(module, "stage_names")]
    stages = [getattr(resnet, name) for resnet in resnets for name in resnet.stage_names]
    subnets = [child for child in detector.head.children() if type(child) in _RECOMPUTED_SUBNETS]
    if not stages and not subnets:
        raise ValueError(
            f"MODEL.GRADIENT_CHECKPOINTING is True, but the backbone {type(detector.backbone).__name__} has no stages "
            f"of residual blocks, and the head {type(detector.head).__name__} no subnets that are nn.Sequential; set "
            "it to False"
        )
    for stage in stages:
        stage.__class__ = _RecomputedStage
    for subnet in subnets:
        subnet.__class__ = _RECOMPUTED_SUBNETS[type(subnet)]
    logger.info("%d stages of the backbone, %d subnets of the head are recomputed", len(stages), len(subnets))


class _RecomputedStage(nn.Sequential):
    """What the blocks of a stage become: each is recomputed by itself."""

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


# Detectron2's head has plain sequences.
_RECOMPUTED_SUBNETS = {nn.Sequential: _RecomputedSequential, _Subnet: _RecomputedSubnet}


def _recompute(module: nn.Module, function: Callable, x: torch.Tensor, *arguments) -> torch.Tensor:
    """``function(x, *arguments)``, a part of ``module``, without keeping what its backward pass needs."""
    learns = x.requires_grad or any(parameter.requires_grad for parameter in module.parameters())
    if not (module.training and learns and torch.is_grad_enabled()):
        return function(x, *arguments)
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.training]
    return checkpoint(
        function, x, *arguments, use_reentrant=False, context_fn=lambda: (nullcontext(), _SpareStatistics(norms))
    )


class _SpareStatistics:
    """A context in which batch norms in training mode update copies of their running statistics.

    Copies rather than none, because the recomputation must keep tensors of the same shapes as the forward pass.
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

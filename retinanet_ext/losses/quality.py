"""Focal losses of a target between 0 and 1, such as the IoU of the predicted with the ground truth box.

Quality focal: Li et al. 2020, "Generalized Focal Loss", eq. 2. Varifocal: Zhang et al. 2021, "VarifocalNet", eq. 2.
"""

import math

import torch
import torch.nn.functional as F

from retinanet_ext.ops import check_alpha_gamma, focal_of_margin

from .focal import check_shapes
from .reduction import reduce_loss, upcast


def quality_focal_loss(
    logits: torch.Tensor, targets: torch.Tensor, gamma: float = 2.0, reduction: str = "none"
) -> torch.Tensor:
    """Cross entropy to a target ``y`` in [0, 1], weighted by the distance to it. With ``s = sigmoid(x)``::

        QFL = -|y - s|^gamma ((1 - y) log(1 - s) + y log(s))

    The paper calls the exponent beta. For ``gamma > 0`` the loss is 0 at ``s = y``.

    Limits: for ``y`` 0 or 1 it is the focal loss without alpha; ``gamma = 0`` is cross entropy to a soft target.

    Args:
        logits: any shape, floating point; half precision is raised to float32.
        targets: same shape, values in [0, 1].
        gamma: exponent, >= 0.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        The loss, of the logits' shape for ``none`` and a scalar otherwise. Loss and gradient are finite for
        every finite logit.

    Raises:
        ValueError: shapes differ, ``gamma`` is negative, or ``reduction`` is unknown.
    """
    check_alpha_gamma(-1, gamma)
    check_shapes(logits, targets)
    logits = upcast(logits)
    targets = targets.to(logits.dtype)
    # y - s, written so that it keeps its precision where it is small for y = 0 and y = 1. The bound: at 0, a power
    # below 1 has an infinite derivative.
    distance = targets * torch.sigmoid(-logits) - (1 - targets) * torch.sigmoid(logits)
    distance = distance.abs().clamp(min=torch.finfo(distance.dtype).tiny)
    return reduce_loss(distance**gamma * _cross_entropy(logits, targets), reduction)


def varifocal_loss(
    logits: torch.Tensor, targets: torch.Tensor, alpha: float = 0.75, gamma: float = 2.0, reduction: str = "none"
) -> torch.Tensor:
    """Cross entropy to a target ``q`` in [0, 1], weighted by it; focal only where it is 0. With ``p = sigmoid(x)``::

        VFL = -q (q log(p) + (1 - q) log(1 - p))   for q > 0
        VFL = -alpha p^gamma log(1 - p)            for q = 0

    Limits: for ``q = 1`` it is cross entropy; for ``q = 0`` the focal loss without weighting times ``alpha``. It jumps
    where ``q`` becomes 0.

    Args:
        logits: any shape, floating point; half precision is raised to float32.
        targets: same shape, values in [0, 1].
        alpha: weight of the targets 0, >= 0. Not the alpha of the focal loss: it has no counterpart for the others.
        gamma: focusing exponent of the targets 0, >= 0.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        The loss, of the logits' shape for ``none`` and a scalar otherwise. Loss and gradient are finite for
        every finite logit.

    Raises:
        ValueError: shapes differ, ``alpha`` or ``gamma`` is negative, or ``reduction`` is unknown.
    """
    check_varifocal(alpha, gamma)
    check_shapes(logits, targets)
    logits = upcast(logits)
    targets = targets.to(logits.dtype)
    positive = targets * _cross_entropy(logits, targets)
    negative = alpha * focal_of_margin(-logits, gamma)
    return reduce_loss(torch.where(targets > 0, positive, negative), reduction)


def check_varifocal(alpha: float, gamma: float) -> None:
    """
    Raises:
        ValueError: ``alpha`` or ``gamma`` is negative or not finite.
    """
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha is {alpha}; the varifocal loss needs a finite alpha >= 0, the weight of background")
    check_alpha_gamma(-1, gamma)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # PyTorch's own subtracts for targets near 0, and small losses lose their digits.
    return -targets * F.logsigmoid(logits) - (1 - targets) * F.logsigmoid(-logits)

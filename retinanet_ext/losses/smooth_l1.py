"""Smooth L1 on box deltas (Girshick, "Fast R-CNN", eq. 3, with the transition point as a parameter)."""

import torch

from .reduction import reduce_loss, upcast


def smooth_l1_loss(
    inputs: torch.Tensor, targets: torch.Tensor, beta: float = 0.0, reduction: str = "none"
) -> torch.Tensor:
    """``0.5 d^2 / beta`` where ``d = |inputs - targets| < beta``, else ``d - 0.5 beta``.

    ``beta = 0`` is the L1 loss, ``beta = 1`` the Huber loss of Fast R-CNN.

    Args:
        inputs, targets: same shape, floating point; half precision is raised to float32.
        beta: where the parabola meets the line, >= 0, in the units of the inputs.
        reduction: ``none``, ``mean`` or ``sum``.

    Raises:
        ValueError: shapes differ, ``beta`` is negative, or ``reduction`` is unknown.
    """
    if inputs.shape != targets.shape:
        raise ValueError(f"targets have shape {tuple(targets.shape)}, inputs {tuple(inputs.shape)}; they must agree")
    if beta < 0:
        raise ValueError(f"beta is {beta}; smooth L1 needs beta >= 0 (0 is L1)")
    distance = (upcast(inputs) - upcast(targets)).abs()
    # Dividing by a tiny beta would give NaN gradients through torch.where; below 1e-5 the parabola is nowhere.
    if beta < 1e-5:
        return reduce_loss(distance, reduction)
    loss = torch.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)
    return reduce_loss(loss, reduction)


def l1_loss(inputs: torch.Tensor, targets: torch.Tensor, reduction: str = "none") -> torch.Tensor:
    """``|inputs - targets|``; arguments and errors as :func:`smooth_l1_loss`."""
    return smooth_l1_loss(inputs, targets, beta=0.0, reduction=reduction)

"""Sigmoid focal loss (Lin et al., "Focal Loss for Dense Object Detection", eq. 4 and 5)."""

import torch

from retinanet_ext.ops import check_alpha_gamma, focal_of_margin

from .reduction import reduce_loss, upcast


def sigmoid_focal_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
) -> torch.Tensor:
    """Alpha-balanced focal loss of independent binary classifiers.

    With ``x`` the logit, ``y`` = +1 for target 1 and -1 for target 0, ``p_t = sigmoid(y x)``::

        FL = -alpha_t (1 - p_t)^gamma log(p_t),   alpha_t = alpha for target 1, 1 - alpha for target 0

    Limits: ``gamma = 0`` is alpha-weighted cross entropy; ``alpha = 0.5`` halves the unweighted loss.

    Args:
        logits: any shape, floating point. Half precision is raised to float32 first, so the loss keeps its
            precision under autocast.
        targets: same shape, values 0 or 1.
        alpha: weight of the targets 1, in [0, 1]; negative switches the weighting off.
        gamma: focusing exponent, >= 0.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        The loss, of the logits' shape for ``none`` and a scalar otherwise. Loss and gradient are finite for
        every finite logit.

    Raises:
        ValueError: shapes differ, ``gamma`` is negative, ``alpha`` exceeds 1, or ``reduction`` is unknown.
    """
    check_alpha_gamma(alpha, gamma)
    margins, weights = margins_and_weights(logits, targets, alpha)
    return reduce_loss(focal_of_margin(margins, gamma) * weights, reduction)


def margins_and_weights(
    logits: torch.Tensor, targets: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """``x_t = y x`` (eq. 6) and ``alpha_t`` (eq. 3; 1 for a negative alpha), for losses of the margin.

    Raises:
        ValueError: shapes differ.
    """
    check_shapes(logits, targets)
    logits = upcast(logits)
    targets = targets.to(logits.dtype)
    weights = alpha * targets + (1 - alpha) * (1 - targets) if alpha >= 0 else 1.0
    return logits * (2 * targets - 1), weights


def check_shapes(logits: torch.Tensor, targets: torch.Tensor) -> None:
    if logits.shape != targets.shape:
        raise ValueError(f"targets have shape {tuple(targets.shape)}, logits {tuple(logits.shape)}; they must agree")

"""FL*, the alternate focal loss (Lin et al., "Focal Loss for Dense Object Detection", appendix A)."""

import torch
import torch.nn.functional as F

from retinanet_ext.ops import check_focal_star

from .focal import margins_and_weights
from .reduction import reduce_loss


def sigmoid_focal_star_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    beta: float = 1.0,
    reduction: str = "none",
) -> torch.Tensor:
    """Alpha-balanced FL* of independent binary classifiers (eq. 6 to 8).

    With ``x`` the logit, ``y`` = +1 for target 1 and -1 for target 0::

        x_t = y x,   p*_t = sigmoid(gamma x_t + beta),   FL* = -alpha_t log(p*_t) / gamma

    and ``alpha_t`` as in :func:`~retinanet_ext.losses.sigmoid_focal_loss`. The paper writes it without ``alpha_t``
    and sweeps gamma and beta at alpha 0.25 (figure 7). Its derivative by ``x`` is ``alpha_t y (p*_t - 1)`` (eq. 11).

    Limits: ``gamma = 1, beta = 0`` is alpha-weighted cross entropy; as gamma grows it becomes the hinge on the logit,
    ``max(0, -x_t)``.

    Args:
        logits: any shape, floating point; half precision is raised to float32.
        targets: same shape, values 0 or 1.
        alpha: weight of the targets 1, in [0, 1]; negative switches the weighting off.
        gamma: steepness, > 0.
        beta: shift: the larger, the less is asked of the margin.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        The loss, of the logits' shape for ``none`` and a scalar otherwise. Loss and gradient are finite for
        every logit for which ``gamma x + beta`` is.

    Raises:
        ValueError: shapes differ, ``gamma`` is not positive, ``beta`` is not finite, ``alpha`` exceeds 1, or
            ``reduction`` is unknown.
    """
    check_focal_star(alpha, gamma, beta)
    x_t, weight = margins_and_weights(logits, targets, alpha)
    return reduce_loss(-F.logsigmoid(gamma * x_t + beta) / gamma * weight, reduction)

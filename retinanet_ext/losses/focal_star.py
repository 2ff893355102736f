"""FL*, the alternate focal loss (Lin et al., "Focal Loss for Dense Object Detection", appendix A).

As in ``focal.py``: first the formula, which is the tests' reference; then the fast form that training runs.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .focal import Alpha, alpha_from_config, check_alpha_gamma, focal_and_derivative, keep_alpha, margins_and_weights
from .loss_interface import CLS_LOSS_REGISTRY, DensePredictions, DenseTargets, reduce_loss
from .one_pass import margin_loss, reduce_images, sums_of_images


def sigmoid_focal_star_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    beta: float = 1.0,
    reduction: str = "none",
) -> torch.Tensor:
    """Alpha-balanced FL* of independent binary classifiers (eq. 6 to 8). The reference; training does not call it.

    With ``x`` the logit, ``y`` = +1 for target 1 and -1 for target 0::

        x_t = y x,   p*_t = sigmoid(gamma x_t + beta),   FL* = -alpha_t log(p*_t) / gamma

    and ``alpha_t`` as in :func:`~retinanet_ext.losses.sigmoid_focal_loss`. The paper writes it without ``alpha_t``
    and sweeps gamma and beta at alpha 0.25 (figure 7). Its derivative by ``x`` is ``alpha_t y (p*_t - 1)`` (eq. 11).

    Limits: ``gamma = 1, beta = 0`` is alpha-weighted cross entropy; as gamma grows, the loss approaches the hinge
    on the logit, ``max(0, -x_t)``.

    Args:
        logits: any shape, floating point; half precision is raised to float32.
        targets: same shape, values 0 or 1.
        alpha: weight of entries with target 1, in [0, 1]; negative switches the weighting off.
        gamma: steepness, > 0.
        beta: shift; the larger it is, the smaller the margin that gives a small loss.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        The loss, of the logits' shape for ``none`` and a scalar otherwise. Loss and gradient are finite
        wherever ``gamma x + beta`` is finite.

    Raises:
        ValueError: shapes differ, ``gamma`` is not positive, ``beta`` is not finite, ``alpha`` exceeds 1, or
            ``reduction`` is unknown.
    """
    check_focal_star(alpha, gamma, beta)
    x_t, alpha_t = margins_and_weights(logits, targets, alpha)
    return reduce_loss(-F.logsigmoid(gamma * x_t + beta) / gamma * alpha_t, reduction)


@margin_loss("focal_star")
def focal_star_and_derivative(
    u: torch.Tensor, weight: torch.Tensor | None, scratch: Sequence[torch.Tensor], gamma: float, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """FL* of minus the margin ``u``, any shape, and its derivative, in place; see :func:`margin_loss`.

    With ``v = gamma u - beta`` the loss is ``softplus(v) / gamma``: cross entropy of v, over gamma. Its derivative by
    ``u`` is that of the cross entropy by ``v``, ``sigmoid(v)``, since the gammas cancel.
    """
    loss, derivative = focal_and_derivative(u.mul_(gamma).sub_(beta), weight, scratch, gamma=0.0)
    return loss.div_(gamma), derivative


def dense_focal_star_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: Alpha = 0.25,
    gamma: float = 2.0,
    beta: float = 1.0,
    reduction: str = "sum",
) -> torch.Tensor:
    """Sum of FL* over all classes and all anchors that are not ignored; computed in blocks, on CUDA too.

    Args:
        logits, labels, alpha, reduction: as for :func:`~retinanet_ext.losses.dense_focal_loss`; logits ``(N, R, K)``,
            labels ``(N, R)``.
        gamma: steepness, > 0.
        beta: shift.

    Returns:
        A scalar, or ``(N,)`` for ``per_image``.

    Raises:
        ValueError: shapes or dtypes disagree, or a value is out of its range.
    """
    check_focal_star(alpha, gamma, beta)
    return reduce_images(sums_of_images("focal_star", [gamma, beta], logits, labels, alpha), reduction)


class DenseFocalStarLoss(nn.Module):
    """FL* over all anchors of a batch."""

    def __init__(self, *, alpha: float | Sequence[float] = 0.25, gamma: float = 2.0, beta: float = 1.0):
        """
        Args:
            alpha: as for :class:`~retinanet_ext.losses.DenseFocalLoss`.
            gamma: steepness, > 0.
            beta: shift.
        """
        super().__init__()
        check_focal_star(alpha, gamma, beta)
        keep_alpha(self, alpha)
        self.gamma, self.beta = gamma, beta

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        """The loss of each image, ``(N,)``."""
        return dense_focal_star_loss(
            predictions.logits, targets.labels, self.alpha, self.gamma, self.beta, reduction="per_image"
        )


@CLS_LOSS_REGISTRY.register(name="focal_star")
def _build_focal_star(cfg) -> DenseFocalStarLoss:
    retinanet = cfg.MODEL.RETINANET
    return DenseFocalStarLoss(
        alpha=alpha_from_config(cfg), gamma=retinanet.FOCAL_LOSS_GAMMA, beta=retinanet.CLS_LOSS.FOCAL_STAR.BETA
    )


def check_focal_star(alpha: Alpha, gamma: float, beta: float) -> None:
    """As :func:`check_alpha_gamma`, for FL*.

    Raises:
        ValueError: also if ``gamma`` is 0 or ``beta`` is not finite.
    """
    if gamma == 0:
        raise ValueError(f"gamma is {gamma}; FL* divides by it and needs gamma > 0 (gamma 1 and beta 0: cross entropy)")
    check_alpha_gamma(alpha, gamma)
    if not math.isfinite(beta):
        raise ValueError(f"beta is {beta}; FL* needs a finite beta")

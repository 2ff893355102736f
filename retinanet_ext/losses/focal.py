"""The focal loss: its formula, the plain form that follows it, and the fast form that training runs.

Source: Lin et al., "Focal Loss for Dense Object Detection", section 3. For one anchor and one class, with ``x`` the
logit, and ``y`` = +1 if the anchor has the class and -1 if not::

    x_t = y x                                       the margin: positive where the answer is right (eq. 6)
    p_t = sigmoid(x_t)                              the probability of the right answer (eq. 2)
    CE  = -log(p_t)                                 cross entropy (eq. 1)
    FL  = -alpha_t (1 - p_t)^gamma log(p_t)         the focal loss (eq. 5)

``alpha_t`` is alpha where y = +1, and 1 - alpha elsewhere. At gamma 2 an anchor with p_t = 0.9 weighs a hundred times
less than under cross entropy, so the many easy background anchors do not outweigh the few foreground anchors.

The file goes from the formula to what runs:

1. :func:`sigmoid_focal_loss` is the formula, entry by entry. :func:`dense_focal_reference` sums it over the
   anchors of an image. Both are references: training does not call them, tests compare the fast form with them.
2. :func:`focal_and_derivative` is the same formula with its derivative written out, and :func:`dense_focal_loss` runs
   it over all anchors and classes, through ``one_pass.py`` (on CUDA through the kernel of ``focal_triton.py``).
3. :class:`DenseFocalLoss` is the module that the config names, as ``focal``, ``cross_entropy`` or
   ``balanced_cross_entropy``.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .loss_interface import CLS_LOSS_REGISTRY, DensePredictions, DenseTargets, reduce_loss, upcast
from .one_pass import margin_loss, reduce_images, sums_of_images

# A number, or one value for each class.
Alpha = float | Sequence[float] | torch.Tensor


# ---- 1. The formula. Not run in training.


def sigmoid_focal_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    alpha: Alpha = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
) -> torch.Tensor:
    """Alpha-balanced focal loss of independent binary classifiers: FL as at the top of this file.

    Limits: ``gamma = 0`` is alpha-weighted cross entropy; ``alpha = 0.5`` halves the unweighted loss.

    Args:
        logits: any shape, floating point. Half precision is raised to float32 first, so the loss keeps its
            precision under autocast.
        targets: same shape, values 0 or 1.
        alpha: weight of entries with target 1, in [0, 1]; negative switches the weighting off. For logits
            ``(..., K)`` also K values, one for each class.
        gamma: focusing exponent, >= 0.
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        The loss, of the logits' shape for ``none`` and a scalar otherwise. Loss and gradient are finite for
        every finite logit.

    Raises:
        ValueError: shapes differ, ``gamma`` is negative, ``alpha`` exceeds 1, or ``reduction`` is unknown.
    """
    check_alpha_gamma(alpha, gamma)
    x_t, alpha_t = margins_and_weights(logits, targets, alpha)
    return reduce_loss(alpha_t * focal_of_margin(x_t, gamma), reduction)


def focal_of_margin(x_t: torch.Tensor, gamma: float) -> torch.Tensor:
    """``-(1 - p_t)^gamma log(p_t)`` of margins of any shape, elementwise (eq. 4).

    ``log(p_t) = logsigmoid(x_t)`` and ``log(1 - p_t) = logsigmoid(-x_t)``, which stay exact where p_t rounds to 0
    or 1. There, the textbook's ``(1 - p_t) ** gamma`` would have an infinite derivative for gamma < 1.
    """
    loss = -F.logsigmoid(x_t)
    return loss * torch.exp(gamma * F.logsigmoid(-x_t)) if gamma > 0 else loss


def dense_focal_reference(logits: torch.Tensor, labels: torch.Tensor, alpha: Alpha, gamma: float) -> torch.Tensor:
    """What :func:`dense_focal_loss` computes, by definition: with a target of 0 or 1 for every anchor and class.

    Args:
        logits, labels, alpha, gamma: as for :func:`dense_focal_loss`; logits ``(N, R, K)``, labels ``(N, R)``.

    Returns:
        Sums of the images, ``(N,)``.
    """
    targets = labels[:, :, None] == torch.arange(logits.shape[2], device=logits.device)
    loss = sigmoid_focal_loss(logits, targets, alpha, gamma)
    return loss.masked_fill(labels[:, :, None] < 0, 0.0).sum(dim=(1, 2))


def margins_and_weights(
    logits: torch.Tensor, targets: torch.Tensor, alpha: Alpha
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """``x_t`` (eq. 6) and ``alpha_t`` (eq. 3; 1 for a negative alpha) of logits and targets of one shape.

    Raises:
        ValueError: shapes differ.
    """
    check_shapes(logits, targets)
    logits = upcast(logits)
    targets = targets.to(logits.dtype)
    x_t = logits * (2 * targets - 1)
    if not isinstance(alpha, (int, float)):
        alpha = torch.as_tensor(alpha, dtype=logits.dtype, device=logits.device)
    elif alpha < 0:
        return x_t, 1.0
    return x_t, alpha * targets + (1 - alpha) * (1 - targets)


# ---- 2. The fast form, which training runs. Tested against the reference above, forward and gradient.


@margin_loss("focal")
def focal_and_derivative(
    u: torch.Tensor, weight: torch.Tensor | None, scratch: Sequence[torch.Tensor], gamma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The focal loss of minus the margin, ``u = -x_t``, and its derivative by ``u``, in place.

    With ``q = sigmoid(u) = 1 - p_t`` and ``s = softplus(u) = -log(p_t)`` the loss is ``q^gamma s``. Since ``dq/du =
    q (1 - q)`` and ``ds/du = q``, its derivative is ``q^gamma (q + gamma (1 - q) s)``. It has no power below gamma, so
    it is finite for every gamma.

    Args:
        u: any shape.
        weight, scratch: see :func:`margin_loss`.
        gamma: focusing exponent, >= 0.
    """
    q, p_t, s, power = scratch
    torch.sigmoid(u, out=q)
    torch.sub(1.0, q, out=p_t)
    # min(q, 1 - q) is sigmoid(-|u|), so s becomes -log(1 + exp(-|u|)), without a rounded 1 inside the logarithm. One
    # sigmoid and one logarithm are then all that a gamma of 2 needs.
    torch.minimum(q, p_t, out=s).neg_().log1p_()
    if gamma == 0:
        power.fill_(1.0)
    elif gamma == 1:
        power.copy_(q)
    elif gamma == 2:
        torch.mul(q, q, out=power)
    else:  # exp(gamma log(q)), with log(q) = min(u, 0) + s; twice as fast as pow
        torch.clamp(u, max=0.0, out=power).add_(s).mul_(gamma).exp_()
    if weight is not None:
        power.mul_(weight)
    torch.sub(u.clamp_(min=0.0), s, out=s)  # softplus(u) = max(u, 0) + log(1 + exp(-|u|))
    derivative = torch.addcmul(q, p_t, s, value=gamma, out=p_t).mul_(power)
    return s.mul_(power), derivative


def dense_focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: Alpha = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
) -> torch.Tensor:
    """Sum of the focal loss over all classes and all anchors that are not ignored, from class indices.

    Loss and gradient are computed together, in one pass: by a Triton kernel on CUDA if Triton runs there, otherwise in
    blocks. Only the gradient takes memory of the logits' size. The loss is not differentiable twice. This function
    does not wait for the device.

    Args:
        logits: ``(N, R, K)`` for N images, R anchors and K classes, any strides.
        labels: ``(N, R)`` int64: -1 ignored, 0..K-1 a class, K background. Not checked, since a check would
            wait for the device: labels below -1 are ignored too, labels above K are background.
        alpha: weight of the foreground entries in [0, 1]; background entries weigh ``1 - alpha``. Negative switches the
            weighting off. A sequence or a tensor ``(K,)`` holds one alpha for each class; the values of a tensor are
            not checked.
        gamma: focusing exponent, >= 0.
        reduction: ``sum`` over everything, or ``per_image``.

    Returns:
        A scalar, or ``(N,)`` for ``per_image``, in float32 (float64 for float64 logits): half precision is raised
        without a copy of all logits. The gradient has the logits' dtype.

    Raises:
        ValueError: shapes or dtypes disagree, or a value is out of its range.
    """
    check_alpha_gamma(alpha, gamma)
    return reduce_images(sums_of_images("focal", [gamma], logits, labels, alpha), reduction)


# ---- 3. The module that the config names.


class DenseFocalLoss(nn.Module):
    """The focal loss over all anchors of a batch (section 4.1 "Focal Loss"). Gamma 0 is cross entropy."""

    def __init__(self, *, alpha: float | Sequence[float] = 0.25, gamma: float = 2.0):
        """
        Args:
            alpha: weight of the foreground in [0, 1]; negative switches the weighting off. A sequence holds one
                alpha in [0, 1] for each class.
            gamma: focusing exponent, >= 0; 0 is alpha-balanced cross entropy.
        """
        super().__init__()
        check_alpha_gamma(alpha, gamma)
        keep_alpha(self, alpha)
        self.gamma = gamma

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        """The loss of each image, ``(N,)``."""
        return dense_focal_loss(predictions.logits, targets.labels, self.alpha, self.gamma, reduction="per_image")


# A builder reads only the keys of its loss: keys that nothing reads are reported to the user.
@CLS_LOSS_REGISTRY.register(name="focal")
def _build_focal(cfg) -> DenseFocalLoss:
    return DenseFocalLoss(alpha=alpha_from_config(cfg), gamma=cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA)


@CLS_LOSS_REGISTRY.register(name="cross_entropy")
def _build_cross_entropy(cfg) -> DenseFocalLoss:
    return DenseFocalLoss(alpha=-1, gamma=0)


@CLS_LOSS_REGISTRY.register(name="balanced_cross_entropy")
def _build_balanced_cross_entropy(cfg) -> DenseFocalLoss:
    return DenseFocalLoss(alpha=alpha_from_config(cfg), gamma=0)


def alpha_from_config(cfg) -> float | Sequence[float]:
    """``CLASS_ALPHAS``, one alpha for each class, or ``FOCAL_LOSS_ALPHA`` if that is empty.

    Raises:
        ValueError: ``CLASS_ALPHAS`` has another number of values than there are classes.
    """
    retinanet = cfg.MODEL.RETINANET
    values = retinanet.CLS_LOSS.CLASS_ALPHAS
    if not values:
        return retinanet.FOCAL_LOSS_ALPHA
    if len(values) != retinanet.NUM_CLASSES:
        raise ValueError(
            f"MODEL.RETINANET.CLS_LOSS.CLASS_ALPHAS has {len(values)} values, and MODEL.RETINANET.NUM_CLASSES is "
            f"{retinanet.NUM_CLASSES}; give one alpha for each class, or [] to use FOCAL_LOSS_ALPHA"
        )
    return values


def keep_alpha(module: nn.Module, alpha: float | Sequence[float]) -> None:
    """Set ``module.alpha``. Several values become a buffer, so that they move to a device once, with the module."""
    if isinstance(alpha, (int, float)):
        module.alpha = alpha
    else:
        module.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float32), persistent=False)


# ---- Checks, which other losses share.


def check_shapes(logits: torch.Tensor, targets: torch.Tensor) -> None:
    """
    Raises:
        ValueError: logits and targets are not of one shape.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"targets have shape {tuple(targets.shape)}, logits {tuple(logits.shape)}; they must agree")


def check_alpha_gamma(alpha: Alpha, gamma: float) -> None:
    """Refuse values outside the loss's definition. A tensor's values are not read: that would wait for its device.

    Raises:
        ValueError: ``gamma`` is negative or not finite, a number ``alpha`` exceeds 1, or one of several is outside
            [0, 1].
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is {gamma}; the focal loss needs a finite gamma >= 0")
    if isinstance(alpha, (int, float)):
        if not alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it must lie in [0, 1], or be negative to switch the weighting off")
    elif not isinstance(alpha, torch.Tensor):
        wrong = [value for value in alpha if not 0 <= value <= 1]
        if wrong:
            raise ValueError(f"alpha holds {wrong}; each of its values, one for each class, must lie in [0, 1]")

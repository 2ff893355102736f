"""The hinge loss on p_t (Lin et al., "Focal Loss for Dense Object Detection", section 5.1).

As in ``focal.py``: first the formula, which is the tests' reference; then the fast form that training runs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .focal import margins_and_weights
from .loss_interface import CLS_LOSS_REGISTRY, DensePredictions, DenseTargets, reduce_loss
from .one_pass import margin_loss, reduce_images, sums_of_images


def sigmoid_hinge_loss(
    logits: torch.Tensor, targets: torch.Tensor, margin: float = 0.5, reduction: str = "none"
) -> torch.Tensor:
    """Hinge loss on the probability of the right answer. The reference; training does not call it.

    With ``x`` the logit, ``y`` = +1 for target 1 and -1 for target 0, ``p_t = sigmoid(y x)``::

        loss = max(0, margin - p_t)

    The paper says only that the loss is 0 above some value of ``p_t``, and that training was unstable. The derivative
    by ``x`` is ``-y p_t (1 - p_t)`` below the margin and 0 above. It also vanishes where p_t is near 0, for
    confidently wrong answers.

    Limits: ``margin = 1`` is ``1 - p_t``, the absolute error; above the margin, loss and gradient are 0.

    Args:
        logits: any shape, floating point; half precision is raised to float32.
        targets: same shape, values 0 or 1.
        margin: the ``p_t`` above which the loss is 0, in (0, 1].
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        The loss, of the logits' shape for ``none`` and a scalar otherwise; at most ``margin`` for each entry.

    Raises:
        ValueError: shapes differ, ``margin`` is out of its range, or ``reduction`` is unknown.
    """
    check_margin(margin)
    x_t, _ = margins_and_weights(logits, targets, alpha=-1)
    # 1 - p_t is computed as a sigmoid, which stays accurate near 0.
    return reduce_loss(F.relu(torch.sigmoid(-x_t) - (1 - margin)), reduction)


@margin_loss("hinge")
def hinge_and_derivative(
    u: torch.Tensor, weight: torch.Tensor | None, scratch: Sequence[torch.Tensor], margin: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The hinge loss of minus the margin, ``u = -x_t``, any shape, and its derivative by ``u``, in place; see
    :func:`margin_loss`.

    With ``q = sigmoid(u) = 1 - p_t`` the loss is ``max(0, q - (1 - margin))``; its derivative is ``q (1 - q)`` where
    the loss is not zero. As the margin is at most 1, the loss is 0 at ``u = -inf``.
    """
    q, p_t, loss, is_positive = scratch
    torch.sigmoid(u, out=q)
    torch.sub(q, 1 - margin, out=loss).clamp_(min=0.0)
    torch.sub(1.0, q, out=p_t)
    torch.sign(loss, out=is_positive)
    derivative = q.mul_(p_t).mul_(is_positive)
    if weight is not None:
        derivative.mul_(weight)
        loss.mul_(weight)
    return loss, derivative


def dense_hinge_loss(
    logits: torch.Tensor, labels: torch.Tensor, margin: float = 0.5, reduction: str = "sum"
) -> torch.Tensor:
    """Sum of the hinge loss over all classes and all anchors that are not ignored; computed in blocks, on CUDA too.

    Args:
        logits, labels, reduction: as for :func:`~retinanet_ext.losses.dense_focal_loss`; logits ``(N, R, K)``, labels
            ``(N, R)``.
        margin: the ``p_t`` above which the loss is 0, in (0, 1].

    Returns:
        A scalar, or ``(N,)`` for ``per_image``.

    Raises:
        ValueError: shapes or dtypes disagree, or a value is out of its range.
    """
    check_margin(margin)
    return reduce_images(sums_of_images("hinge", [margin], logits, labels, alpha=-1), reduction)


class DenseHingeLoss(nn.Module):
    """The hinge loss on p_t over all anchors of a batch."""

    def __init__(self, *, margin: float = 0.5):
        """
        Args:
            margin: the ``p_t`` above which the loss is 0, in (0, 1].
        """
        super().__init__()
        check_margin(margin)
        self.margin = margin

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        """The loss of each image, ``(N,)``."""
        return dense_hinge_loss(predictions.logits, targets.labels, self.margin, reduction="per_image")


@CLS_LOSS_REGISTRY.register(name="hinge")
def _build_hinge(cfg) -> DenseHingeLoss:
    return DenseHingeLoss(margin=cfg.MODEL.RETINANET.CLS_LOSS.HINGE.MARGIN)


def check_margin(margin: float) -> None:
    """
    Raises:
        ValueError: ``margin`` is not in (0, 1].
    """
    if not 0 < margin <= 1:
        raise ValueError(f"margin is {margin}; the hinge is on p_t, so its margin must lie in (0, 1]")

"""The focal loss of a dense prediction by its definition: the truth that the fast forms are tested against."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def focal_of_margin(x_t: torch.Tensor, gamma: float) -> torch.Tensor:
    """``-(1 - p_t)^gamma log(p_t)`` with ``p_t = sigmoid(x_t)``, elementwise; paper, eq. 4 in the terms of eq. 6.

    Both factors are written with log-sigmoids. The textbook form ``(1 - p_t) ** gamma`` has an infinite derivative
    where ``p_t`` rounds to 1 and gamma < 1.
    """
    loss = -F.logsigmoid(x_t)
    return loss * torch.exp(gamma * F.logsigmoid(-x_t)) if gamma > 0 else loss


def dense_focal_reference(
    logits: torch.Tensor, labels: torch.Tensor, alpha: float | Sequence[float] | torch.Tensor, gamma: float
) -> torch.Tensor:
    """Sums of the images, ``(N,)`` in the logits' dtype; arguments as :func:`~retinanet_ext.ops.dense_focal_loss`."""
    classes = torch.arange(logits.shape[2], device=logits.device)
    is_foreground = labels[:, :, None] == classes
    loss = focal_of_margin(torch.where(is_foreground, logits, -logits), gamma)
    alpha = alpha_values(alpha, logits, logits.dtype)
    if alpha is not None:
        loss = loss * torch.where(is_foreground, alpha, 1 - alpha)
    return loss.masked_fill(labels[:, :, None] < 0, 0.0).sum(dim=(1, 2))


def alpha_values(
    alpha: float | Sequence[float] | torch.Tensor, logits: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | None:
    """``(1,)``, or ``(K,)`` for a value a class, on the device of ``logits`` ``(N, R, K)``; None: no weighting.

    Raises:
        ValueError: there are values, but not K.
    """
    if isinstance(alpha, (int, float)):
        return None if alpha < 0 else logits.new_full((1,), alpha, dtype=dtype)
    values = torch.as_tensor(alpha, dtype=dtype, device=logits.device)
    if values.shape != logits.shape[2:]:
        raise ValueError(
            f"alpha has shape {tuple(values.shape)}, and the logits have {logits.shape[2]} classes; give a number, "
            "or one value for each class"
        )
    return values

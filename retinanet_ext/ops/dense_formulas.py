"""Losses of the margin with their derivatives, in place: the arithmetic of ``dense_blocked``.

Each is called as ``formula(u, weight, scratch, *knobs)`` with minus the margin, ``u``, so that ``p_t = sigmoid(-u)``; a
``weight`` that broadcasts to it, or None; and four tensors like ``u``. It overwrites all of these but the weight, and
returns the weighted loss and its derivative by ``u``. An infinite margin has neither: ``u = -inf`` gives zeros.
"""

from collections.abc import Sequence

import torch

Pair = tuple[torch.Tensor, torch.Tensor]


def focal(u: torch.Tensor, weight: torch.Tensor | None, scratch: Sequence[torch.Tensor], gamma: float) -> Pair:
    """With ``q = sigmoid(u) = 1 - p_t`` and ``s = softplus(u) = -log(p_t)``, the loss is ``q^gamma s`` and its
    derivative ``q^gamma (q + gamma (1 - q) s)``: no power below gamma, so finite for every gamma.
    """
    q, rest, s, power = scratch
    torch.sigmoid(u, out=q)
    torch.sub(1.0, q, out=rest)
    # -log(1 + exp(-|u|)): one sigmoid and one logarithm are all that a gamma of 2 needs.
    torch.minimum(q, rest, out=s).neg_().log1p_()
    if gamma == 0:
        power.fill_(1.0)
    elif gamma == 1:
        power.copy_(q)
    elif gamma == 2:
        torch.mul(q, q, out=power)
    else:  # log(q) = min(u, 0) + s; twice as fast as pow
        torch.clamp(u, max=0.0, out=power).add_(s).mul_(gamma).exp_()
    if weight is not None:
        power.mul_(weight)
    torch.sub(u.clamp_(min=0.0), s, out=s)
    derivative = torch.addcmul(q, rest, s, value=gamma, out=rest).mul_(power)
    return s.mul_(power), derivative


def focal_star(
    u: torch.Tensor, weight: torch.Tensor | None, scratch: Sequence[torch.Tensor], gamma: float, beta: float
) -> Pair:
    """``softplus(v) / gamma`` with ``v = gamma u - beta``. Its derivative by ``u`` is the sigmoid of ``v``, as that of
    the cross entropy ``softplus(v)`` by ``v``."""
    loss, derivative = focal(u.mul_(gamma).sub_(beta), weight, scratch, 0.0)
    return loss.div_(gamma), derivative


def hinge(u: torch.Tensor, weight: torch.Tensor | None, scratch: Sequence[torch.Tensor], margin: float) -> Pair:
    """``max(0, q - (1 - margin))`` with ``q = sigmoid(u) = 1 - p_t``; its derivative is ``q (1 - q)`` where it is not
    zero. A margin of at most 1 leaves nothing at ``u = -inf``."""
    q, rest, loss, is_positive = scratch
    torch.sigmoid(u, out=q)
    torch.sub(q, 1 - margin, out=loss).clamp_(min=0.0)
    torch.sub(1.0, q, out=rest)
    torch.sign(loss, out=is_positive)
    derivative = q.mul_(rest).mul_(is_positive)
    if weight is not None:
        derivative.mul_(weight)
        loss.mul_(weight)
    return loss, derivative


FORMULAS = {"focal": focal, "focal_star": focal_star, "hinge": hinge}

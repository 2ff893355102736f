"""The triplet loss of FaceNet (Schroff et al., 2015, equation 3): the readable form, and the form that training runs.

B images per batch, D numbers per embedding, A anchors per block, T triplets.

The form that runs never makes a tensor of ``(T, D)``. The loss is a weighted sum of the distances of the batch, and
its gradient is a matrix product of these weights with the embeddings.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

# Anchors are handled in blocks of at most this many (anchor, image) pairs; a block takes about 50 bytes per pair.
BLOCK_PAIRS = 1 << 20
# Squared distances below this are taken for 0: rounding of float64, far below what float32 embeddings can tell apart.
SMALLEST_DISTANCE = 1e-12


def triplet_loss(embeddings: torch.Tensor, triplets: torch.Tensor, margin: float = 0.2) -> torch.Tensor:
    """Mean over triplets of ``[ |a - p|^2 - |a - n|^2 + margin ]_+``, with squared L2 distances.

    Training runs :func:`selected_triplet_loss`; this is its readable form.

    Args:
        embeddings: ``(B, D)``, of length 1.
        triplets: int64 ``(T, 3)``: indices of anchor, positive and negative.
        margin: alpha of the paper.

    Returns:
        A scalar; without triplets 0, with a gradient of 0.
    """
    if not len(triplets):
        return embeddings.sum() * 0
    anchors, positives, negatives = (embeddings[index] for index in triplets.unbind(dim=1))
    positive_distances = (anchors - positives).square().sum(dim=1)
    negative_distances = (anchors - negatives).square().sum(dim=1)
    return (positive_distances - negative_distances + margin).clamp(min=0).mean()


def squared_distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Squared L2 distances ``(A, B)`` in float64 between vectors ``(A, D)`` and ``(B, D)``.

    The products are summed in float64, where those of float32 vectors are exact. Rounded to float32, equal distances
    are equal numbers, and that between equal vectors is 0. A matrix product in float32 would break such ties at random.
    """
    first, second = first.double(), second.double()
    products = torch.addmm(second.square().sum(dim=1)[None], first, second.T, alpha=-2)
    distances = products.add_(first.square().sum(dim=1)[:, None])
    return torch.nn.functional.threshold_(distances, SMALLEST_DISTANCE, 0.0)


class TripletCounts(NamedTuple):
    """What was selected for a block of anchors. A triplet is active if ``d(a, n) < d(a, p) + margin``.

    Attributes:
        weights: float ``(A, B)``: in how many active triplets a distance is that of the positive, minus in how many it
            is that of the negative.
        candidates: int64 scalar: what `active` is a share of; depends on the selection.
        selected: int64 scalar: triplets that the loss is the mean of.
        active: int64 scalar: active triplets among those selected.
    """

    weights: torch.Tensor
    candidates: torch.Tensor
    selected: torch.Tensor
    active: torch.Tensor


class TripletTotals(NamedTuple):
    """The counts of :class:`TripletCounts` over all anchors of a batch, int64 scalars."""

    candidates: torch.Tensor
    selected: torch.Tensor
    active: torch.Tensor


def selected_triplet_loss(
    embeddings: torch.Tensor, select: Callable[[torch.Tensor, int], TripletCounts], margin: float = 0.2
) -> tuple[torch.Tensor, TripletTotals]:
    """Select triplets and compute the mean of their losses, with its gradient, in one pass over blocks of anchors.

    Equal to :func:`triplet_loss` over the selected triplets. The gradient is not differentiable again.

    Args:
        embeddings: ``(B, D)``, float32 or float64.
        select: called with float32 squared distances ``(A, B)`` of A anchors to all images and the index of the first
            of these anchors in the batch; see ``TripletSelection`` in ``embedding/selection.py``.
        margin: alpha of the paper.

    Returns:
        The loss, a scalar (without triplets 0, with a gradient of 0; NaN if an embedding is not finite), and the
        totals of what was selected.
    """
    loss, *totals = _SelectedTripletLoss.apply(embeddings, select, margin)
    return loss, TripletTotals(*totals)


def anchor_blocks(num_images: int) -> list[tuple[int, int]]:
    """First and last (exclusive) anchor of each block of a batch."""
    size = max(1, BLOCK_PAIRS // max(1, num_images))
    return [(start, min(start + size, num_images)) for start in range(0, num_images, size)]


class _SelectedTripletLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, select, margin):
        # The gradient depends on differences of embeddings only; without their mean it rounds less if all are similar.
        centred = embeddings - embeddings.mean(dim=0)
        gradient = torch.zeros_like(embeddings) if ctx.needs_input_grad[0] else None
        total = embeddings.new_zeros((), dtype=torch.float64)
        counts = torch.zeros(3, dtype=torch.int64, device=embeddings.device)
        for start, end in anchor_blocks(len(embeddings)):
            distances = squared_distances(embeddings[start:end], embeddings).to(embeddings.dtype)
            weights, *block_counts = select(distances.float(), start)
            counts += torch.stack(block_counts)
            # An embedding that is not finite is in no triplet, but 0 times NaN makes the loss NaN, as it must be.
            total += (distances * weights).sum(dtype=torch.float64)
            if gradient is not None:
                _add_gradient(gradient, weights.to(embeddings.dtype), centred, start, end)
        candidates, selected, active = counts.unbind()
        divisor = selected.clamp(min=1)
        loss = (total + margin * active) / divisor
        ctx.save_for_backward(gradient / divisor if gradient is not None else None)
        ctx.mark_non_differentiable(candidates, selected, active)
        return loss.to(embeddings.dtype), candidates, selected, active

    @staticmethod
    @once_differentiable
    def backward(ctx, loss_gradient, *_):
        (gradient,) = ctx.saved_tensors
        return loss_gradient * gradient, None, None


def _add_gradient(gradient: torch.Tensor, weights: torch.Tensor, embeddings: torch.Tensor, start: int, end: int):
    """Add the gradient of the weighted sum of a block's distances.

    d|a - b|^2 / da = 2 (a - b) and d|a - b|^2 / db = 2 (b - a), summed over the block by matrix products.
    """
    anchors = embeddings[start:end]
    gradient[start:end] += 2 * (weights.sum(dim=1)[:, None] * anchors - weights @ embeddings)
    gradient += 2 * (weights.sum(dim=0)[:, None] * embeddings - weights.T @ anchors)

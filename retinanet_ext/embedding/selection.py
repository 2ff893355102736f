"""Which triplets of a batch the loss sees, chosen by MODEL.EMBEDDING.LOSS.SELECTION.

A anchors per block, B images per batch, K positives of the anchor that has most of them, T triplets. d is the squared
L2 distance. All comparisons are made in float32 between distances rounded from float64 (`squared_distances`), so that
equal distances tie, and ties go to the lowest index in the batch.

Other implementations use other definitions of semi-hard selection. For an anchor and a positive, TensorFlow Addons take
the nearest negative that is farther than the positive, without the bound by the margin, and if none is farther the
farthest negative; D. Sandberg's ``facenet`` draws a random one among all within the margin, those nearer than the
positive included; pytorch-metric-learning takes every negative within the margin, one triplet for each, and by default
measures L2 distances that are not squared and averages over the losses above 0.
"""

from dataclasses import dataclass

import torch

from retinanet_ext.losses.triplet import TripletCounts, anchor_blocks, squared_distances
from retinanet_ext.registry import Registry

TRIPLET_SELECTION_REGISTRY = Registry("TRIPLET_SELECTION", "MODEL.EMBEDDING.LOSS.SELECTION")
"""Subclasses of :class:`TripletSelection`, made without arguments."""


@dataclass
class AnchorBlock:
    """Some anchors of a batch, and all its images.

    Attributes:
        distances: float32 ``(A, B)``, squared.
        positives: bool ``(A, B)``: other images of the anchor's identity.
        negatives: bool ``(A, B)``: images of other identities.
        start: index of the first anchor in the batch.
    """

    distances: torch.Tensor
    positives: torch.Tensor
    negatives: torch.Tensor
    start: int

    @classmethod
    def make(cls, distances: torch.Tensor, identities: torch.Tensor, start: int) -> "AnchorBlock":
        """The block of distances ``(A, B)`` from anchor number ``start`` on, in a batch of identities ``(B,)``."""
        positives = identities[start : start + len(distances), None] == identities[None]
        negatives = ~positives
        positives.diagonal(start).fill_(False)
        return cls(distances, positives, negatives, start)


class TripletSelection:
    """How triplets are selected. A subclass implements :meth:`triplets`."""

    def triplets(self, block: AnchorBlock, margin: float) -> torch.Tensor:
        """The triplets of a block's anchors, int64 ``(T, 3)``: indices of anchor, positive, negative in the batch."""
        raise NotImplementedError

    def num_candidates(self, block: AnchorBlock, triplets: torch.Tensor) -> torch.Tensor:
        """What the active triplets are a share of, int64 scalar: here the triplets ``(T, 3)`` themselves."""
        return block.positives.new_full((), len(triplets), dtype=torch.int64)

    def counts(self, block: AnchorBlock, margin: float) -> TripletCounts:
        """The counts of :meth:`triplets`, weights ``(A, B)``, for ``selected_triplet_loss``."""
        triplets = self.triplets(block, margin)
        anchors, positives, negatives = triplets.unbind(dim=1)
        anchors = anchors - block.start
        active = block.distances[anchors, negatives] < block.distances[anchors, positives] + margin
        # Sums of small integers are exact in float32, in any order.
        ones, weights = active.float(), torch.zeros_like(block.distances)
        weights.index_put_((anchors, positives), ones, accumulate=True)
        weights.index_put_((anchors, negatives), -ones, accumulate=True)
        selected = active.new_full((), len(triplets), dtype=torch.int64)
        return TripletCounts(weights, self.num_candidates(block, triplets), selected, active.sum())


def select_triplets(name: str, embeddings: torch.Tensor, identities: torch.Tensor, margin: float) -> torch.Tensor:
    """The triplets of a batch as a list. Training does not make this list; see ``selected_triplet_loss``.

    Args:
        name: in ``TRIPLET_SELECTION_REGISTRY``.
        embeddings: ``(B, D)``.
        identities: int64 ``(B,)``.
        margin: alpha of the paper.

    Returns:
        int64 ``(T, 3)``: indices of anchor, positive and negative. "batch_all" of 1,800 images may have 120 million.
    """
    selection, embeddings = TRIPLET_SELECTION_REGISTRY.get(name)(), embeddings.detach()
    found = [identities.new_zeros((0, 3), dtype=torch.int64)]
    for start, end in anchor_blocks(len(embeddings)):
        distances = squared_distances(embeddings[start:end], embeddings).float()
        found.append(selection.triplets(AnchorBlock.make(distances, identities, start), margin))
    return torch.cat(found)


@TRIPLET_SELECTION_REGISTRY.register(name="semi_hard")
class SemiHard(TripletSelection):
    """Every anchor-positive pair with its nearest semi-hard negative (paper, section 3.2).

    A negative n is semi-hard for (a, p) if ``d(a, p) < d(a, n) < d(a, p) + margin``. The paper selects "hard"
    negatives, so of several the nearest to the anchor is taken. A pair without a semi-hard negative gives no triplet.
    Candidates are all anchor-positive pairs.
    """

    def triplets(self, block: AnchorBlock, margin: float) -> torch.Tensor:
        images, distances = _sorted_positives(block)
        keys = _sorted_negatives(block)
        # The first negative that is farther than the positive: above all keys of the positive's distance.
        indices = torch.searchsorted(keys, _keys(distances, 0xFFFFFFFF), right=True)
        nearest = keys.gather(1, indices.clamp(max=keys.shape[1] - 1))
        legal = (indices < keys.shape[1]) & (_distances(nearest) < distances + margin)
        rows, columns = legal.nonzero(as_tuple=True)
        negatives = nearest[rows, columns] & 0xFFFFFFFF
        return torch.stack([rows + block.start, images[rows, columns], negatives], dim=1)

    def num_candidates(self, block: AnchorBlock, triplets: torch.Tensor) -> torch.Tensor:
        return block.positives.sum()


@TRIPLET_SELECTION_REGISTRY.register(name="batch_hard")
class BatchHard(TripletSelection):
    """For every anchor its farthest positive and its nearest negative, ``(T, 3)`` (Hermans et al., 2017).

    Candidates are the anchors that have both.
    """

    def triplets(self, block: AnchorBlock, margin: float) -> torch.Tensor:
        if not block.distances.numel():
            return torch.zeros((0, 3), dtype=torch.int64, device=block.distances.device)
        positives = block.distances.masked_fill(~block.positives, -1).argmax(dim=1)
        negatives = block.distances.masked_fill(~block.negatives, torch.inf).argmin(dim=1)
        (rows,) = (block.positives.any(dim=1) & block.negatives.any(dim=1)).nonzero(as_tuple=True)
        return torch.stack([rows + block.start, positives[rows], negatives[rows]], dim=1)


@TRIPLET_SELECTION_REGISTRY.register(name="batch_all")
class BatchAll(TripletSelection):
    """Every triplet with a loss above 0: ``d(a, n) < d(a, p) + margin``. Candidates are all triplets of the batch.

    Training counts them by sorting each anchor's positives and negatives, in O(B^2 log B), and never lists them.
    """

    def triplets(self, block: AnchorBlock, margin: float) -> torch.Tensor:
        found = [torch.zeros((0, 3), dtype=torch.int64, device=block.distances.device)]
        for row, distances in enumerate(block.distances):
            positives, negatives = (mask[row].nonzero().flatten() for mask in (block.positives, block.negatives))
            first, second = (distances[negatives] < distances[positives, None] + margin).nonzero(as_tuple=True)
            anchors = torch.full_like(first, row + block.start)
            found.append(torch.stack([anchors, positives[first], negatives[second]], dim=1))
        return torch.cat(found)

    def counts(self, block: AnchorBlock, margin: float) -> TripletCounts:
        images, distances = _sorted_positives(block)
        keys = _sorted_negatives(block)
        num_positives, num_negatives = block.positives.sum(dim=1), block.negatives.sum(dim=1)
        # For each positive, how many negatives are within the margin: these come first in the order.
        counts = torch.searchsorted(keys, _keys(distances + margin, 0))
        # For each negative, in that order, how many positives it is within the margin of: those with larger counts
        # than its index.
        is_positive = distances < torch.inf
        smaller = torch.zeros((len(keys), keys.shape[1] + 1), dtype=torch.int32, device=keys.device)
        smaller.scatter_add_(1, counts, is_positive.int())
        larger = num_positives[:, None] - smaller[:, :-1].cumsum(dim=1, dtype=torch.int32)
        weights = torch.zeros_like(block.distances)
        weights.scatter_(1, keys & 0xFFFFFFFF, -larger.to(weights.dtype))
        weights.masked_fill_(~block.negatives, 0)
        rows, columns = is_positive.nonzero(as_tuple=True)
        active = counts[rows, columns]
        weights[rows, images[rows, columns]] = active.to(weights.dtype)
        return TripletCounts(weights, (num_positives * num_negatives).sum(), active.sum(), active.sum())


def _keys(distances: torch.Tensor, low: torch.Tensor | int) -> torch.Tensor:
    """int64 keys that order by float32 distance, then by ``low`` of 32 bits, usually the image's index."""
    # The bits of floats from 0 on are ordered as integers.
    return distances.view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(low)


def _distances(keys: torch.Tensor) -> torch.Tensor:
    """The distances in keys."""
    return (keys >> 32).int().view(torch.float32)


def _sorted_negatives(block: AnchorBlock) -> torch.Tensor:
    """Keys ``(A, B)`` of each anchor's negatives, the nearest first, then of its other images, at infinite distances.

    A key appears once, so the result does not depend on how the sort treats equal ones.
    """
    images = torch.arange(block.distances.shape[1], device=block.distances.device)
    keys = _keys(block.distances.masked_fill(~block.negatives, torch.inf), images)
    if keys.device.type != "cpu":
        return keys.sort(dim=1).values
    keys.numpy().sort(axis=1)  # many times faster than PyTorch's sort; in place, the tensor shares the memory
    return keys


def _sorted_positives(block: AnchorBlock) -> tuple[torch.Tensor, torch.Tensor]:
    """The positives of each anchor, the nearest first: indices in the batch ``(A, K)``, distances ``(A, K)``.

    Anchors with fewer than K positives end in index 0 and an infinite distance.
    """
    rows, columns = block.positives.nonzero(as_tuple=True)
    counts = block.positives.sum(dim=1)
    slots = torch.arange(len(rows), device=rows.device) - (counts.cumsum(dim=0) - counts)[rows]
    shape = (len(counts), int(counts.max()) if len(counts) else 0)
    images, distances = columns.new_zeros(shape), block.distances.new_full(shape, torch.inf)
    images[rows, slots], distances[rows, slots] = columns, block.distances[rows, columns]
    distances, order = distances.sort(dim=1, stable=True)
    return images.gather(1, order), distances

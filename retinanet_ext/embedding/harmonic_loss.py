"""The harmonic triplet loss: triplets that mix the embeddings of two models (FaceNet, appendix).

b images per batch of this process, B of all processes, D numbers per embedding, A anchors per block, T triplets.
"""

import torch
from torch import nn

from retinanet_ext.losses.triplet import TripletCounts, selected_triplet_loss

from .joint_batch import joint_batch
from .selection import AnchorBlock, BatchAll, TripletSelection
from .training_monitor import TrainingMonitor


class MixedSelection(TripletSelection):
    """A selection among the embeddings of v2 and v1 together, less the triplets whose three are all of v1.

    Positives and negatives come from the whole set of both. A triplet of v1 alone has no gradient, because v1 is fixed.
    It is left out after the selection, so it does not change which other triplets are selected, and the mean of the
    loss does not count it. An image's embeddings by v1 and v2 are a positive pair, as those of any two images of one
    identity.
    """

    def __init__(self, selection: TripletSelection, num_trained: int):
        """
        Args:
            selection: of the triplets in the whole set.
            num_trained: the first embeddings of the set, this many, are of v2; all others are of v1.
        """
        self.selection, self.num_trained = selection, num_trained

    def triplets(self, block: AnchorBlock, margin: float) -> torch.Tensor:
        """int64 ``(T, 3)``, with at least one embedding of v2 in each."""
        triplets = self.selection.triplets(block, margin)
        return triplets[(triplets < self.num_trained).any(dim=1)]

    def num_candidates(self, block: AnchorBlock, triplets: torch.Tensor) -> torch.Tensor:
        """As the selection's, for the triplets ``(T, 3)``; semi_hard counts the pairs of v1 alone too."""
        return self.selection.num_candidates(block, triplets)

    def counts(self, block: AnchorBlock, margin: float) -> TripletCounts:
        if not isinstance(self.selection, BatchAll):
            return super().counts(block, margin)
        # A list of all triplets would not fit into memory. Here each is selected by itself, so that those of v1 alone
        # are what is selected among v1 alone.
        both, v1 = (self.selection.counts(part, margin) for part in (block, self._without_v2(block)))
        return TripletCounts(*(first - second for first, second in zip(both, v1)))

    def _without_v2(self, block: AnchorBlock) -> AnchorBlock:
        is_v1 = torch.arange(block.distances.shape[1], device=block.distances.device) >= self.num_trained
        both = is_v1[block.start : block.start + len(block.distances), None] & is_v1
        return AnchorBlock(block.distances, block.positives & both, block.negatives & both, block.start)


class HarmonicLoss(nn.Module):
    """The mean of the triplet loss over the triplets of ``MixedSelection``. It has no parameters.

    Logs what ``TrainingLoss`` logs, of the embeddings of v2, and ``distance/v1_v2``: the mean squared distance between
    the two embeddings of an image.
    """

    def __init__(self, margin: float, selection: TripletSelection):
        super().__init__()
        self.margin, self.selection = margin, selection
        self.monitor = TrainingMonitor()

    def forward(
        self, embeddings: torch.Tensor, embeddings_v1: torch.Tensor, identities: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            embeddings: ``(b, D)`` of length 1, of v2.
            embeddings_v1: ``(b, D)`` of the same images; no gradient goes there.
            identities: int64 ``(b,)``.

        Returns:
            ``loss_harmonic``, a scalar of the joint batch, the same on every process.
        """
        # Distances of close pairs need float32, whatever type the network computes in.
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        with torch.autocast(embeddings.device.type, enabled=False):
            pairs = torch.cat([embeddings.to(dtype), embeddings_v1.to(dtype)], dim=1)
            pairs, identities = joint_batch(pairs, identities)
            v2, v1 = pairs.chunk(2, dim=1)
            v1 = v1.detach()
            loss, totals = self._triplet_loss(v2, v1, identities)
        share = totals.active / totals.candidates.clamp(min=1)
        statistics = {"triplets/valid": totals.selected, "triplets/active": share}
        if len(v2):
            statistics["distance/v1_v2"] = (v2.detach() - v1).square().sum(dim=1).mean()
        self.monitor.observe(v2.detach(), identities, statistics)
        return {"loss_harmonic": loss}

    def _triplet_loss(self, v2, v1, identities):
        selection, identities = MixedSelection(self.selection, len(v2)), identities.repeat(2)

        def count(distances, start):
            return selection.counts(AnchorBlock.make(distances, identities, start), self.margin)

        return selected_triplet_loss(torch.cat([v2, v1]), count, self.margin)

"""The triplet loss of FaceNet (Schroff et al., 2015, equation 3), over triplets that are given."""

import torch


def triplet_loss(embeddings: torch.Tensor, triplets: torch.Tensor, margin: float = 0.2) -> torch.Tensor:
    """Mean over triplets of ``[ |a - p|^2 - |a - n|^2 + margin ]_+``, with squared L2 distances.

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

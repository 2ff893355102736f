"""Losses over a batch of embeddings, chosen by the config.

B images per batch (of all processes), D numbers per embedding.
"""

import torch
from torch import nn

from retinanet_ext.losses.triplet import triplet_loss
from retinanet_ext.registry import Registry

EMBEDDING_LOSS_REGISTRY = Registry("EMBEDDING_LOSS", "MODEL.EMBEDDING.LOSS.NAME")
"""Functions ``f(cfg) -> nn.Module``, chosen by MODEL.EMBEDDING.LOSS.NAME.

The module is called with embeddings ``(B, D)`` of length 1 and identities, int64 ``(B,)``. It returns a dict of scalar
losses that have a graph, and a dict of scalars without one, which are logged.
"""


class TripletLoss(nn.Module):
    """The triplet loss over all anchor-positive pairs, each with its nearest semi-hard negative.

    Called with embeddings ``(B, D)`` and identities ``(B,)``; see ``EMBEDDING_LOSS_REGISTRY``.
    """

    def __init__(self, margin: float):
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: torch.Tensor, identities: torch.Tensor):
        distances = torch.cdist(embeddings.detach(), embeddings.detach()).square()
        same = identities[:, None] == identities[None, :]
        anchors, positives = (same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)).nonzero(as_tuple=True)
        distance = distances[anchors, positives][:, None]
        legal = ~same[anchors] & (distances[anchors] > distance) & (distances[anchors] < distance + self.margin)
        nearest = distances[anchors].masked_fill(~legal, float("inf")).argmin(dim=1)
        found = legal.any(dim=1)
        triplets = torch.stack([anchors, positives, nearest], dim=1)[found]
        loss = triplet_loss(embeddings, triplets, self.margin)
        return {"loss_triplet": loss}, {"triplets/valid": len(triplets)}


@EMBEDDING_LOSS_REGISTRY.register(name="triplet")
def build_triplet_loss(cfg) -> TripletLoss:
    return TripletLoss(cfg.MODEL.EMBEDDING.LOSS.MARGIN)

"""Losses over a batch of embeddings, chosen by the config.

B images per batch (of all processes), D numbers per embedding.
"""

from collections.abc import Callable

import torch
from torch import nn

from retinanet_ext.losses.triplet import selected_triplet_loss
from retinanet_ext.registry import Registry

from .selection import TRIPLET_SELECTION_REGISTRY, AnchorBlock, TripletSelection

EMBEDDING_LOSS_REGISTRY = Registry("EMBEDDING_LOSS", "MODEL.EMBEDDING.LOSS.NAME")
"""Functions ``f(cfg) -> nn.Module``, chosen by MODEL.EMBEDDING.LOSS.NAME and MODEL.EMBEDDING.WARMUP.LOSS.

The module is called with embeddings ``(B, D)`` of length 1 and identities, int64 ``(B,)``. It returns a dict of scalar
losses that have a graph, and a dict of scalars without one, which are logged. B may be 0. Statistics named
``triplets/...`` are explained in `training_loss.py`.
"""


class TripletLoss(nn.Module):
    """The triplet loss over triplets selected within the batch: the mean over the selected triplets.

    Called with embeddings ``(B, D)`` and identities ``(B,)``; see ``EMBEDDING_LOSS_REGISTRY``.
    """

    def __init__(self, margin: float, selection: TripletSelection):
        super().__init__()
        self.margin, self.selection = margin, selection

    def forward(self, embeddings: torch.Tensor, identities: torch.Tensor):
        def count(distances, start):
            return self.selection.counts(AnchorBlock.make(distances, identities, start), self.margin)

        loss, totals = selected_triplet_loss(embeddings, count, self.margin)
        share = totals.active / totals.candidates.clamp(min=1)
        return {"loss_triplet": loss}, {"triplets/valid": totals.selected, "triplets/active": share}


class IdentitySoftmax(nn.Module):
    """Classification of the identities of the training data, by a loss of pytorch-metric-learning.

    Its weights, a vector per identity, are parameters of this module. Called with embeddings ``(B, D)`` and identities
    ``(B,)``, in 0..NUM_IDENTITIES - 1; see ``EMBEDDING_LOSS_REGISTRY``.
    """

    def __init__(self, name: str, classifier: nn.Module, num_identities: int):
        """
        Args:
            name: of the loss in the returned dict.
            classifier: called with embeddings and identities; returns the mean loss, a scalar.
            num_identities: number of classes.
        """
        super().__init__()
        self.name, self.classifier, self.num_identities = name, classifier, num_identities

    def forward(self, embeddings: torch.Tensor, identities: torch.Tensor):
        if not len(identities):
            return {self.name: zero_loss(self, embeddings)}, {}
        if int(identities.max()) >= self.num_identities or int(identities.min()) < 0:
            raise ValueError(
                f"identities {int(identities.min())} to {int(identities.max())} are in the batch, but "
                f"MODEL.EMBEDDING.NUM_IDENTITIES is {self.num_identities}: legal are 0 to {self.num_identities - 1}. "
                "Set it to the number of identities in DATASETS.TRAIN, or let load_config fill it in."
            )
        return {self.name: self.classifier(embeddings, identities)}, {}


def zero_loss(module: nn.Module, embeddings: torch.Tensor) -> torch.Tensor:
    """A scalar 0 that gives a gradient of 0 to embeddings ``(B, D)`` and to all parameters of ``module``."""
    return sum((parameter.sum() * 0 for parameter in module.parameters()), embeddings.sum() * 0)


@EMBEDDING_LOSS_REGISTRY.register(name="triplet")
def build_triplet_loss(cfg) -> TripletLoss:
    loss = cfg.MODEL.EMBEDDING.LOSS
    return TripletLoss(loss.MARGIN, TRIPLET_SELECTION_REGISTRY.get(loss.SELECTION)())


@EMBEDDING_LOSS_REGISTRY.register(name="softmax")
def build_softmax_loss(cfg) -> IdentitySoftmax:
    """Softmax over the cosines between an embedding and the vector of each identity, times LOSS.SCALE."""
    scale = cfg.MODEL.EMBEDDING.LOSS.SCALE
    return _classification(cfg, "softmax", lambda losses, *size: losses.NormalizedSoftmaxLoss(*size, 1 / scale))


@EMBEDDING_LOSS_REGISTRY.register(name="cosface")
def build_cosface_loss(cfg) -> IdentitySoftmax:
    """The same with LOSS.COSINE_MARGIN subtracted from the cosine of the true identity (Wang et al., CosFace, 2018)."""
    margin, scale = cfg.MODEL.EMBEDDING.LOSS.COSINE_MARGIN, cfg.MODEL.EMBEDDING.LOSS.SCALE
    return _classification(cfg, "cosface", lambda losses, *size: losses.CosFaceLoss(*size, margin=margin, scale=scale))


def _classification(cfg, name: str, make: Callable[..., nn.Module]) -> IdentitySoftmax:
    """``make`` gets the module of losses, the number of identities and D.

    Raises:
        ModuleNotFoundError: pytorch-metric-learning is not installed.
        ValueError: the number of identities is not known.
    """
    try:
        from pytorch_metric_learning import losses
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the loss {name!r} of MODEL.EMBEDDING needs pytorch-metric-learning ({error}); install it with `pip "
            "install 'retinanet_ext[embedding]'`, or set MODEL.EMBEDDING.LOSS.NAME triplet and no WARMUP.LOSS"
        ) from error
    embedding = cfg.MODEL.EMBEDDING
    if embedding.NUM_IDENTITIES < 1:
        raise ValueError(
            f"MODEL.EMBEDDING.NUM_IDENTITIES is {embedding.NUM_IDENTITIES}, but the loss {name!r} classifies the "
            "identities of the training data; set it to their number (load_config fills it in from DATASETS.TRAIN)"
        )
    classifier = make(losses, embedding.NUM_IDENTITIES, embedding.DIM)
    return IdentitySoftmax(f"loss_{name}", classifier, embedding.NUM_IDENTITIES)

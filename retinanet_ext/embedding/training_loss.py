"""The loss of a training step of embeddings: joint batch, warm-up by another loss, statistics, alarms.

B images per batch of all processes, D numbers per embedding.
"""

import torch
from torch import nn

from retinanet_ext.d2 import get_event_storage, has_event_storage
from retinanet_ext.registry import check_registered

from .embedding_losses import EMBEDDING_LOSS_REGISTRY, zero_loss
from .joint_batch import joint_batch
from .training_monitor import TrainingMonitor


class TrainingLoss(nn.Module):
    """A loss over the batch of all processes, which logs what it sees into the event storage, if there is one.

    See :class:`TrainingMonitor` for the names and meanings of what is logged.
    """

    def __init__(self, main: nn.Module, warmup: nn.Module | None = None, warmup_iters: int = 0):
        """
        Args:
            main: see ``EMBEDDING_LOSS_REGISTRY``.
            warmup: the loss of the first ``warmup_iters`` iterations, if any.
            warmup_iters: iterations, counted by the event storage, so that a resumed run goes on where it was.
        """
        super().__init__()
        self.main, self.warmup, self.warmup_iters = main, warmup, warmup_iters
        self.monitor = TrainingMonitor()

    def forward(
        self, embeddings: torch.Tensor, identities: torch.Tensor, *, joint: bool = True
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            embeddings: ``(b, D)`` of length 1, those of this process.
            identities: int64 ``(b,)``.
            joint: False: take the batch of this process alone, and do not communicate.

        Returns:
            Scalar losses of the joint batch, the same on every process. With a warm-up those of both losses by name,
            one of them 0, so that every parameter has a gradient in every step.

        Raises:
            RuntimeError: a warm-up is set, but there is no event storage to tell the iteration.
        """
        # The network may compute in bfloat16; distances of close pairs need float32.
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(dtype)
            if joint:
                embeddings, identities = joint_batch(embeddings, identities)
            active, waiting = self._active_and_waiting()
            losses, statistics = active(embeddings, identities)
            self.monitor.observe(embeddings.detach(), identities, statistics)
            if waiting is not None:
                losses |= self._zeros(waiting, embeddings, identities)
        return losses

    def _active_and_waiting(self) -> tuple[nn.Module, nn.Module | None]:
        if self.warmup is None:
            return self.main, None
        if not has_event_storage():
            raise RuntimeError(
                "MODEL.EMBEDDING.WARMUP.LOSS is set, but no event storage is active to tell the iteration; call the "
                "model inside `with EventStorage(start_iter):`, as a trainer does"
            )
        warming_up = get_event_storage().iter < self.warmup_iters
        return (self.warmup, self.main) if warming_up else (self.main, self.warmup)

    @staticmethod
    def _zeros(loss: nn.Module, embeddings: torch.Tensor, identities: torch.Tensor) -> dict[str, torch.Tensor]:
        """The losses of a batch without images, by name, with a gradient of 0 for all parameters of ``loss``."""
        losses, _ = loss(embeddings[:0], identities[:0])
        return {name: value * 0 + zero_loss(loss, embeddings[:0]) for name, value in losses.items()}


def build_training_loss(cfg) -> TrainingLoss:
    """The loss that MODEL.EMBEDDING.LOSS and MODEL.EMBEDDING.WARMUP ask for.

    Raises:
        KeyError: the name of a loss or selection is not registered.
        ValueError: the warm-up is by the loss itself.
    """
    name, warmup = cfg.MODEL.EMBEDDING.LOSS.NAME, cfg.MODEL.EMBEDDING.WARMUP.LOSS
    main = EMBEDDING_LOSS_REGISTRY.get(name)(cfg)
    if not warmup:
        return TrainingLoss(main)
    check_registered("MODEL.EMBEDDING.WARMUP.LOSS", warmup, EMBEDDING_LOSS_REGISTRY)
    if warmup == name:
        raise ValueError(
            f"MODEL.EMBEDDING.WARMUP.LOSS and MODEL.EMBEDDING.LOSS.NAME are both {name!r}; leave WARMUP.LOSS empty, or "
            "set it to another loss, such as softmax"
        )
    return TrainingLoss(main, EMBEDDING_LOSS_REGISTRY.get(warmup)(cfg), cfg.MODEL.EMBEDDING.WARMUP.ITERS)

"""Normalisers: what the summed losses are divided by.

A normaliser turns the number of foreground anchors of each image, ``(N,)``, into the weight of each image's loss
sum, ``(N,)``: the loss of the batch is ``(weight * sum_per_image).sum()``. The average of this loss over the processes
of a distributed run is the loss of the joint batch.
"""

import torch
import torch.distributed as dist
from torch import nn


def num_processes() -> int:
    """How many processes work on the job; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class EMANormalizer(nn.Module):
    """Divides by a moving average of the foreground anchors in a batch, as Detectron2's RetinaNet does.

    With few images per batch, the count itself varies too much. Unlike Detectron2's, the average is a buffer, saved
    and resumed with the model, and it counts the batches of all processes together.
    """

    def __init__(self, *, momentum: float = 0.9, initial: float = 100.0):
        """
        Args:
            momentum: share of the old average kept by an update.
            initial: the average before the first update, in anchors; any number that is not too small.
        """
        super().__init__()
        self.momentum = momentum
        self.register_buffer("average", torch.tensor(float(initial)))

    def forward(self, num_foreground: torch.Tensor) -> torch.Tensor:
        """Weights ``(N,)`` for foreground counts ``(N,)``; updates the average."""
        total = num_foreground.sum().to(self.average.dtype)
        processes = num_processes()
        if processes > 1:
            dist.all_reduce(total)
        self.average.mul_(self.momentum).add_(total.clamp(min=1), alpha=1 - self.momentum)
        # The processes' losses will be averaged, but the joint batch needs their sum.
        return (processes / self.average).expand(len(num_foreground))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # Detectron2's checkpoints lack this buffer: keep the initial value, and do not report the buffer as missing.
        state_dict.setdefault(prefix + "average", self.average)
        super()._load_from_state_dict(state_dict, prefix, *args)


class ForegroundNormalizer(nn.Module):
    """Divides each image's loss by its own foreground anchors (paper, section 4.1), and averages the images."""

    def forward(self, num_foreground: torch.Tensor) -> torch.Tensor:
        """Weights ``(N,)`` for foreground counts ``(N,)``."""
        return 1 / (num_foreground.clamp(min=1) * max(1, len(num_foreground)))


NORMALIZERS = {"ema": EMANormalizer, "foreground": ForegroundNormalizer}

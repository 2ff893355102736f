"""Running statistics of batch norms, averaged over the processes of a job.

In training, each process normalises with the statistics of its own images, and so each keeps its own running averages
of them, which only inference uses.
"""

import torch
import torch.distributed as dist
from torch import nn

from retinanet_ext.d2 import hooks


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Set every floating-point buffer of ``model`` to its mean over all processes, in place.

    A buffer that is the same in all processes, such as a frozen statistic, keeps its exact value. All processes call
    this together; in a job of one process it does nothing.
    """
    average_over_processes([buffer for buffer in model.buffers() if buffer.is_floating_point()])


@torch.no_grad()
def average_over_processes(tensors: list[torch.Tensor]) -> None:
    """Set floating-point tensors of any shapes to their means over all processes, in place. All call this together."""
    if not tensors or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    # In float64 the sum of equal float32 values, divided by their number, is exactly that value.
    flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(mean.view_as(tensor))


class AverageBuffersHook(hooks.HookBase):
    """Averages the model's buffers before a checkpoint is saved. Register it before the checkpointer, on every process.

    Only the main process has the checkpointer, but all processes take part in the average.
    """

    def __init__(self, period: int) -> None:
        """``period``: that of the checkpointer, which saves after the last iteration too."""
        self._period = period

    def after_step(self) -> None:
        iterations_done = self.trainer.iter + 1
        is_last = iterations_done >= self.trainer.max_iter
        if is_last or (self._period > 0 and iterations_done % self._period == 0):
            average_buffers(self.trainer.model)

"""How the processes of a job share a batch, and the model below the wrapper that they share it with."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def images_per_process(images_per_batch: int, processes: int) -> int:
    """The share of a batch that each process loads.

    Args:
        images_per_batch: ``SOLVER.IMS_PER_BATCH``, over all processes.
        processes: how many processes share it.

    Raises:
        ValueError: the batch cannot be shared evenly.
    """
    if images_per_batch < 1 or images_per_batch % processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {images_per_batch}; it must be a positive multiple of the number of processes, "
            f"{processes}"
        )
    return images_per_batch // processes


def bare_model(model: nn.Module) -> nn.Module:
    """``model`` without the wrapper that exchanges gradients between processes, if it has one."""
    return model.module if isinstance(model, DistributedDataParallel) else model

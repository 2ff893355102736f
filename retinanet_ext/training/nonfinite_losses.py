"""What is said when a loss is not finite: which one, on which process, and of which images."""

import math
from collections.abc import Mapping, Sequence

import torch.distributed as dist

from retinanet_ext.machine.processes import num_processes


def nonfinite_error(losses_by_rank: Sequence[Mapping[str, float]], batch: Sequence[dict]) -> FloatingPointError:
    """The error to raise. All processes call this together.

    Args:
        losses_by_rank: the losses of every process, the same on all; at least one is infinite or NaN.
        batch: the inputs of this process; where they are dicts, their ``file_name`` is for the message.

    Returns:
        An error that names the losses, their images, and the usual causes.
    """
    images_by_rank = [[_name(inputs) for inputs in batch]]
    if num_processes() > 1:
        images_by_rank *= num_processes()
        dist.all_gather_object(images_by_rank, images_by_rank[0])
    found = []
    for rank, losses in enumerate(losses_by_rank):
        bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if bad:
            where = f"rank {rank}: " if len(losses_by_rank) > 1 else ""
            named = ", ".join(f"{name} = {value}" for name, value in bad.items())
            images = ", ".join(images_by_rank[rank])
            found.append(f"{where}{named} (all: {dict(losses)}). Images in the batch: {images}")
    return FloatingPointError(
        f"loss is not finite: {'. '.join(found)}. The weights are those before this step. Usual causes, likeliest "
        "first: SOLVER.BASE_LR too high for SOLVER.IMS_PER_BATCH (halve both together), too short a "
        "SOLVER.WARMUP_ITERS, no SOLVER.CLIP_GRADIENTS.ENABLED, MODEL.WEIGHTS that do not fit, a broken image or box "
        "among those named."
    )


def _name(inputs: object) -> str:
    return str(inputs.get("file_name", "(no file name)")) if isinstance(inputs, Mapping) else "(no file name)"

"""The error for a loss that is not finite. It names the loss, the process and the images."""

import math
from collections.abc import Mapping, Sequence

import torch.distributed as dist


def nonfinite_error(losses_by_rank: Sequence[Mapping[str, float]], batch: Sequence[dict]) -> FloatingPointError:
    """Make the error to raise. All processes call this together.

    Args:
        losses_by_rank: the losses of every process; all processes pass the same. At least one is infinite or NaN.
        batch: the inputs of this process. If they are dicts, the message shows their ``file_name``.

    Returns:
        An error that names the losses, their images, and the usual causes.
    """
    images_by_rank = [[_name(inputs) for inputs in batch]]
    if len(losses_by_rank) > 1:
        images_by_rank *= len(losses_by_rank)
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
        f"loss is not finite: {'. '.join(found)}. The weights are those before this step. Usual causes, most likely "
        "first: SOLVER.BASE_LR is too high for SOLVER.IMS_PER_BATCH (a batch of half the size needs half of it), "
        "SOLVER.WARMUP_ITERS is too short, SOLVER.CLIP_GRADIENTS.ENABLED is False, MODEL.WEIGHTS does not fit, an "
        "image or box among those named is broken."
    )


def _name(inputs: object) -> str:
    return str(inputs.get("file_name", "(no file name)")) if isinstance(inputs, Mapping) else "(no file name)"

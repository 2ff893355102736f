"""Stops a training run at the first loss that is not finite, and says where it came from."""

import math
from collections.abc import Mapping, Sequence

from retinanet_ext.d2 import comm


def refuse_losses_that_are_not_finite(losses_by_rank: Sequence[Mapping[str, float]], batch: Sequence[dict]) -> None:
    """Raise if a loss of any process is infinite or NaN.

    All processes call this together, and then all raise: none is left waiting for another.

    Args:
        losses_by_rank: the losses of every process, the same on all.
        batch: the input dicts of this process; their ``file_name`` is for the message.

    Raises:
        FloatingPointError: names the losses, the images that they are of, and the usual causes.
    """
    bad = [rank for rank, losses in enumerate(losses_by_rank) if not all(map(math.isfinite, losses.values()))]
    if not bad:
        return
    # Asked for only now: all processes know all losses, so all come here.
    images_by_rank = comm.all_gather([str(x.get("file_name", "(no file name)")) for x in batch])
    found = []
    for rank in bad:
        losses = dict(losses_by_rank[rank])
        named = ", ".join(f"{name} = {value}" for name, value in losses.items() if not math.isfinite(value))
        where = f"rank {rank}: " if len(losses_by_rank) > 1 else ""
        found.append(f"{where}{named} (all: {losses}). Images in the batch: {', '.join(images_by_rank[rank])}")
    raise FloatingPointError(
        f"loss is not finite: {'. '.join(found)}. The weights are those before this step. Usual causes, likeliest "
        "first: SOLVER.BASE_LR too high for SOLVER.IMS_PER_BATCH (halve both together), too short a "
        "SOLVER.WARMUP_ITERS, no SOLVER.CLIP_GRADIENTS.ENABLED, MODEL.WEIGHTS that do not fit, a broken image or box "
        "among those named."
    )

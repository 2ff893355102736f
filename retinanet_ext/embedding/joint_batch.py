"""The batch of all processes, so that negatives are found in all of it.

B images per batch of all processes, b of this process, D numbers per embedding.
"""

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable


def joint_batch(embeddings: torch.Tensor, identities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the embeddings of all processes, with gradient, and their identities.

    All processes call this together, also one without images. The numbers of images may differ. The loss must be a
    function of the whole result that is the same on every process. The gradients of the network's parameters, averaged
    over the processes as by ``DistributedDataParallel``, are then those of one process with the joint batch, and so are
    those of the loss's own parameters.

    Args:
        embeddings: ``(b, D)``.
        identities: int64 ``(b,)``.

    Returns:
        Embeddings ``(B, D)`` and identities ``(B,)``, ordered by rank.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return embeddings, identities
    sizes = [identities.new_zeros(1) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, identities.new_full((1,), len(identities)))
    sizes = torch.cat(sizes).tolist()
    return _GatherEmbeddings.apply(embeddings, sizes), _gather_rows(identities, sizes)


def _gather_rows(rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """The rows ``(size, ...)`` of all processes, ``(sum of sizes, ...)``. Padded, because collectives need one size."""
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes)])


class _GatherEmbeddings(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, sizes):
        ctx.start, ctx.sizes = sum(sizes[: dist.get_rank()]), sizes
        return _gather_rows(embeddings.contiguous(), sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        # Every process has the whole gradient. Each passes on the part of its own images; the average over the
        # processes divides their sum by the number of processes, so multiply by it here.
        own = gradient[ctx.start : ctx.start + ctx.sizes[dist.get_rank()]]
        return own * len(ctx.sizes), None

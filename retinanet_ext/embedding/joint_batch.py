"""The embeddings of all processes as one batch, so that pairs are formed over all of them."""

import torch
import torch.distributed as dist


def joint_batch(embeddings: torch.Tensor, identities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings ``(B, D)`` and identities, int64 ``(B,)``, of all processes, in the order of the ranks.

    A loss of the joint batch, whose gradients are then averaged over the processes, has the gradient of one process
    with that batch. Processes may have different numbers of rows, or none. Every process must call this in every step.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return embeddings, identities
    count = torch.tensor([len(embeddings)], device=embeddings.device)
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    counts = torch.cat(counts).tolist()
    return _JointRows.apply(embeddings, counts), _gathered(identities, counts)


class _JointRows(torch.autograd.Function):
    """The rows of all processes; backward, those of this process, for a loss that all processes compute alike."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        ctx.counts = counts
        return _gathered(rows, counts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        # Gradients are averaged over the processes, and each row's gradient exists in one of them.
        return gradient.split(ctx.counts)[dist.get_rank()] * len(ctx.counts), None


def _gathered(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts)])

"""One process of a job that computes the losses of the region proposal network, started by ``test_rpn_distributed.py``.

python -m tests.instance.rpn_worker RANK WORLD_SIZE OUTPUT
"""

import sys

import torch
import torch.distributed as dist

from tests.instance.test_rpn import BOX, batch, build

# Boxes of each image, for rank 0 and for rank 1.
SHARES = {
    "sampled": ([BOX, []], [[[0.0, 0.0, 30.0, 30.0]]]),
    "all": ([BOX, BOX], [[]]),
    "nothing": ([BOX, []], []),
    "all_nothing": ([BOX], []),
}


def run(rank: int, world_size: int, case: str) -> dict:
    """Losses and gradients averaged over the processes; a single process takes the images of all ranks."""
    name = "MODEL.RPN.CLS_LOSS"
    # A sample that takes every anchor does not depend on the draw.
    overrides = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 1000, "MODEL.RPN.POSITIVE_FRACTION", 1.0]
    if case.startswith("all"):
        overrides = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 0, f"{name}.NAME", "focal"]
    model, shares = build(*overrides), SHARES[case]
    boxes = [*shares[0], *shares[1]]
    images, features, targets = batch(torch.Generator().manual_seed(0), *boxes)
    start, end = (0, len(boxes)) if world_size == 1 else ((0, len(shares[0])), (len(shares[0]), len(boxes)))[rank]
    images.image_sizes = images.image_sizes[start:end]
    features = {"res4": features["res4"].detach()[start:end]}
    _, losses = model(images, features, targets[start:end])
    sum(losses.values()).backward()
    values = {key: loss.detach() for key, loss in losses.items()}
    values.update((key, parameter.grad) for key, parameter in model.named_parameters())
    for value in values.values():
        if world_size > 1:
            dist.all_reduce(value)
        value /= world_size
    return values


if __name__ == "__main__":
    rank, world_size, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    # The processes meet by a file: a port that was free a moment ago may be taken.
    dist.init_process_group("gloo", f"file://{output}.meeting", rank=rank, world_size=world_size)
    results = {case: run(rank, world_size, case) for case in SHARES}
    if rank == 0:
        torch.save(results, output)
    dist.destroy_process_group()

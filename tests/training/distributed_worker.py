"""One process of a distributed training step, started by ``test_distributed.py``.

python -m tests.training.distributed_worker RANK WORLD_SIZE PORT OUTPUT CASE
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from retinanet_ext.d2 import EventStorage, build_model, comm, get_event_storage
from retinanet_ext.training.step import TrainStep
from tests.builders import batch, small_config

STEPS = 2


def images(case: str) -> list[dict]:
    """The joint batch. In the case ``empty``, the images of rank 1 (the last two) have no objects; in the cases
    ``nothing`` and ``accumulated_nothing``, rank 1 has no images; in ``accumulated_less`` it has one.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = [(96, 96)] * 2
    if case in ("nothing", "accumulated_nothing"):
        return batch(generator, *sizes, num_objects=3)
    if case == "accumulated_less":
        return batch(generator, *sizes, num_objects=3) + batch(generator, sizes[0], num_objects=1)
    return batch(generator, *sizes, num_objects=3) + batch(generator, *sizes, num_objects=0 if case == "empty" else 1)


def train_plainly(model, share: list[dict], optimizer, world_size: int) -> list:
    history = []
    for _ in range(STEPS):
        losses = model(share)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        values = torch.stack([loss.detach() for loss in losses.values()])
        if world_size > 1:
            dist.all_reduce(values)
        history.append((values / world_size).tolist())
    return history


def train_in_micro_batches(model, share: list[dict], optimizer, world_size: int) -> list:
    """Two processes take one micro-batch per image; a single process takes all images as one batch."""
    accumulate = 2 if world_size > 1 else 1
    step = TrainStep(model, [share] * STEPS, optimizer, storage=get_event_storage, accumulate=accumulate)
    history = []
    with EventStorage(0) as storage:
        for _ in range(STEPS):
            step.run_step()
            if comm.is_main_process():
                history.append([storage.latest()[name][0] for name in ("loss_cls", "loss_box_reg")])
    return history


def run(rank: int, world_size: int, case: str) -> dict:
    """Train for STEPS on this rank's share. Return losses averaged over ranks, the last gradients, and buffers."""
    torch.manual_seed(0)
    model = build_model(small_config("MODEL.RETINANET.NORMALIZER", "foreground" if case == "foreground" else "ema"))
    if world_size > 1:
        model = DistributedDataParallel(model, broadcast_buffers=False)
    share = images(case)[rank * 4 // world_size : (rank + 1) * 4 // world_size]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    train = train_in_micro_batches if case.startswith("accumulated") else train_plainly
    history = train(model, share, optimizer, world_size)
    bare = model.module if world_size > 1 else model
    gradients = {name: p.grad for name, p in bare.named_parameters() if p.grad is not None}
    buffers = {name: b for name, b in bare.state_dict().items() if "normalizer" in name}
    return {"losses": history, "gradients": gradients, "buffers": buffers}


if __name__ == "__main__":
    rank, world_size, port, output, case = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    comm.create_local_process_group(world_size)
    result = run(rank, world_size, case)
    if rank == 0:
        torch.save(result, output)
    dist.destroy_process_group()

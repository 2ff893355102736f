"""One process of a distributed step of a model with masks and keypoints, started by ``test_two_stage_distributed.py``.

python -m tests.instance.two_stage_worker RANK FOLDER CASE
"""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from retinanet_ext import d2
from retinanet_ext.training.step import TrainStep
from tests.instance.tiny_rcnn import one_stage_config, tame, two_stage_batch, two_stage_config

STEPS = 2
# Samples of all anchors and all RoIs: which are drawn does not depend on the number of processes.
OPTS = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", "10000", "MODEL.RPN.POSITIVE_FRACTION", "1.0"]
OPTS += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "1000", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0"]
BRANCHES = ["MODEL.MASK_ON", "True", "MODEL.KEYPOINT_ON", "True"]
EMBEDDING = ["MODEL.EMBEDDING_ON", "True", "MODEL.EMBEDDING.DIM", "6", "MODEL.ROI_EMBEDDING_HEAD.CONV_DIM", "8"]


def images(case: str) -> list[list[dict]]:
    """The images of both ranks: with 1 and 4 objects; or the second rank has no objects, or no images."""
    first = two_stage_batch((96, 96), num_objects=1) + two_stage_batch((96, 96), num_objects=3, seed=1)
    for inputs in first:  # no objects have none
        inputs["instances"].gt_identities = torch.arange(len(inputs["instances"]))
    if "nothing" in case:
        return [first, []]
    return [first, two_stage_batch((96, 96), (96, 96), num_objects=0 if "empty" in case else 4, seed=2)]


def build(case: str):
    """The model of a case: one stage, with or without embeddings, or two stages on C4 or FPN."""
    if case.startswith("embeddings"):
        return d2.build_model(one_stage_config(*OPTS, *BRANCHES, *EMBEDDING))
    if case.startswith("one_stage"):
        return d2.build_model(one_stage_config(*OPTS, *BRANCHES))
    form = "C4" if case.startswith("c4") else "FPN"
    model = d2.build_model(two_stage_config(form, *OPTS, *(BRANCHES[:2] if form == "C4" else BRANCHES)))
    tame(model)
    return model


def run(rank: int, world_size: int, case: str) -> dict:
    """Train for STEPS on this rank's share. Return the losses averaged over the ranks, and the last gradients."""
    torch.manual_seed(0)
    model = build(case)
    share = images(case)[rank] if world_size > 1 else sum(images(case), [])
    accumulate = 2 if "accumulated" in case else 1
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if world_size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    step = TrainStep(wrapped, [share] * STEPS, optimizer, storage=d2.get_event_storage, accumulate=accumulate)
    history = []
    with d2.EventStorage(0) as storage:
        for _ in range(STEPS):
            step.run_step()
            latest = storage.latest()
            history.append({name: latest[name][0] for name in sorted(latest) if "loss" in name})
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"losses": history, "gradients": gradients}


if __name__ == "__main__":
    rank, folder, case = int(sys.argv[1]), *sys.argv[2:4]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    d2.comm.create_local_process_group(2)
    result = run(rank, 2, case)
    if rank == 0:
        torch.save(result, f"{folder}/result.pth")
    dist.destroy_process_group()

"""One process of a distributed step of FaceNet, started by ``test_joint_batch.py``.

python -m tests.embedding.joint_batch_worker RANK FOLDER CASE...
"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from retinanet_ext import d2
from retinanet_ext.embedding.embedding_losses import EMBEDDING_LOSS_REGISTRY
from retinanet_ext.embedding.harmonic import FrozenV1
from retinanet_ext.embedding.pooling import l2_normalize
from retinanet_ext.embedding.training_loss import TrainingLoss
from retinanet_ext.training.step import TrainStep
from tests.embedding.tiny_facenet import tiny_batches, tiny_config

STEPS = 2
HARMONIC = ["MODEL.META_ARCHITECTURE", "HarmonicFaceNet", "MODEL.EMBEDDING.HARMONIC.STAGE", "network"]
OPTS = {
    "semi_hard": [],
    "batch_hard": ["MODEL.EMBEDDING.LOSS.SELECTION", "batch_hard"],
    "batch_all": ["MODEL.EMBEDDING.LOSS.SELECTION", "batch_all"],
    "cosface": ["MODEL.EMBEDDING.LOSS.NAME", "cosface"],
    "harmonic": [*HARMONIC, "MODEL.EMBEDDING.LOSS.SELECTION", "batch_all"],
    "warmup": ["MODEL.EMBEDDING.WARMUP.LOSS", "softmax", "MODEL.EMBEDDING.WARMUP.ITERS", "1"],
}


def shares(case: str) -> list[list[dict]]:
    """The images of both ranks. "uneven": 4 and 11; "empty": 0 and 15; else each rank has two or three identities."""
    (images,) = tiny_batches(1)
    split = {"uneven": 4, "empty": 0}.get(case.partition("-")[2], 6)
    return [images[:split], images[split:]]


class Pixels(nn.Module):
    """A linear embedding of pixels, which takes batches without images."""

    def __init__(self, cfg):
        super().__init__()
        self.projection = nn.Linear(3 * 12 * 12, 8)
        self.loss = TrainingLoss(EMBEDDING_LOSS_REGISTRY.get(cfg.MODEL.EMBEDDING.LOSS.NAME)(cfg))

    def forward(self, batch):
        pixels = torch.cat([torch.zeros(0, 432), *(inputs["image"].reshape(1, -1) / 255 for inputs in batch)])
        identities = torch.tensor([inputs["identity"] for inputs in batch], dtype=torch.int64)
        return self.loss(l2_normalize(self.projection(pixels)), identities)


def run(rank: int, world_size: int, case: str) -> dict:
    """Train for STEPS on this rank's share. Return what is logged, and the gradients of the first and last step."""
    torch.manual_seed(0)
    cfg = tiny_config(*OPTS[case.partition("-")[0]])
    model = Pixels(cfg) if case.endswith("empty") else d2.build_model(cfg)
    if case.startswith("harmonic"):
        model.attach_v1(FrozenV1(d2.build_model(tiny_config()), size=(12, 12), image_format="BGR", input_format="BGR"))
    share = shares(case)[rank] if world_size > 1 else sum(shares(case), [])
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if world_size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    step = TrainStep(wrapped, [share] * STEPS, optimizer, storage=d2.get_event_storage)
    history, gradients = [], []
    with d2.EventStorage(0) as storage:
        for storage.iter in range(STEPS):
            step.run_step()
            latest = storage.latest().items()
            history.append({name: value for name, (value, _) in sorted(latest) if "time" not in name})
            gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    return {"history": history, "gradients": gradients}


if __name__ == "__main__":
    rank, folder, *cases = int(sys.argv[1]), *sys.argv[2:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    d2.comm.create_local_process_group(2)
    torch.save({case: run(rank, 2, case) for case in cases}, f"{folder}/result_{rank}.pth")
    dist.destroy_process_group()

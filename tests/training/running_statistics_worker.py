"""One of two processes of a run with batch norms, started by ``test_running_statistics.py``.

python -m tests.training.running_statistics_worker RANK PORT SHAPES FOLDER
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from retinanet_ext import d2
from retinanet_ext.training import trainer as trainer_module
from retinanet_ext.training.launch import _leave
from retinanet_ext.training.trainer import Trainer
from tests.builders import shapes_config


def train_on_cpu_with_detectron2() -> None:
    """Lift Detectron2's limits: it trains several processes on GPUs only."""
    from detectron2.engine import defaults

    defaults.create_ddp_model = lambda model, **_: torch.nn.parallel.DistributedDataParallel(
        model, broadcast_buffers=False
    )
    trainer_module.check_processes = lambda cfg: None


class Recording(Trainer):
    """Keeps the buffers of each evaluation."""

    evaluated = []
    inference_model = staticmethod(trainer_module.inference_model)

    @classmethod
    def note(cls, cfg, model):
        bare = model.module if hasattr(model, "module") else model
        cls.evaluated.append({name: buffer.clone() for name, buffer in bare.named_buffers()})
        return cls.inference_model(cfg, model)


def main(rank: int, port: str, shapes: str, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    d2.comm.create_local_process_group(2)
    if d2.ENGINE == "detectron2":
        train_on_cpu_with_detectron2()
    torch.manual_seed(rank)
    # Evaluations after steps 2, 4 and 5; checkpoints after 3 and 5.
    opts = ["TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.MAX_ITER", "5"]
    opts += ["SOLVER.IMS_PER_BATCH", "4"]  # a batch norm needs two values a channel, and p7 has one an image
    cfg = shapes_config(Path(shapes), folder, *opts)
    trainer_module.inference_model = Recording.note
    trainer = Recording(cfg)
    before_saving = []
    record = d2.hooks.CallbackHook(
        after_step=lambda t: before_saving.append({n: b.clone() for n, b in t.model.module.named_buffers()})
    )
    trainer._hooks.insert(2, record)
    record.trainer = trainer
    trainer.train()
    torch.save({"evaluated": Recording.evaluated, "local": before_saving}, f"{folder}/{rank}.pth")
    # Threads of a group that something still refers to abort the process at its end.
    _leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])

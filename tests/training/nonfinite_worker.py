"""One of two processes whose rank 1 alone gets images with NaN, started by ``test_nonfinite_guard.py``.

python -m tests.training.nonfinite_worker RANK PORT SHAPES FOLDER
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from retinanet_ext.d2 import comm
from retinanet_ext.training.trainer import Trainer
from tests.builders import shapes_config
from tests.training.test_nonfinite_guard import put_nan_into


def main(rank: int, port: str, shapes: str, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    opts = ["DATASETS.TEST", "()", "SOLVER.MAX_ITER", "6", "SOLVER.IMS_PER_BATCH", "4", "SEED", "0"]
    opts += ["SOLVER.NONFINITE.POLICY", "skip", "SOLVER.NONFINITE.BUDGET", "1"]
    cfg = shapes_config(Path(shapes), folder, *opts)
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    if rank == 1:
        put_nan_into(trainer, iterations=(1, 3))
    report = {"error": ""}
    try:
        trainer.train()
    except FloatingPointError as error:
        report["error"] = str(error)
    report |= {"iteration": trainer.iter, "weights": trainer.model.module.state_dict()}
    torch.save(report, Path(folder) / f"rank{rank}.pth")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])

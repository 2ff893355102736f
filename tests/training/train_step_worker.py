"""One of two processes, started by ``test_step.py``; in the second step the loss of rank 1 is NaN.

python -m tests.training.train_step_worker RANK PORT FOLDER
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from retinanet_ext.d2 import EventStorage, comm, get_event_storage
from retinanet_ext.training.step import TrainStep
from tests.training.test_step import Linear


def main(rank: int, port: str, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    rows = [[3.0 + 2 * rank, 4.0 + 2 * rank], [float("nan") if rank == 1 else 1.0, 1.0]]
    batches = [[{"x": torch.tensor(row), "file_name": f"rank{rank}_{i}.png"}] for i, row in enumerate(rows)]
    model = DistributedDataParallel(Linear())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    step = TrainStep(model, batches, optimizer, storage=get_event_storage)
    with EventStorage(0) as storage:
        step.run_step()
        names = [name for name in storage.latest() if "loss" in name]
        metrics = {name: storage.latest()[name][0] for name in names}
        try:
            step.run_step()
        except FloatingPointError as error:
            report = {"error": str(error), "weight": model.module.weight.tolist(), "metrics": metrics}
    torch.save(report, os.path.join(folder, f"{rank}.pth"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])

"""One process of a run in which each process cannot read one image, started by ``test_bad_image_counts.py``.

python -m tests.training.bad_images_worker RANK PORT OUTPUT BUDGET
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from retinanet_ext.d2 import comm
from retinanet_ext.training.bad_images import BadImagesHook, ReportingLoader


def batches(rank: int):
    """Process 0 cannot read one image, in its first batch; process 1 another, in its second."""
    for iteration in range(3):
        bad = {"file_name": f"{rank}.png", "image_id": rank, "reason": "OSError: cut"}
        yield [{"bad_images": [bad]} if iteration == rank else {}]


def run(rank: int, output: Path, budget: int) -> None:
    trainer = SimpleNamespace(start_iter=0, iter=0, max_iter=3, data_loader=ReportingLoader(batches(rank)))
    trainer._trainer = SimpleNamespace(loader_has_news=True)  # as the step of the process that cannot read says
    hook = BadImagesHook(str(output), budget)
    hook.trainer = trainer
    hook.before_train()
    stopped = None
    for iteration, batch in enumerate(trainer.data_loader):
        trainer.iter = iteration
        assert batch == [{}]
        try:
            hook.after_step()
        except ValueError as error:
            stopped = [trainer.iter, str(error)]
            break
    hook.after_train()
    (output / f"stopped{rank}.json").write_text(json.dumps(stopped))


if __name__ == "__main__":
    rank, port, output, budget = int(sys.argv[1]), *sys.argv[2:5]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    run(rank, Path(output), int(budget))
    dist.destroy_process_group()

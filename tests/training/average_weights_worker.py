"""One process of a job that averages its weights, started by ``test_average_weights.py``.

python -m tests.training.average_weights_worker RANK PORT OUTPUT
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from retinanet_ext.training.average_weights import AverageWeights
from tests.training.test_average_weights import network

if __name__ == "__main__":
    rank, port, output = int(sys.argv[1]), *sys.argv[2:4]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = DistributedDataParallel(network().train(), broadcast_buffers=False)
    average = AverageWeights(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 4, 4, generator=generator)).square().mean().backward()
        optimizer.step()
        average.update()
    alone = {name: tensor.clone() for name, tensor in average.state_dict()["weights"].items()}
    average.average_buffers()
    content = {"own": model.module.state_dict(), "alone": alone, "average": average.state_dict()["weights"]}
    torch.save(content, Path(output) / f"{rank}.pth")
    dist.destroy_process_group()

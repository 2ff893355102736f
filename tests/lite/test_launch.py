import json
import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from retinanet_ext.lite import comm
from retinanet_ext.lite.engine import SimpleTrainer, create_ddp_model, launch
from retinanet_ext.lite.engine.launch import check_gpus


def test_a_single_process_needs_no_group():
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank()) == (1, 0, 0)
    assert comm.is_main_process()
    assert comm.gather("x") == comm.all_gather("x") == ["x"]
    assert 0 <= comm.shared_random_seed() < 2**31
    comm.synchronize()
    seen = []
    launch(seen.append, 1, args=("ran",))
    assert seen == ["ran"]


class _Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return {"loss": (self.weight * x).sum(), "other": self.weight.sum()}


def _train(batches):
    model = create_ddp_model(_Scale())
    trainer = SimpleTrainer(model, batches, torch.optim.SGD(model.parameters(), lr=1.0))
    try:
        trainer.train(0, len(batches))
    except FloatingPointError as error:
        return str(error), model.module.weight.item()
    return {name: value for name, (value, _) in trainer.storage.latest().items()}, model.module.weight.item()


def _two_processes_work_together(folder):
    rank = comm.get_rank()
    metrics, weight = _train([torch.tensor([2.0 + 2 * rank])])
    error, weight_before_error = _train([torch.tensor([float("nan") if rank == 1 else 1.0])])
    report = {
        "place": [rank, comm.get_world_size(), comm.get_local_rank()],
        "main": comm.is_main_process(),
        "all_gather": comm.all_gather({"rank": rank}),
        "gather": comm.gather(f"from {rank}", dst=1),
        "seed": comm.shared_random_seed(),
        "metrics": metrics,
        "weight": weight,
        "error": error,
        "weight_before_error": weight_before_error,
        "threads": torch.get_num_threads(),
    }
    comm.synchronize()
    with open(os.path.join(folder, f"{rank}.json"), "w") as file:
        json.dump(report, file)
    # At last one fails while the other waits for it.
    if rank == 1:
        raise KeyError("the cause")
    comm.synchronize()


def test_two_processes_work_together_until_one_fails(tmp_path):
    with pytest.raises(mp.ProcessRaisedException, match="KeyError: 'the cause'"):
        launch(_two_processes_work_together, 2, args=(str(tmp_path),))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (first["place"], second["place"]) == ([0, 2, 0], [1, 2, 1])
    assert (first["main"], second["main"]) == (True, False)
    assert first["all_gather"] == second["all_gather"] == [{"rank": 0}, {"rank": 1}]
    assert (first["gather"], second["gather"]) == ([], ["from 0", "from 1"])
    assert first["seed"] == second["seed"]
    # Losses 2 and 4 average to 3; so do gradients (plus 1 from `other`): 1 - (3 + 1).
    assert (first["metrics"]["loss"], first["metrics"]["total_loss"]) == (3.0, 4.0)
    assert second["metrics"] == {}
    assert first["weight"] == second["weight"] == -3.0
    # Both stop, before the step, and both say who had the NaN.
    assert first["error"] == second["error"]
    assert "iteration 0; rank 1: loss = nan, other = 1." in first["error"]
    assert first["weight_before_error"] == second["weight_before_error"] == 1.0
    assert first["threads"] == second["threads"] >= 1


def _backend_per_device(rank, folder):
    # As on a machine with GPUs, but with gloo in the place of NCCL.
    threads = len(os.listdir("/proc/self/task"))
    dist.init_process_group("cpu:gloo,cuda:gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    total = torch.tensor(1.0 + rank)
    dist.all_reduce(total)
    comm.synchronize()
    found = [comm.get_local_rank(), comm.all_gather(rank), comm.gather(rank), total.item()]
    dist.destroy_process_group()
    found.append(len(os.listdir("/proc/self/task")) - threads)
    with open(os.path.join(folder, f"{rank}.json"), "w") as file:
        json.dump(found, file)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_cpu_processes_work_together_where_cuda_has_another_backend(tmp_path):
    mp.start_processes(_backend_per_device, nprocs=2, args=(str(tmp_path),), start_method="spawn")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    # No thread of a group outlives it: one that meets the end of the interpreter aborts the process.
    assert first == [0, [0, 1], [0, 1], 3.0, 0]
    assert second == [1, [0, 1], [], 3.0, 0]


@pytest.mark.parametrize(
    "device, gpus, shared",
    [
        ("cuda", ["GPU-a", "GPU-b", "GPU-a"], r"processes \[0, 2\] would train on one GPU \(GPU-a\).* sees 1 GPU"),
        # SLURM can show each process one GPU only, which is another one for each.
        ("cuda", ["GPU-a", "GPU-b", "GPU-c"], None),
        ("cpu", [None, None, None], None),
    ],
)
def test_two_processes_on_one_gpu_are_refused(monkeypatch, device, gpus, shared):
    gathered = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-a"))
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    monkeypatch.setattr(comm, "all_gather", lambda gpu: gathered.append(gpu) or gpus)
    with pytest.raises(ValueError, match=shared) if shared else nullcontext():
        check_gpus(device)
    assert gathered == [gpus[0]]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_machines": 2, "machine_rank": 2}, "machine-rank is 2; legal: 0 to 1"),
        ({"num_machines": 0}, "at least 1"),
        ({"num_machines": 2}, "needs the same --dist-url"),
        ({"num_machines": 2, "dist_url": "auto"}, "needs the same --dist-url"),
    ],
)
def test_contradicting_numbers_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        launch(print, 1, **kwargs)

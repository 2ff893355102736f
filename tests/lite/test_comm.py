import json
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from retinanet_ext.lite import comm


def test_a_single_process_needs_no_group():
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank()) == (1, 0, 0)
    assert comm.is_main_process()
    assert comm.gather("x") == comm.all_gather("x") == ["x"]
    assert 0 <= comm.shared_random_seed() < 2**31
    comm.synchronize()


def test_scalars_of_a_single_process_stay():
    scalars = {"loss": torch.tensor(2.0)}
    assert comm.reduce_dict(scalars) is scalars


def _backend_per_device(rank, folder):
    # As on a machine with GPUs, but with gloo in place of NCCL.
    threads = len(os.listdir("/proc/self/task"))
    dist.init_process_group("cpu:gloo,cuda:gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    total = torch.tensor(1.0 + rank)
    dist.all_reduce(total)
    scalars = {"b": torch.tensor(1.0 + rank, requires_grad=True), "a": torch.tensor(10.0 * rank)}
    assert comm.reduce_dict(scalars) == {"a": 5.0, "b": 1.5} and comm.reduce_dict(scalars, False) == {"a": 10, "b": 3}
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
    # No thread outlives its group: a thread that is alive at interpreter exit can abort the process.
    assert first == [0, [0, 1], [0, 1], 3.0, 0]
    assert second == [1, [0, 1], [], 3.0, 0]

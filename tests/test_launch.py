import os
import subprocess
import sys
from argparse import Namespace

import pytest

from retinanet_ext.launch import ProcessGroup, first_slurm_host, launch, process_group_from_environment


def test_torchrun():
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert process_group_from_environment(environment) == ProcessGroup(5, 8, 1, 4)
    with pytest.raises(ValueError, match="LOCAL_RANK, LOCAL_WORLD_SIZE is not; start with torchrun"):
        process_group_from_environment({"RANK": "0", "WORLD_SIZE": "2"})


def test_srun():
    environment = {"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1"}
    environment["SLURM_STEP_TASKS_PER_NODE"] = "8(x2)"
    assert process_group_from_environment(environment) == ProcessGroup(9, 16, 1, 8)


def test_a_batch_script_is_not_a_process_group():
    # sbatch sets these for the script itself; only srun starts the tasks.
    assert process_group_from_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}) is None
    assert process_group_from_environment({}) is None


def test_one_process_needs_no_group():
    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert process_group_from_environment(environment) is None


@pytest.mark.parametrize(
    "nodes, host", [("gpu[03-05,9],x1", "gpu03"), ("n1,n2", "n1"), ("node-7", "node-7"), ("a-b[7]", "a-b7")]
)
def test_first_host_of_slurms_list(nodes, host):
    assert first_slurm_host(nodes) == host


def test_flags_that_contradict_the_launcher(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="--num-gpus 2 starts processes"):
        launch(print, Namespace(num_gpus=2))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_no_thread_of_a_group_outlives_it():
    # One that does can abort the process at its end, after all work is done.
    code = """
import os
from retinanet_ext import launch
from retinanet_ext.d2 import comm
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
launch._join(launch.ProcessGroup(0, 1, 0, 1))
assert comm.get_local_rank() == 0 and count() > before
launch._leave()
assert count() == before, (before, count())
"""
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    environment["OMP_NUM_THREADS"] = "1"  # or setting their number would start PyTorch's own threads
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)

"""Starts a run as one process or several, or joins the processes that torchrun or SLURM has started."""

import gc
import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist

from retinanet_ext.d2 import comm
from retinanet_ext.d2 import launch as engine_launch


class ProcessGroup(NamedTuple):
    """This process's place among those that a launcher has started."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int


# Each launcher's variables for rank, world size, local rank, local size. Of SLURM those that only `srun` sets: in
# the batch script itself SLURM_PROCID is there too, but no other process is.
_VARIABLES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}


def process_group_from_environment(environment: Mapping[str, str]) -> ProcessGroup | None:
    """What torchrun or, failing that, SLURM's srun says; None when neither started several processes.

    Raises:
        ValueError: torchrun's variables are there in part only.
    """
    for launcher, names in _VARIABLES.items():
        missing = [name for name in names if name not in environment]
        if not missing:
            # SLURM writes "8(x2)" for two nodes of eight tasks.
            group = ProcessGroup(*(int(re.match(r"\d+", environment[name])[0]) for name in names))
            return group if group.world_size > 1 else None
        if launcher == "torchrun" and "WORLD_SIZE" in environment and "RANK" in environment:
            raise ValueError(f"RANK and WORLD_SIZE are set, but {', '.join(missing)} is not; start with torchrun")
    return None


def launch(main: Callable, args) -> None:
    """Run ``main(args)`` in every process of the run.

    Args:
        main: called once in each process.
        args: Detectron2's command-line arguments: ``num_gpus``, ``num_machines``, ``machine_rank``, ``dist_url`` count
            unless torchrun or srun started this process; then rank, size and address come from the environment.

    Raises:
        ValueError: flags or variables that contradict the launcher.
    """
    group = process_group_from_environment(os.environ)
    if group is None:
        engine_launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
        return
    if args.num_gpus > 1:
        raise ValueError(
            f"--num-gpus {args.num_gpus} starts processes, but {group.world_size} have been started by torchrun or "
            "srun already; leave the flag out"
        )
    _join(group)
    main(args)
    # Not after an error: closing connections would make the other processes fail first, and hide the cause.
    _leave()


def _leave() -> None:
    """End the groups, with their threads: one that meets the end of the interpreter aborts the process."""
    # Detectron2 remembers groups in variables and caches, which would keep them; so would a model in a cycle.
    for name, value in list(vars(comm).items()):
        if isinstance(value, dist.ProcessGroup):
            setattr(comm, name, None)
        elif hasattr(value, "cache_clear"):
            value.cache_clear()
    gc.collect()
    dist.destroy_process_group()


def _join(group: ProcessGroup) -> None:
    if "MASTER_ADDR" not in os.environ:
        if "SLURM_STEP_NODELIST" not in os.environ:
            raise ValueError("RANK and WORLD_SIZE are set, but MASTER_ADDR is not; start with torchrun, or set it")
        os.environ["MASTER_ADDR"] = first_slurm_host(os.environ["SLURM_STEP_NODELIST"])
    # Jobs that share a node must not share a port.
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 20000))
    if "OMP_NUM_THREADS" not in os.environ:
        # Each process would otherwise start a thread for every core of the machine.
        torch.set_num_threads(max(1, torch.get_num_threads() // group.local_size))
    backend = "gloo"
    if torch.cuda.is_available():
        # A model on the CPU is legal on a machine with GPUs. Of these a task may be shown just one, as number 0.
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(group.local_rank % torch.cuda.device_count())
    dist.init_process_group(backend, rank=group.rank, world_size=group.world_size)
    comm.create_local_process_group(group.local_size)
    comm.synchronize()


def first_slurm_host(node_list: str) -> str:
    """The first host of SLURM's compressed list: ``gpu[03-05,9],x1`` begins with ``gpu03``."""
    prefix, number = re.match(r"([^\[,]+)(?:\[(\d+))?", node_list).groups()
    return prefix + (number or "")

"""Starts the processes of a job on this machine."""

import datetime
import gc
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from .. import comm
from ..env import usable_cores

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = datetime.timedelta(minutes=30)


def launch(
    main_func: Callable[..., None],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
    timeout: datetime.timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Run ``main_func(*args)`` in every process of a job, and wait for those of this machine.

    Args:
        main_func: importable by name where there are several processes.
        num_gpus_per_machine: processes per machine. Process ``i`` gets GPU ``i``, modulo the number of GPUs, for
            what it puts on CUDA; there tensors travel over NCCL, on the CPU over gloo.
        machine_rank: number of this machine, from 0.
        dist_url: where the processes meet, ``tcp://<address of machine 0>:<free port>``; ``None`` or
            ``auto``: a free port of this machine.
        timeout: how long a process waits for the others.

    Raises:
        ValueError: the numbers contradict each other.
        torch.multiprocessing.ProcessRaisedException: a process failed; holds its traceback. The others are
            stopped.
    """
    _check_numbers(num_gpus_per_machine, num_machines, machine_rank, dist_url)
    if num_machines * num_gpus_per_machine == 1:
        main_func(*args)
        return
    if dist_url in (None, "auto"):
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    mp.start_processes(
        _run_process,
        nprocs=num_gpus_per_machine,
        args=(num_gpus_per_machine, num_machines, machine_rank, dist_url, main_func, args, timeout),
        start_method="spawn",
    )


def _check_numbers(num_gpus: int, num_machines: int, machine_rank: int, dist_url: str | None) -> None:
    if num_gpus < 1 or num_machines < 1:
        raise ValueError(f"--num-gpus is {num_gpus} and --num-machines {num_machines}; both are at least 1")
    if not 0 <= machine_rank < num_machines:
        raise ValueError(f"--machine-rank is {machine_rank}; legal: 0 to {num_machines - 1} (--num-machines - 1)")
    if num_machines > 1 and dist_url in (None, "auto"):
        raise ValueError(
            "a job on several machines needs the same --dist-url tcp://<address of machine 0>:<port> on all"
        )


def check_gpus(model_device: str) -> None:
    """Refuse a job in which two processes would train on one GPU, which NCCL cannot do. All processes call it.

    Only here is it known whether GPUs are used; and how many processes share one cannot be told from the number
    that each of them sees: SLURM may show each process its own GPU alone.

    Args:
        model_device: ``cfg.MODEL.DEVICE``.

    Raises:
        ValueError: on every process, if two have the same GPU.
    """
    if comm.get_world_size() == 1:
        return
    gpu = None
    if torch.device(model_device).type == "cuda" and torch.cuda.is_available():
        gpu = str(torch.cuda.get_device_properties(torch.device(model_device)).uuid)
    ranks_by_gpu = defaultdict(list)
    for rank, used in enumerate(comm.all_gather(gpu)):
        ranks_by_gpu[used].append(rank)
    for used, ranks in ranks_by_gpu.items():
        if used is not None and len(ranks) > 1:
            raise ValueError(
                f"MODEL.DEVICE is {model_device!r}, and processes {ranks} would train on one GPU ({used}); this "
                f"process sees {torch.cuda.device_count()} GPU(s). Start one process for each GPU (--num-gpus, see "
                "also CUDA_VISIBLE_DEVICES), leave the number out of MODEL.DEVICE, or set MODEL.DEVICE to cpu"
            )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run_process(
    local_rank: int,
    local_size: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    main_func: Callable[..., None],
    args: tuple[Any, ...],
    timeout: datetime.timedelta,
) -> None:
    rank, world_size = machine_rank * local_size + local_rank, num_machines * local_size
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    if "OMP_NUM_THREADS" not in os.environ:
        # Each process would otherwise start a thread for every core of the machine.
        torch.set_num_threads(max(1, usable_cores() // local_size))
    # Both with CUDA: which of the two is needed depends on the model's device, which the config says later.
    backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
    try:
        dist.init_process_group(backend, dist_url, timeout, world_size=world_size, rank=rank)
    except Exception:
        logger.error(
            "process %d of %d could not join the others at %s: is the address reachable, is the port free, "
            "were all processes started?", rank, world_size, dist_url,
        )  # fmt: skip
        raise
    comm.create_local_process_group(local_size)
    # A machine that cannot talk to the others is found here, not in the middle of the first iteration.
    comm.synchronize()
    main_func(*args)
    # A model in a reference cycle would keep its group, and so the group's threads, past the end of the interpreter.
    gc.collect()
    # Not after an error: closing connections would make the others fail first, and hide the cause.
    dist.destroy_process_group()

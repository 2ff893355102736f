"""Refuses settings that the processes of a job cannot train with, and names the config key.

Without these checks an engine would fail with an assertion or with PyTorch's own error, or would not notice.
"""

from collections import defaultdict

import torch

from retinanet_ext.d2 import ENGINE, CfgNode, comm
from retinanet_ext.machine.processes import images_per_process

from .meeting import check_exchange


def check_processes(cfg: CfgNode) -> None:
    """Refuse a job that cannot work. All processes call this together, and all raise.

    Raises:
        ValueError: the processes cannot share the batch evenly, or cannot split it into SOLVER.ACCUMULATE
            micro-batches; two processes use one GPU; on Detectron2, several processes have no GPUs.
    """
    _check_batch(cfg)
    processes = comm.get_world_size()
    if processes == 1:
        return
    if ENGINE == "detectron2" and cfg.MODEL.DEVICE == "cpu":
        raise ValueError(
            f"MODEL.DEVICE is cpu; on a CPU Detectron2 trains one process, not {processes}; use MODEL.DEVICE cuda, or "
            "set the environment variable RETINANET_EXT_ENGINE=lite"
        )
    _check_one_gpu_each(cfg.MODEL.DEVICE)
    check_exchange(torch.device(cfg.MODEL.DEVICE))


def _check_batch(cfg: CfgNode) -> None:
    # With a reference size, the engine first scales the batch to the number of processes, so the share stays the same.
    processes = cfg.SOLVER.REFERENCE_WORLD_SIZE or comm.get_world_size()
    share, micro_batches = images_per_process(cfg.SOLVER.IMS_PER_BATCH, processes), cfg.SOLVER.ACCUMULATE
    if micro_batches < 1 or share % micro_batches:
        raise ValueError(
            f"SOLVER.ACCUMULATE is {micro_batches}; it must be a positive divisor of the images that a process has in "
            f"a step, {share} (SOLVER.IMS_PER_BATCH divided by the number of processes)"
        )


def _check_one_gpu_each(device: str) -> None:
    """Refuse two processes on one GPU, because NCCL cannot work with them.

    No process can check this alone: SLURM may show each process a single, different GPU, always under number 0.
    """
    gpu = None
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        gpu = str(torch.cuda.get_device_properties(torch.device(device)).uuid)
    ranks_by_gpu = defaultdict(list)
    for rank, used in enumerate(comm.all_gather(gpu)):
        ranks_by_gpu[used].append(rank)
    for used, ranks in ranks_by_gpu.items():
        if used is not None and len(ranks) > 1:
            raise ValueError(
                f"MODEL.DEVICE is {device!r}, and processes {ranks} would train on one GPU ({used}); this "
                f"process sees {torch.cuda.device_count()} GPU(s). Start one process for each GPU (--num-gpus, see "
                "also CUDA_VISIBLE_DEVICES), leave the number out of MODEL.DEVICE, or set MODEL.DEVICE to cpu"
            )

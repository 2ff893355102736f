"""Refuses, by the name of the config key, what an engine would meet with an assertion or with PyTorch's own error."""

import torch

from retinanet_ext.d2 import ENGINE, CfgNode, comm


def check_device(name: str) -> None:
    """Refuse a MODEL.DEVICE that does not exist here.

    Raises:
        ValueError: no name of a device, or CUDA where there is none or fewer.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"MODEL.DEVICE is {name!r}; legal are cpu, cuda, cuda:0 and so on") from None
    if device.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise ValueError(f"MODEL.DEVICE is {name!r}, but PyTorch finds no CUDA device; set `MODEL.DEVICE cpu`")
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise ValueError(f"MODEL.DEVICE is {name!r}, but PyTorch finds {count} CUDA device(s), numbered from 0")


def check_processes(cfg: CfgNode) -> None:
    """Refuse settings that the processes of this job cannot train with.

    Raises:
        ValueError: a batch that they cannot share evenly, or not split into SOLVER.ACCUMULATE micro-batches; on
            Detectron2, several processes without GPUs.
    """
    processes, batch = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
    # With a reference size, the batch is scaled to the number of processes first.
    if cfg.SOLVER.REFERENCE_WORLD_SIZE == 0 and (batch < 1 or batch % processes):
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}; it must be a positive multiple of the number of processes, {processes}"
        )
    share, micro_batches = batch // (cfg.SOLVER.REFERENCE_WORLD_SIZE or processes), cfg.SOLVER.ACCUMULATE
    if micro_batches < 1 or share % micro_batches:
        raise ValueError(
            f"SOLVER.ACCUMULATE is {micro_batches}; it must be a positive divisor of the images that a process has in "
            f"a step, {share} (SOLVER.IMS_PER_BATCH over the number of processes)"
        )
    if ENGINE == "detectron2" and cfg.MODEL.DEVICE == "cpu" and processes > 1:
        raise ValueError(
            f"MODEL.DEVICE is cpu, where Detectron2 trains one process, not {processes}; use MODEL.DEVICE cuda, or set "
            "the environment variable RETINANET_EXT_ENGINE=lite"
        )

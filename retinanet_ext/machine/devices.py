"""Devices that a config may name."""

import torch


def check_device(name: str) -> None:
    """Refuse a MODEL.DEVICE that does not exist on this machine.

    Raises:
        ValueError: ``name`` is not the name of a device, or names a CUDA device that PyTorch does not find.
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

"""Seeds, and a description of the machine and libraries that a run uses."""

import importlib.metadata
import logging
import os
import platform
import random
import sys

import numpy as np
import torch
from tabulate import tabulate

from retinanet_ext.machine.cpu import usable_cores

logger = logging.getLogger(__name__)

_LIBRARIES = (
    "retinanet-ext", "torch", "torchvision", "numpy", "fvcore", "iopath",
    "pycocotools", "opencv-python", "opencv-python-headless", "pillow", "safetensors",
)  # fmt: skip


def seed_all_rng(seed: int | None = None) -> None:
    """Seed ``random``, ``numpy.random`` and torch (CPU and CUDA) of this process.

    ``None`` draws a seed from the operating system, and logs it.
    """
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
        logger.info("no seed given: using the random seed %d", seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def collect_env_info() -> str:
    """A table of Python, machine, devices and library versions, for the log and for bug reports."""
    rows = [
        ("platform", platform.platform()),
        ("Python", sys.version.replace("\n", "")),
        ("CPU cores", f"{usable_cores()} usable of {os.cpu_count()}"),
        ("torch threads", torch.get_num_threads()),
        ("CUDA", f"{torch.version.cuda}, {torch.cuda.device_count()} device(s) visible"),
        *_devices(),
    ]
    for library in _LIBRARIES:
        try:
            rows.append((library, importlib.metadata.version(library)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tabulate(rows)


def _devices() -> list[tuple[str, str]]:
    return [
        (f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB")
        for index in range(torch.cuda.device_count())
        for properties in [torch.cuda.get_device_properties(index)]
    ]

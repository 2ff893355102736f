"""The CPU: how many cores this process has, which types it computes in, and how the C library hands out memory."""

import ctypes
import functools
import os
import platform

import torch

# Constants of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def computes_in_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16. Without them, bfloat16 is slower than float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def processor_name() -> str:
    """The model of the CPU; where the system does not tell, the architecture."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return next(iter(names), "") or platform.processor() or platform.machine()


@functools.cache
def keep_freed_memory() -> bool:
    """Let the process keep the memory of freed tensors for new ones, instead of giving it back to the system.

    By default glibc maps new memory for every large tensor and unmaps it afterwards. The system clears each new page on
    first touch, which takes a tenth of the time of a training step. The setting holds for the rest of the process;
    calling this again does nothing.

    Returns:
        Whether freed memory is kept now. False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Both settings are needed: with the first alone, freed memory at the end of the heap would still go back to the
    # system. mallopt fails on values above INT_MAX.
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))

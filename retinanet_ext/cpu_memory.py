"""How the C library hands memory to tensors on the CPU."""

import ctypes
import functools
import platform

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@functools.cache
def keep_freed_memory() -> bool:
    """Let the process keep the memory of freed tensors for the next ones, instead of giving it back to the system.

    By default glibc maps every large tensor anew and unmaps it at the end, and the system clears each page of it on
    first touch: a tenth of the time of a training step. For the rest of the process; calling it again does nothing.

    Returns:
        Whether this is now so. False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Both, or the second would still give back what lies at the end. They fail on values above INT_MAX.
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))

import platform
import subprocess
import sys

import pytest

# Counts the page faults of making a 64 MiB tensor, before and after the call. Takes the fewest of several runs, because
# a small object may lie in the memory that the previous tensor freed.
COUNT_FAULTS = """
import resource, torch
from retinanet_ext.machine.cpu import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def fewest():
    return min(faults() for _ in range(30))

print(fewest(), keep_freed_memory(), fewest())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_of_freed_tensors_is_used_again():
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    before, is_kept, after = done.stdout.split()
    pages = 2**26 / 2**12
    assert is_kept == "True"
    assert int(before) > 0.01 * pages  # a huge page, where enabled, replaces 512 pages
    assert int(after) < 0.001 * pages

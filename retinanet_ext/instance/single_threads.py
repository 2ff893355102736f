"""Many small tensor operations on all cores of a CPU, without a meeting of the threads after each of them.

torch splits even a small matrix product among its threads, and waits for the last of them. On a machine with other
busy processes, such as workers that load data, each wait can take milliseconds. Here whole jobs are shared out among as
many workers as torch has threads, and each operation of a worker runs on that worker's thread alone.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_creation = threading.Lock()


def run_single_threaded(jobs: Sequence[Callable[[], None]]) -> None:
    """Run jobs that share no output, in any order, without gradients and without autocast.

    The first exception of a job is raised here, after all jobs have ended.
    """
    # The first call in a thread also fixes the number of this thread, before workers ask for their own.
    num_threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    if num_threads == 1:
        for job in jobs:
            _run(job, inference)
    elif jobs:
        futures = [_pool_of_process(num_threads).submit(_run, job, inference) for job in jobs]
        wait(futures)
        for future in futures:
            future.result()


def _run(job: Callable[[], None], inference: bool) -> None:
    # These modes belong to a thread. A tensor made in inference mode may be written to in that mode only.
    with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", enabled=False):
        job()


def _pool_of_process(num_threads: int) -> ThreadPoolExecutor:
    # A forked process inherits the object, but not its threads.
    key = (os.getpid(), num_threads)
    with _creation:
        if key not in _pools:
            _pools[key] = _new_pool(num_threads)
        return _pools[key]


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    # The number becomes this thread's own when it is first asked for; until then it is the last one set anywhere.
    torch.get_num_threads()


def _new_pool(num_threads: int) -> ThreadPoolExecutor:
    all_started = threading.Barrier(num_threads)
    pool = ThreadPoolExecutor(num_threads, "single_thread", initializer=_use_one_thread)
    wait([pool.submit(all_started.wait) for _ in range(num_threads)])
    # The last number set anywhere is that of all later threads.
    torch.set_num_threads(num_threads)
    return pool

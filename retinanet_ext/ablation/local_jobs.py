"""Runs on this machine, several at a time, each with its share of the GPUs or cores."""

import functools
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch

from retinanet_ext.machine.cpu import usable_cores

from .jobs import Job, execute
from .status import Status


def local_runner(
    at_a_time: int | None, *, keep_open: tuple[int, ...] = ()
) -> Callable[[Sequence[Job], Callable[[Job, Status], None]], None]:
    """A function ``run(jobs, record)`` that does the jobs in order.

    When a job has ended, ``record(job, status)`` is called in the caller's thread.

    Args:
        at_a_time: most runs at a time; None: one for each GPU, or one on a CPU.
        keep_open: file descriptors that the processes of the runs inherit.

    Raises:
        ValueError: ``at_a_time`` is below 1.
    """
    if at_a_time is not None and at_a_time < 1:
        raise ValueError(f"the number of runs at a time is {at_a_time}; it must be 1 or more")
    return functools.partial(_run_locally, at_a_time=at_a_time, keep_open=keep_open)


def _run_locally(jobs, record, *, at_a_time, keep_open):
    slots: queue.Queue[dict[str, str]] = queue.Queue()
    for share in shares_of_the_machine(at_a_time, on_gpu=any(job.on_gpu for job in jobs)):
        slots.put(share)
    stopping = threading.Event()

    def do(job: Job) -> Status | None:
        share = slots.get()
        try:
            return execute(job, share, stopping=stopping, keep_open=keep_open)
        finally:
            slots.put(share)

    with ThreadPoolExecutor(slots.qsize()) as pool:
        futures = {pool.submit(do, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                record(futures[future], future.result())
        except BaseException:
            stopping.set()  # the pool waits for its threads, and each thread for its process
            pool.shutdown(cancel_futures=True)
            raise


def shares_of_the_machine(at_a_time: int | None, on_gpu: bool) -> list[dict[str, str]]:
    """For each of the simultaneous runs, the environment variables that give it its share."""
    if on_gpu:
        gpus = _visible_gpus()
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(at_a_time or len(gpus))]
    at_a_time = at_a_time or 1
    threads = max(1, usable_cores() // at_a_time)
    # A value that the user has set is kept.
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))} for _ in range(at_a_time)]


def _visible_gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]

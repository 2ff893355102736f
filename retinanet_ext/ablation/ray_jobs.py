"""Runs on a Ray cluster: Ray finds a machine with room for each run."""

import functools
from collections.abc import Callable, Sequence

from .jobs import Job, execute
from .status import FAILED, Status, read_status, steps_done, write_status


def ray_runner(address: str) -> Callable[[Sequence[Job], Callable[[Job, Status], None]], None]:
    """A function ``run(jobs, record)`` that does the jobs in order, as many at a time as the cluster has room for.

    A job takes one GPU, or one CPU core if it needs no GPU. The machines of the cluster need this package, and must see
    the output, data and working directory under the same names. When a job has ended, ``record(job, status)`` is called
    in the caller's process.

    Args:
        address: HOST:PORT of a cluster, "auto" for the cluster that runs here, "local" for a new one on this machine.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: there is no cluster at that address.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--ray needs Ray: pip install ray, or use --jobs N") from error
    if not ray.is_initialized():
        ray.init(address=address)
    return functools.partial(_run_on_cluster, ray)


def _run_on_cluster(ray, jobs, record):
    tasks = {}
    for job in jobs:
        # No Ray retries: a retry after a lost machine looks like a first attempt. Running the study again retries.
        remote = ray.remote(num_gpus=int(job.on_gpu), num_cpus=int(not job.on_gpu), max_retries=0)(execute)
        tasks[remote.remote(job)] = job
    waiting = list(tasks)
    try:
        while waiting:
            (finished,), waiting = ray.wait(waiting)
            record(tasks[finished], _status(ray, finished, tasks[finished]))
    except BaseException:
        for task in waiting:
            ray.cancel(task)  # raises KeyboardInterrupt in `execute`, which then ends the run's process
        ray.wait(waiting, num_returns=len(waiting), timeout=60)
        raise


def _status(ray, task, job: Job) -> Status:
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        seconds = (read_status(job.folder) or Status(FAILED)).seconds
        status = Status(FAILED, f"{type(error).__name__}: {error}", seconds, iterations=steps_done(job.folder))
        write_status(job.folder, status)
        return status

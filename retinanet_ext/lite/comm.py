"""Ranks of a job's processes, and small exchanges between them.

In a job of one process every function returns at once, without ``torch.distributed``. Python objects and
barriers use gloo, even when tensors use NCCL, because they need no GPU.
"""

import weakref
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

# This module refers to groups weakly, and torch keeps the groups in use. A strong reference would keep a group's
# threads alive after `destroy_process_group()`, and a thread alive at interpreter exit can abort the process.

# The group of this machine's processes, set once per process by `launch`.
_local_group: "weakref.ref[dist.ProcessGroup] | None" = None
# For a group of all processes, the group that carries its objects and barriers.
_gloo_groups: "weakref.WeakKeyDictionary[dist.ProcessGroup, weakref.ref[dist.ProcessGroup]]"
_gloo_groups = weakref.WeakKeyDictionary()


def _in_a_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """How many processes work on the job; 1 outside a group."""
    return dist.get_world_size() if _in_a_group() else 1


def get_rank() -> int:
    """Number of this process in the job, from 0."""
    return dist.get_rank() if _in_a_group() else 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Make one group per machine of its processes; ranks of one machine are consecutive.

    Every process calls this once, after ``torch.distributed`` is initialised.

    Raises:
        ValueError: the number of processes is not a multiple of ``num_workers_per_machine``.
    """
    global _local_group
    world_size = get_world_size()
    if num_workers_per_machine < 1 or world_size % num_workers_per_machine:
        raise ValueError(
            f"{world_size} processes cannot be split into machines of {num_workers_per_machine}; "
            "start the same number of processes on every machine"
        )
    for first in range(0, world_size, num_workers_per_machine):
        ranks = list(range(first, first + num_workers_per_machine))
        # Every process must take part in creating every group, but remembers only its own.
        group = dist.new_group(ranks)
        if get_rank() in ranks:
            _local_group = weakref.ref(group)


def get_local_rank() -> int:
    """Number of this process on its machine, from 0."""
    if not _in_a_group():
        return 0
    group = _local_group() if _local_group else None
    if group is None:
        raise RuntimeError(
            "the processes of this machine are not known: start the job with launch(), or call "
            "comm.create_local_process_group(processes_per_machine) after init_process_group()"
        )
    return dist.get_rank(group=group)


def is_main_process() -> bool:
    """Whether this process is the one that writes files and logs."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every process has reached this call."""
    if get_world_size() > 1:
        dist.barrier(group=_gloo_group(dist.group.WORLD))


def _gloo_group(world: "dist.ProcessGroup") -> "dist.ProcessGroup":
    # With a backend per device, such as "cpu:gloo,cuda:nccl", torch uses the CPU's for objects and barriers.
    if "gloo" in dist.get_backend(world):
        return world
    group = _gloo_groups[world]() if world in _gloo_groups else None
    if group is None:
        group = dist.new_group(backend="gloo")
        _gloo_groups[world] = weakref.ref(group)
    return group


def _object_group(group: "dist.ProcessGroup | None") -> "dist.ProcessGroup":
    return _gloo_group(dist.group.WORLD) if group is None else group


def all_gather(data: Any, group: "dist.ProcessGroup | None" = None) -> list[Any]:
    """The ``data`` (any picklable object) of every process, by rank, on every process."""
    if get_world_size() == 1:
        return [data]
    group = _object_group(group)
    gathered = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: "dist.ProcessGroup | None" = None) -> list[Any]:
    """The ``data`` (any picklable object) of every process, by rank, on ``dst``; an empty list elsewhere."""
    if get_world_size() == 1:
        return [data]
    group = _object_group(group)
    gathered = [None] * dist.get_world_size(group) if dist.get_rank() == dst else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """The mean (or sum) over all processes of each scalar, on every process, for logs: without gradients.

    The dict itself in a single process. All processes pass the same keys.
    """
    if get_world_size() == 1:
        return input_dict
    with torch.no_grad():
        names = sorted(input_dict)
        values = torch.stack([input_dict[name] for name in names])
        dist.all_reduce(values)
        return dict(zip(names, values / get_world_size() if average else values))


def shared_random_seed() -> int:
    """A random number of 31 bits that is the same on every process. All processes call it together."""
    return all_gather(int(np.random.randint(2**31)))[0]

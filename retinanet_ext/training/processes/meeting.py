"""The processes of a job find each other, and check that they can exchange numbers, before any of them works."""

import logging
import os
import time
from datetime import timedelta
from urllib.parse import urlparse

import torch
import torch.distributed as dist

# How long a process waits for the others to start, which may take minutes on a busy file system.
JOIN_TIMEOUT = timedelta(minutes=10)
# How long the first exchange of one number may take. NCCL connects in it.
EXCHANGE_TIMEOUT = timedelta(minutes=2)
_NEWS_SECONDS = 30.0
_POLL_SECONDS = 0.05
_store: "dist.Store | None" = None
logger = logging.getLogger(__name__)


def meet(address: str, rank: int, world_size: int) -> tuple["dist.Store", str]:
    """Wait until all processes of the job have started.

    Args:
        address: ``tcp://HOST:PORT`` of rank 0, or ``env://`` for MASTER_ADDR and MASTER_PORT.
        rank, world_size: of this process, and how many there are.

    Returns:
        The store that all processes share, and the host of rank 0.

    Raises:
        RuntimeError: some did not start in time. The message names them.
        torch.distributed.DistError: rank 0 cannot be reached, or its port is not free.
    """
    global _store
    host, port = _host_and_port(address)
    # torchrun's agent serves the store; after a restart it is still the same one.
    by_agent = address == "env://" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        host, port, world_size, is_master=rank == 0 and not by_agent, timeout=JOIN_TIMEOUT, wait_for_workers=False
    )
    _store = dist.PrefixStore(f"retinanet_ext/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    _wait_for_all(_store, "joined", rank, world_size, JOIN_TIMEOUT, "started")
    return _store, host


def _host_and_port(address: str) -> tuple[str, int]:
    if address == "env://":
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    parts = urlparse(address)
    if parts.scheme != "tcp" or not parts.hostname or parts.port is None:
        raise ValueError(f"--dist-url is {address!r}; legal: tcp://ADDRESS:PORT of machine 0, or auto")
    return parts.hostname, parts.port


def _wait_for_all(store, name: str, rank: int, world_size: int, timeout: timedelta, verb: str) -> None:
    store.set(f"{name}/{rank}", b"1")
    start = last = time.monotonic()
    missing = list(range(world_size))
    while missing := [other for other in missing if not store.check([f"{name}/{other}"])]:
        now = time.monotonic()
        if now - start > timeout.total_seconds():
            raise RuntimeError(
                f"rank {rank}: of {world_size} ranks, {_ranks(missing)} have not {verb} within {timeout}. See the "
                "output of their machines, and start the same number of processes on each"
            )
        if now - last > _NEWS_SECONDS:
            last = now
            logger.warning("rank %d of %d waits: %s have not %s yet", rank, world_size, _ranks(missing), verb)
        time.sleep(_POLL_SECONDS)


def _ranks(numbers: list[int]) -> str:
    more = f" and {len(numbers) - 20} more" if len(numbers) > 20 else ""
    return f"ranks {', '.join(map(str, numbers[:20]))}{more}"


def check_exchange(device: torch.device) -> None:
    """Add up a one of each process on ``device``. All processes call this together, after they have met.

    Raises:
        RuntimeError: the sum did not arrive in time, or is wrong. The message names the ranks that did not answer.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    start = time.monotonic()
    name = f"exchange_{device.type}"
    if _store is not None:
        _store.set(f"{name}/{rank}", b"1")
    ones = torch.ones((), device=device)
    work = dist.all_reduce(ones, async_op=True)
    while not work.is_completed():
        if time.monotonic() - start > EXCHANGE_TIMEOUT.total_seconds():
            raise RuntimeError(f"rank {rank}: the first exchange on {device.type} hangs; {_who(name, world_size)}")
        time.sleep(_POLL_SECONDS / 10)
    work.wait()
    if ones.item() != world_size:
        raise RuntimeError(f"rank {rank}: the sum of a one from each of {world_size} ranks is {ones.item()}")


def _who(name: str, world_size: int) -> str:
    missing = [rank for rank in range(world_size) if _store is not None and not _store.check([f"{name}/{rank}"])]
    if missing:
        return f"{_ranks(missing)} did not answer within {EXCHANGE_TIMEOUT}"
    return (
        "all ranks take part, so the network between them does not carry it: check the firewall, the interface "
        "(GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME), and the log with NCCL_DEBUG=INFO"
    )


def forget() -> None:
    """Let go of the store: its thread ends with the last reference."""
    global _store
    _store = None

"""Writes checkpoint files: complete, with a checksum, or not at all. This file imports no engine."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from retinanet_ext.machine.atomic_file import atomic_file

from .file_checksum import ChecksummedWriter

# Room for the archive's records and everything that is no tensor.
_OVERHEAD = 1 << 20


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; the earlier ones are whole."""


def write_checkpoint(path: str, content: dict[str, Any]) -> None:
    """Write a ``.pth`` file that :func:`.checkpoint_file.read_checkpoint` verifies, and every torch.load reads.

    The file is written aside, flushed to the disk and renamed; until then the file of that name stays as it is. A
    keyboard interrupt in between is handled afterwards.

    Raises:
        CheckpointNotWritten: the disk is full or fails. The message says how much space is needed and free; nothing
            unfinished stays behind.
    """
    folder = os.path.dirname(os.path.abspath(path))
    needed = _size(content)
    try:
        os.makedirs(folder, exist_ok=True)
        free = _free(folder)
        if free is not None and free < needed + _OVERHEAD:
            raise _no_space(path, needed, free, "not started")
        with _interrupt_later(), atomic_file(path) as file:
            writer = ChecksummedWriter(file)
            torch.save(content, writer)
            writer.finish()
    except CheckpointNotWritten:
        raise
    except OSError as error:
        raise _no_space(path, needed, _free(folder), str(error)) from error


def first_nonfinite(tensors: dict[str, Any]) -> str | None:
    """The first name whose tensor (of any shape) has a NaN or an infinity, with its counts; None if all are finite."""
    floats = {name: value.detach() for name, value in tensors.items() if _is_float(value) and value.numel()}
    if not floats:
        return None
    # One answer for all: on a GPU, each answer read waits for the device. The minimum and maximum of a tensor are
    # finite if and only if all of its values are.
    finite = [torch.stack(torch.aminmax(_plain(value))).isfinite().all() for value in floats.values()]
    groups: dict[torch.device, list] = {}
    for (name, value), answer in zip(floats.items(), finite, strict=True):
        groups.setdefault(value.device, []).append((name, answer))
    bad = set()
    for group in groups.values():
        answers = torch.stack([answer for _, answer in group]).tolist()
        bad |= {name for (name, _), is_finite in zip(group, answers, strict=True) if not is_finite}
    for name in floats:
        if name in bad:
            count = int((~floats[name].isfinite()).sum())
            return f"{name} ({count} of {floats[name].numel()} values)"
    return None


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def _plain(value: torch.Tensor) -> torch.Tensor:
    value = torch.view_as_real(value) if value.is_complex() else value
    # Types of 8 bits have no minimum.
    return value.float() if value.element_size() == 1 else value


def _size(content: Any, seen: set[int] | None = None) -> int:
    """Bytes of all tensors; each storage counts once, as torch.save writes it once."""
    seen = set() if seen is None else seen
    if isinstance(content, torch.Tensor):
        storage = content.untyped_storage()
        known = storage.data_ptr() in seen
        seen.add(storage.data_ptr())
        return 0 if known else storage.nbytes()
    if isinstance(content, dict):
        content = content.values()
    elif not isinstance(content, (list, tuple)):
        return 0
    return sum(_size(item, seen) for item in content)


def _free(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _no_space(path: str, needed: int, free: int | None, found: str) -> CheckpointNotWritten:
    return CheckpointNotWritten(
        f"the checkpoint {path} cannot be written ({found}): it needs {needed:,} bytes, and "
        f"{'an unknown number' if free is None else f'{free:,}'} are free in {os.path.dirname(path) or '.'}. The "
        "earlier checkpoints are whole. Free some space, set SOLVER.CHECKPOINTS_KEPT to keep fewer of them, or choose "
        "another OUTPUT_DIR; then go on with --resume."
    )


@contextmanager
def _interrupt_later() -> Iterator[None]:
    """Let a SIGINT of the block come after it: in its middle, torch's writer would fail with an unreadable error."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals interrupt the main thread only
        return
    came = []
    earlier = signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    if earlier is None:  # not set from Python, so it cannot be restored
        earlier = signal.default_int_handler
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)
    if came and callable(earlier):
        earlier(*came[0])

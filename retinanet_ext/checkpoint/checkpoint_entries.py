"""Reads entries beside the weights in a checkpoint, such as ``calibration``, and adds them to a finished file."""

import os
from typing import Any

from .checkpoint_file import read_checkpoint
from .checkpoint_writing import write_checkpoint

_SUFFIXES = (".pth", ".pt")


def check_takes_entries(path: str) -> None:
    """Refuse a file that :func:`write_entry` could not change.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a kind of file that holds nothing but tensors.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such checkpoint on this machine; name the file of the run")
    if os.path.splitext(path)[1] not in _SUFFIXES:
        raise ValueError(
            f"{path}: only {' and '.join(_SUFFIXES)} take entries beside the weights; load the weights in a run "
            "(MODEL.WEIGHTS) and use the .pth file that it saves"
        )


def read_entries(path: str) -> dict[str, Any]:
    """All entries of a checkpoint, the weights among them; empty if the file is not on this machine or of another kind.

    Raises:
        ValueError: the file is damaged, or would run code.
    """
    if not os.path.isfile(path) or os.path.splitext(path)[1] not in _SUFFIXES:
        return {}
    return read_checkpoint(path)


def read_entry(path: str, key: str) -> Any | None:
    """One of :func:`read_entries`; None if there is none."""
    return read_entries(path).get(key)


def write_entry(path: str, key: str, value: Any) -> None:
    """Add an entry to a checkpoint, or replace it; all others stay as they are. A crash leaves the old file whole.

    Args:
        path: ``.pth`` or ``.pt``. The weights of a file that holds nothing else move under ``model``. A link stays one.
        key: any but ``model``.
        value: plain values and tensors, which a safe reader takes.

    Raises:
        FileNotFoundError, ValueError: see :func:`check_takes_entries`; or the file cannot be read.
        OSError: the disk is full; see :func:`write_checkpoint`.
    """
    if key == "model":
        raise ValueError("the entry 'model' holds the weights; choose another key")
    check_takes_entries(path)
    write_checkpoint(os.path.realpath(path), {**read_checkpoint(path), key: value})

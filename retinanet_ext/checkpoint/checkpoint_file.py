"""Reads checkpoint files without running code from them. This file imports no engine.

``.pth`` and ``.pt`` are read with ``weights_only=True``, ``.safetensors`` by its library, and ``.pkl`` (Detectron2's
model zoo) by an unpickler that accepts only numpy arrays and plain containers.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .array_pickle import load_array_pickle
from .file_checksum import verify_file


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a file of either engine, of Detectron2's model zoo, or of Caffe2; the weights are under ``model``.

    First the file is compared with its checksums, see :func:`verify_file`.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file type is unknown, or the file is damaged, would run code, or holds something else than
            tensors by name.
    """
    suffix = os.path.splitext(path)[1]
    readers = {".pth": _read_torch, ".pt": _read_torch, ".pkl": _read_pickle, ".safetensors": _read_safetensors}
    if suffix not in readers:
        raise ValueError(f"{path}: unknown kind of checkpoint {suffix!r}; legal: .pth .pt .safetensors .pkl")
    verify_file(path)
    checkpoint = readers[suffix](path)
    _check_weights(checkpoint["model"], path)
    return checkpoint


def _check_weights(weights: Any, path: str) -> None:
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds a {type(weights).__name__} of weights; expected a dict of tensors by name")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, (torch.Tensor, np.ndarray)):
            raise ValueError(
                f"{path} holds a {type(value).__name__} under {name!r} among its weights; expected tensors by name, at "
                "the top level or under 'model'"
            )


def _read_safetensors(path: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {"model": load_file(path)}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no file of safetensors: {error}. Copy or download it again") from error


def _read_torch(path: str) -> dict[str, Any]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # any type: it depends on where the file is damaged
        raise ValueError(
            f"{path} cannot be read as a checkpoint of tensors and plain values: {error}\n"
            "The file is damaged, or it holds pickled objects, which could run code. In the second case, "
            "if you trust its author, load it elsewhere with torch.load(..., weights_only=False) and "
            "save its state dict alone."
        ) from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}; expected a dict of tensors by name")
    return data if "model" in data else {"model": data}


def read_checkpoint_together(path: str, all_gather: Callable[[Any], list]) -> dict[str, Any]:
    """:func:`read_checkpoint` in every process of a job: if one of them cannot read the file, all raise.

    Without that, the others would wait for it in the next exchange.

    Args:
        path: the file, as this process sees it.
        all_gather: returns the objects that the processes pass to it, by rank: the engine's ``comm.all_gather``.

    Raises:
        Exception: as :func:`read_checkpoint`, in a process that cannot read the file.
        RuntimeError: another process cannot read it.
    """
    return together(lambda: read_checkpoint(path), f"checkpoint {path} cannot be read", all_gather)


def together(action: Callable[[], Any], problem: str, all_gather: Callable[[Any], list]) -> Any:
    """Call ``action`` in every process, and return its result; if it fails in one process, it fails in all.

    Args:
        action: takes no part in exchanges between the processes.
        problem: begins the error of the processes in which it does not fail itself.
        all_gather: see :func:`read_checkpoint_together`.
    """
    result = failure = None
    try:
        result = action()
    except Exception as error:  # raised again below, after the other processes know
        failure = error
    messages = all_gather(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    failed = [f"rank {rank}: {message}" for rank, message in enumerate(messages) if message is not None]
    if failed:
        raise RuntimeError(f"{problem} by another process of the job: {'; '.join(failed)}")
    return result


def _read_pickle(path: str) -> dict[str, Any]:
    """Reads a file of Detectron2's model zoo as it is, and a Caffe2 file as ``{"model", "__author__", ...}``."""
    with open(path, "rb") as file:
        try:
            data = load_array_pickle(file)
        except Exception as error:  # any type: it depends on where the file is damaged
            raise ValueError(
                f"{path} is refused: {error}. A .pkl may hold only numpy arrays and plain containers, since "
                "anything else could run code; if you trust the file, convert it elsewhere to .pth or .safetensors"
            ) from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}; expected a dict of arrays by name")
    if "model" in data:
        return data
    blobs = data.get("blobs", data)
    weights = {name: value for name, value in blobs.items() if isinstance(value, np.ndarray)}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

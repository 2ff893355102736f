"""The files of an incident: facts as JSON, batch and weights as tensors and plain values. Reading them runs no code.

``incident.json`` and ``weights.pth`` come from the main process; ``batch.pt`` too, and ``batch_rank1.pt`` and so on
from the others, each with the images, random numbers and buffers of its own process. ``config.yaml`` is the config.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retinanet_ext.d2 import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from retinanet_ext.machine.atomic_file import atomic_file, write_atomically

FACTS, WEIGHTS, CONFIG = "incident.json", "weights.pth", "config.yaml"


def batch_file(rank: int) -> str:
    """The name of the file with the batch of a process."""
    return "batch.pt" if rank == 0 else f"batch_rank{rank}.pt"


def incident_name(folder: Path, iteration: int) -> str:
    """``iter_0000123``; with ``_2`` and so on where a run came to that iteration before."""
    name, number = f"iter_{iteration:07d}", 2
    while (folder / name).exists():
        name = f"iter_{iteration:07d}_{number}"
        number += 1
    return name


def write_json(path: Path, facts: Any) -> None:
    """Write facts; a number that is not finite is written as the text nan, inf or -inf."""
    write_atomically(path, json.dumps(_without_nonfinite(facts), indent=2, allow_nan=False) + "\n")


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write a dict of tensors and plain values."""
    with atomic_file(path) as file:
        torch.save(content, file)


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of ``incident.json``.

    Raises:
        ValueError: the folder is no incident, or the file is damaged.
    """
    path = folder / FACTS
    if not path.is_file():
        raise ValueError(f"{folder} holds no {FACTS}; name a folder such as OUTPUT_DIR/incidents/iter_0000123")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        _check_facts(facts)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as an incident: {type(error).__name__}: {error}") from error
    return facts


def _check_facts(facts: dict[str, Any]) -> None:
    """Read what a replay needs, so that a damaged file fails here."""
    run = facts["step"]
    int(facts["iteration"]), str(facts["kind"]), str(run["device"])
    if run["precision"] not in (None, "float16", "bfloat16") or int(run["accumulate"]) < 1:
        raise ValueError(f"step is {run}")
    float(run["loss_scale"])
    for rank in facts["ranks"]:
        for value in rank["losses"].values():
            float(value)
        for found, keys in ((rank["first_output"], ("module", "level")), (rank.get("first_gradient"), ("module",))):
            if found is not None:
                [found[key] for key in keys]


def read_tensors(path: Path) -> dict[str, Any]:
    """What :func:`write_tensors` wrote.

    Raises:
        ValueError: the file is missing or damaged, or would run code.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected a dict")
    except Exception as error:  # any type: it depends on where the file is damaged
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    return content


def encode(value: Any) -> Any:
    """A batch as tensors and plain values; structures become dicts with the entry ``kind``."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray):
        return {"kind": "array", "value": torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Instances):
        return {"kind": "Instances", "size": list(value.image_size), "value": encode(value.get_fields())}
    for kind in (Boxes, BitMasks, Keypoints):
        if isinstance(value, kind):
            return {"kind": kind.__name__, "value": value.tensor.detach().cpu().clone()}
    if isinstance(value, PolygonMasks):
        return {"kind": "PolygonMasks", "value": encode(value.polygons)}
    if isinstance(value, dict):
        return {"kind": "dict", "value": [[encode(key), encode(entry)] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        return [encode(entry) for entry in value]
    return {"kind": "not saved", "value": f"{type(value).__name__}: {value}"[:200]}


def decode(value: Any) -> Any:
    """The batch that :func:`encode` made plain; tuples come back as lists.

    Raises:
        ValueError: an unknown kind.
    """
    if isinstance(value, list):
        return [decode(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    kind, content = value.get("kind"), value.get("value")
    if kind == "Instances":
        instances = Instances(tuple(value["size"]))
        for name, entry in decode(content).items():
            instances.set(name, entry)
        return instances
    makers = {
        "array": lambda tensor: tensor.numpy(),
        "Boxes": Boxes, "BitMasks": BitMasks, "Keypoints": Keypoints,
        "PolygonMasks": lambda polygons: PolygonMasks(decode(polygons)),
        "dict": lambda pairs: {decode(key): decode(entry) for key, entry in pairs},
        "not saved": lambda text: text,
    }  # fmt: skip
    if kind not in makers:
        raise ValueError(f"unknown kind {kind!r} in the batch; legal: Instances, {', '.join(makers)}")
    return makers[kind](content)


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nonfinite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nonfinite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

"""Computes the step of a saved incident once more, from its files alone, and compares it with what the run found."""

import math
from pathlib import Path
from typing import Any

import torch

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import EventStorage, build_model
from retinanet_ext.machine.devices import check_device

from ..first_model import attach_v1
from . import incident_files
from .diagnosis import StepAgain
from .incident_text import finding_lines
from .state_before_step import RandomState


def replay_incident(folder: str | Path, device: str | None = None) -> tuple[bool, str]:
    """Compute the forward pass, and for a gradient the backward pass, of each process of the incident.

    Parts that the config does not name (a loss or hook that the run's own script added) are not there: what they did
    is not reproduced. In a job of several processes each batch is computed by itself.

    Args:
        folder: ``OUTPUT_DIR/incidents/iter_0000123``.
        device: the device to compute on; None: the run's, or the CPU where there is no CUDA.

    Returns:
        Whether the same losses are not finite and the same module made them so, in every process where it was seen;
        and a report.

    Raises:
        ValueError: the folder is no incident, or a file of it is missing, damaged or would run code.
    """
    folder = Path(folder)
    facts = incident_files.read_facts(folder)
    run = facts["step"]
    wanted = device or (run["device"] if torch.cuda.is_available() else "cpu")
    opts = ["MODEL.DEVICE", wanted, "MODEL.WEIGHTS", ""]
    cfg = load_config(str(folder / incident_files.CONFIG), opts, datasets=False)
    check_device(cfg.MODEL.DEVICE)
    model = build_model(cfg)
    attach_v1(cfg, model)
    weights = incident_files.read_tensors(folder / incident_files.WEIGHTS).get("model")
    try:
        model.load_state_dict(weights)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(f"{folder / incident_files.WEIGHTS} does not fit the config beside it: {error}") from error
    model.train()
    found = []
    with EventStorage(facts["iteration"]):
        for rank in range(len(facts["ranks"])):
            path = folder / incident_files.batch_file(rank)
            found.append(_compute(model, path, run, gradients=facts["kind"] == "gradient"))
    same = _agrees(facts["ranks"], found)
    return same, "\n".join(_report(facts, found, same))


def _compute(model: torch.nn.Module, path: Path, run: dict[str, Any], *, gradients: bool) -> dict[str, Any]:
    saved = incident_files.read_tensors(path)
    try:
        micro_batches = incident_files.decode(saved["micro_batches"])
        random_state = RandomState.from_plain(saved["random"], next(model.parameters()).device)
        buffers = dict(model.named_buffers())
        for name, value in saved["buffers"].items():
            if buffers[name].shape != value.shape:
                raise ValueError(f"buffer {name} has shape {tuple(value.shape)}, not {tuple(buffers[name].shape)}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold the batch of a step: {type(error).__name__}: {error}") from error

    @torch.no_grad()
    def restore() -> None:
        random_state.restore()
        for name, value in saved["buffers"].items():
            buffers[name].copy_(value)

    again = StepAgain(
        model, micro_batches, restore, accumulate=run["accumulate"], loss_scale=run["loss_scale"],
        precision=getattr(torch, run["precision"]) if run["precision"] in ("float16", "bfloat16") else None,
    )  # fmt: skip
    return again.examine(gradients=gradients)


def _agrees(seen: list[dict[str, Any]], found: list[dict[str, Any]]) -> bool:
    """Whether each process finds again what it saw; a process that saw nothing has nothing to find."""
    guilty = [(before, now) for before, now in zip(seen, found) if _signature(before) != _NOTHING]
    return bool(guilty) and all(_signature(before) == _signature(now) for before, now in guilty)


_NOTHING = (frozenset(), None, None)


def _signature(facts: dict[str, Any]) -> tuple:
    """Losses that are not finite, the module that made the output, and the one that made the gradient."""
    bad = frozenset(name for name, value in facts["losses"].items() if not math.isfinite(float(value)))
    first, gradient = facts["first_output"], facts.get("first_gradient")
    return bad, first and (first["module"], first["level"]), gradient and (gradient["module"], gradient["level"])


def _report(facts: dict[str, Any], found: list[dict[str, Any]], same: bool) -> list[str]:
    lines = [f"incident of iteration {facts['iteration']}, a {facts['kind']} that is not finite; computed again:"]
    for rank, now in enumerate(found):
        where = f"rank {rank}: " if len(found) > 1 else ""
        lines.append(where + ", ".join(f"{name} = {value}" for name, value in now["losses"].items()))
    lines += finding_lines(found)
    if same:
        return [*lines, "Reproduced: the same losses, modules and levels."]
    return [*lines, "Not reproduced. The run found:", *(finding_lines(facts["ranks"]) or ["nothing in a module"])]

"""Computes a failed step once more, to find the module, the level and the loss where it first is not finite."""

import math
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from .module_trace import ModuleTrace, all_finite, summary


class StepAgain:
    """The forward and backward pass of a batch, computed as :class:`TrainStep` does, but without other processes.

    The model's own exchanges (numbers of foreground anchors, joint batches) take place: all processes make the same
    calls. Gradients are left empty.
    """

    def __init__(
        self,
        model: nn.Module,
        micro_batches: Sequence[list[dict]],
        restore: Callable[[], None],
        *,
        precision: torch.dtype | None = None,
        accumulate: int = 1,
        loss_scale: float = 1.0,
    ):
        """
        Args:
            model: not wrapped in ``DistributedDataParallel``, with the weights from before the step.
            micro_batches: the batch, as it was computed.
            restore: sets random numbers and buffers to their state before the step.
            precision, accumulate: as in :class:`TrainStep`.
            loss_scale: the factor of the gradient scaler.
        """
        self._model, self._micro_batches, self._restore = model, micro_batches, restore
        self._precision, self._accumulate, self._loss_scale = precision, accumulate, loss_scale
        proposals = getattr(model, "proposal_generator", None)
        self._level_names = list(getattr(model, "head_in_features", None) or getattr(proposals, "in_features", ()))
        self._device = next(model.parameters()).device

    def examine(self, *, gradients: bool) -> dict[str, Any]:
        """What was computed, and where it first was not finite.

        Args:
            gradients: all losses are finite, and a gradient is not: follow the backward pass too.

        Returns:
            ``losses`` of this process, ``first_output``, ``levels`` (see :class:`ModuleTrace`), ``losses_in_float32``
            (None if the step was in float32), and with ``gradients`` also ``first_gradient``, ``gradient_of_loss``
            (whether the gradient of each loss alone is finite).
        """
        try:
            with ModuleTrace(self._model, self._level_names, gradients=gradients) as trace:
                losses = self._run(self._precision, backward=gradients)
            facts = {"losses": losses, "first_output": trace.first_output, "levels": trace.levels}
            facts["losses_in_float32"] = None
            if self._precision is not None:
                with torch.no_grad():
                    facts["losses_in_float32"] = self._run(None, backward=False)
            if gradients:
                facts["first_gradient"] = trace.first_gradient()
                facts["gradient_of_loss"] = {name: self._has_finite_gradient(name) for name in losses}
            return facts
        finally:
            self._restore()
            self._clear()

    def _run(self, precision: torch.dtype | None, *, backward: bool, only: str | None = None) -> dict[str, float]:
        """The losses; after it the parameters hold the gradients, of the loss ``only`` if it is given."""
        self._restore()
        self._clear()
        totals: dict[str, float] = {}
        as_one_batch = self._model.as_one_batch(self._micro_batches) if self._accumulate > 1 else nullcontext()
        with as_one_batch:
            for micro_batch in self._micro_batches:
                with torch.autocast(self._device.type, dtype=precision, enabled=precision is not None):
                    losses = self._model(micro_batch)
                if isinstance(losses, torch.Tensor):
                    losses = {"total_loss": losses}
                for name, loss in losses.items():
                    totals[name] = totals.get(name, 0.0) + float(loss.detach())
                wanted = sum(loss for name, loss in losses.items() if only in (None, name))
                if backward and wanted.requires_grad:
                    (wanted * self._loss_scale).backward()
        return totals

    def _has_finite_gradient(self, loss: str) -> bool:
        self._run(self._precision, backward=True, only=loss)
        return all_finite([parameter.grad for parameter in self._model.parameters() if parameter.grad is not None])

    def _clear(self) -> None:
        for parameter in self._model.parameters():
            parameter.grad = None


def weights_summary(model: nn.Module) -> dict[str, Any]:
    """How many weights and buffers are not finite, the first of them, and the largest weight with its name."""
    bad, largest, largest_name, numbers = [], 0.0, None, 0
    parameters = {name for name, _ in model.named_parameters()}
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        found = summary(value)
        numbers += found["nan"] + found["infinite"]
        if found["nan"] + found["infinite"]:
            bad.append(name)
        elif name in parameters and found["largest"] is not None and found["largest"] > largest:
            largest, largest_name = found["largest"], name
    return {
        "nonfinite_tensors": len(bad),
        "nonfinite_numbers": numbers,
        "first_nonfinite": bad[0] if bad else None,
        "largest": largest,
        "largest_name": largest_name,
    }


def norms_by_part(norms: dict[str, float]) -> dict[str, float]:
    """The gradient norm of each part of the model (the stages of a ResNet are parts of their own), and ``total``."""
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        part = re.match(r"(backbone\.bottom_up\.[^.]+|[^.]+(\.[^.]+)?)", name)[0]
        part = re.sub(r"\.fpn_(lateral|output)\d$", ".fpn", part)
        squares[part] = squares.get(part, 0.0) + norm * norm
    parts = {part: math.sqrt(square) if square == square else math.nan for part, square in squares.items()}
    return {"total": math.hypot(*norms.values()) if norms else 0.0, **parts}

"""Watches the modules of a model for the first output, and the first gradient, that is not finite."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn


def tensors_in(value: Any, depth: int = 4) -> Iterator[torch.Tensor]:
    """The floating-point tensors, of any shape ``(...)``, in containers, dataclasses and the engine's structures."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif depth == 0:
        return
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from tensors_in(entry, depth - 1)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from tensors_in(entry, depth - 1)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name), depth - 1)
    elif hasattr(value, "get_fields"):  # Instances
        yield from tensors_in(value.get_fields(), depth - 1)
    elif hasattr(value, "tensor"):  # Boxes, ImageList
        yield from tensors_in(value.tensor, depth - 1)


def summary(value: Any) -> dict[str, Any]:
    """How many numbers are NaN and infinite, how many there are, and the largest finite magnitude (None: none is)."""
    counts, largest = Counter(), None
    for tensor in tensors_in(value):
        tensor = tensor.detach()
        finite = tensor[tensor.isfinite()]
        counts["nan"] += int(tensor.isnan().sum())
        counts["infinite"] += int(tensor.isinf().sum())
        counts["numbers"] += tensor.numel()
        if finite.numel():
            largest = max(largest or 0.0, float(finite.abs().max()))
    return {"nan": counts["nan"], "infinite": counts["infinite"], "numbers": counts["numbers"], "largest": largest}


def all_finite(value: Any) -> bool:
    """Whether every floating-point tensor in ``value`` is finite."""
    return all(bool(tensor.detach().isfinite().all()) for tensor in tensors_in(value))


class ModuleTrace:
    """Use as a context manager around a forward pass and, if wanted, its backward pass.

    Modules are checked in the order in which they finish, inner ones first; the model itself, named "", last.

    Attributes:
        first_output: where a value was first not finite: ``module``, ``type``, ``call`` (its calls counted from 1),
            ``level`` (of the pyramid; None if it has none), ``before`` (the module inside it that saw the value first;
            None if the output itself showed it), ``input_is_finite`` (False: the inputs of the model were not),
            ``weights_are_finite``, ``output`` and ``largest_input``. None if all outputs are finite.
        levels: a :func:`summary` of maps, logits and deltas by level of the pyramid, as far as modules return them.
    """

    def __init__(self, model: nn.Module, level_names: Sequence[str] = (), *, gradients: bool = False):
        """
        Args:
            model: not wrapped in ``DistributedDataParallel``.
            level_names: the levels that a dense head sees, in the order in which it computes them.
            gradients: watch the backward pass too. Costs a check for every output and every parameter.
        """
        self._model, self._level_names, self._gradients = model, list(level_names), gradients
        self._calls: Counter[str] = Counter()
        self._bad_gradients: list[tuple] = []
        # Kept, so that no other tensor gets the id of one of them.
        self._outputs: dict[int, tuple[torch.Tensor, str, int]] = {}
        self._readers: dict[int, list[tuple[str, int]]] = {}
        self._read_tensors: list[torch.Tensor] = []
        self._handles: list = []
        # The modules that run now, outer ones first: name, module, call, inputs, whether these are finite.
        self._running: list[tuple[str, nn.Module, int, tuple, bool]] = []
        self.first_output: dict[str, Any] | None = None
        self.levels: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "ModuleTrace":
        for name, module in self._model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._begin_hook(name)))
            self._handles.append(module.register_forward_hook(self._forward_hook(name)))
        if self._gradients:
            for name, parameter in self._model.named_parameters():
                if parameter.requires_grad:
                    self._handles.append(parameter.register_hook(self._gradient_hook("parameter", name, 0)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def first_gradient(self) -> dict[str, Any] | None:
        """Where the backward pass first got a gradient that is not finite.

        Returns:
            ``module``: the module whose backward pass produced it (its own gradient was still finite), or what it was
            computed for; ``call``, ``level``; ``where``, in words; ``gradient``, a :func:`summary`. None: all finite.
        """
        if not self._bad_gradients:
            return None
        kind, name, call, key, found = self._bad_gradients[0]
        if kind == "parameter":
            module = name.rpartition(".")[0]
            where = f"the gradient of {name}"
            return {"module": module, "call": None, "level": None, "where": where, "gradient": found}
        bad_outputs = {(entry[1], entry[2]) for entry in self._bad_gradients if entry[0] == "output"}
        makers = [reader for reader in self._readers.get(key, []) if reader not in bad_outputs]
        if makers:
            name, call = makers[-1]  # the innermost of modules that share their input
            where = f"the backward pass of {name}, from a finite gradient of its output"
        else:
            where = f"the backward pass of what follows {name} up to the losses"
        return {"module": name, "call": call, "level": self._level(name, call), "where": where, "gradient": found}

    def _forward_hook(self, name: str):
        def check(module: nn.Module, args: tuple, output: Any) -> None:
            call = self._calls[name]
            if self._gradients and name:
                for tensor in tensors_in(output):
                    if tensor.requires_grad:
                        self._outputs[id(tensor)] = tensor, name, call
                        tensor.register_hook(self._gradient_hook("output", name, call, id(tensor)))
            self._note_levels(output)
            if self.first_output is None and not all_finite(output):
                self.first_output = self._describe(output)
            self._running.pop()

        return check

    def _begin_hook(self, name: str):
        def note(module: nn.Module, args: tuple) -> None:
            self._calls[name] += 1
            is_finite = self.first_output is None and all_finite(args)
            self._running.append((name, module, self._calls[name], args, is_finite))
            for tensor in tensors_in(args) if self._gradients and name else ():
                if tensor.requires_grad:
                    self._readers.setdefault(id(tensor), []).append((name, self._calls[name]))
                    self._read_tensors.append(tensor)

        return note

    def _gradient_hook(self, kind: str, name: str, call: int, key: int = 0):
        def check_gradient(gradient: torch.Tensor) -> None:
            """``gradient``: of any shape ``(...)``."""
            if not all_finite(gradient):
                self._bad_gradients.append((kind, name, call, key, summary(gradient)))

        return check_gradient

    def _describe(self, output: Any) -> dict[str, Any]:
        """The innermost running module with finite inputs made the value; if none has, it came with the batch."""
        finished = self._running[-1][0]
        outermost = self._running[min(1, len(self._running) - 1)]
        guilty = next((running for running in reversed(self._running) if running[-1]), outermost)
        name, module, call, args, input_is_finite = guilty
        return {
            "module": name,
            "type": type(module).__name__,
            "call": call,
            "level": self._level(name, call),
            "before": None if name == finished or not input_is_finite else finished,
            "input_is_finite": input_is_finite,
            "weights_are_finite": all_finite(list(module.parameters())),
            "output": summary(output),
            "largest_input": summary(args)["largest"],
        }

    def _level(self, name: str, call: int) -> str | None:
        """The level of the pyramid that a call of a module belongs to."""
        fpn = re.search(r"\.fpn_(?:output|lateral)(\d)\b", name) or re.search(r"\.top_block\.p(\d)\b", name)
        if fpn:
            return f"p{fpn[1]}"
        if re.search(r"(^|\.)(rpn_)?head\.", name) and self._level_names:
            return self._level_names[(call - 1) % len(self._level_names)]
        return None

    def _note_levels(self, output: Any) -> None:
        """Summaries of a dict of maps by level, or of a head's lists of logits and deltas."""
        if isinstance(output, Mapping) and output and set(output) & set(self._level_names):
            rows = {name: {"maps": value} for name, value in output.items()}
        elif _are_lists(output, len(self._level_names)):
            rows = {name: {"logits": output[0][i], "deltas": output[1][i]} for i, name in enumerate(self._level_names)}
        else:
            return
        for level, values in rows.items():
            entry = self.levels.setdefault(level, {})
            for kind, value in values.items():
                found = summary(value)
                if kind not in entry or _badness(found) > _badness(entry[kind]):  # of the worst micro-batch
                    entry[kind] = found


def _are_lists(output: Any, length: int) -> bool:
    """Whether a dense head returned logits and deltas, a list of each with an entry for every level."""
    is_pair = isinstance(output, tuple) and len(output) == 2 and length > 0
    return is_pair and all(isinstance(part, list) and len(part) == length for part in output)


def _badness(found: dict[str, Any]) -> tuple[int, float]:
    return found["nan"] + found["infinite"], found["largest"] or 0.0

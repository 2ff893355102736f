"""What a step needs to be computed once more, besides batch and weights: random numbers and the model's buffers."""

import random
from typing import Any

import numpy as np
import torch
from torch import nn


class RandomState:
    """The states of the random numbers of Python, NumPy, torch on the CPU, and torch on the model's CUDA device."""

    def __init__(self, device: torch.device):
        self._device = device
        self.python, self.numpy = random.getstate(), np.random.get_state()
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Go back to these states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(self.cuda, self._device)

    def as_plain(self) -> dict[str, Any]:
        """The states as tensors and plain values, which ``torch.load`` reads without running code."""
        kind, keys, *rest = self.numpy
        numbers = torch.from_numpy(keys.astype(np.int64))
        return {"python": self.python, "numpy": [kind, numbers, *rest], "torch": self.torch, "cuda": self.cuda}

    @classmethod
    def from_plain(cls, states: dict[str, Any], device: torch.device) -> "RandomState":
        """Restores :meth:`as_plain`. On another kind of device than before, CUDA's numbers are those of now."""
        random_state = cls(device)
        version, numbers, gauss = states["python"]
        kind, keys, *rest = states["numpy"]
        random_state.python = (version, tuple(numbers), gauss)
        random_state.numpy = (kind, keys.numpy().astype(np.uint32), *rest)
        random_state.torch = states["torch"]
        if states["cuda"] is not None and device.type == "cuda":
            random_state.cuda = states["cuda"]
        return random_state


class StateBeforeStep:
    """The random numbers and the buffers of a model before a step; a forward pass may change both.

    Statistics of batch norms are copied before each step, other buffers only if they have changed since the step
    before. Frozen statistics so cost nothing.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        """``model``: the one below ``DistributedDataParallel``. Nothing is copied yet."""
        self._device = device
        self._places = [
            (module, name, f"{prefix}.{name}" if prefix else name)
            for prefix, module in model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._seen: dict[str, tuple[torch.Tensor, int]] = {}
        self._copies: dict[str, torch.Tensor] = {}
        self.random: RandomState | None = None

    @torch.no_grad()
    def record(self) -> None:
        """Take the state of now, just before the forward pass."""
        self.random = RandomState(self._device)
        changed: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for module, name, full_name in self._places:
            buffer = module._buffers[name]
            seen, version = self._seen.get(full_name, (None, -1))
            if seen is buffer and version == buffer._version and not _changes_unseen(module):
                continue
            if seen is not buffer:
                self._copies[full_name] = buffer.clone()
            else:
                targets, sources = changed.setdefault(buffer.dtype, ([], []))
                targets.append(self._copies[full_name])
                sources.append(buffer)
            self._seen[full_name] = buffer, buffer._version
        for targets, sources in changed.values():
            torch._foreach_copy_(targets, sources)

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the recorded random numbers and buffers."""
        self.random.restore()
        for module, name, full_name in self._places:
            buffer, version = self._seen[full_name]
            if module._buffers[name] is not buffer or buffer._version != version or _changes_unseen(module):
                buffer.copy_(self._copies[full_name])
                module._buffers[name] = buffer
                self._seen[full_name] = buffer, buffer._version

    def buffers(self) -> dict[str, torch.Tensor]:
        """The recorded buffers that checkpoints hold too, by name, of any shape ``(...)``, on the CPU."""
        saved = [full for module, name, full in self._places if name not in module._non_persistent_buffers_set]
        return {name: self._copies[name].cpu() for name in saved}


def _changes_unseen(module: nn.Module) -> bool:
    """Whether a forward pass changes buffers of the module without counting it as a change: batch norm's kernels."""
    return isinstance(module, nn.modules.batchnorm._NormBase)

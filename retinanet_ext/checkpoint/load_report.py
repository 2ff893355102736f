"""What of a file arrived in a model, and what must not arrive there."""

from collections import Counter
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from torch import nn

from .checkpoint_writing import first_nonfinite

# The config determines these; old files lack them.
_FROM_CONFIG = ("pixel_mean", "pixel_std")


class UnusableWeights(ValueError):
    """A file that is whole, with weights that no model can use, or that this model cannot."""


class LoadReport(NamedTuple):
    """Names of parameters and buffers, from the model's point of view; ``unexpected`` ones are in the file only."""

    loaded: list[str]
    missing: list[str]
    wrong_shape: list[str]
    unexpected: list[str]

    def table(self) -> str:
        """Counts by part of the model (the first two components of a name)."""
        columns = {name: Counter(_part(key) for key in keys) for name, keys in self._asdict().items()}
        parts = sorted(set().union(*columns.values()))
        rows = [[part, *(counts[part] for counts in columns.values())] for part in parts]
        return tabulate(rows, headers=["part", *(name.replace("_", " ") for name in columns)], tablefmt="simple")


def refuse_unusable(model: nn.Module, weights: dict[str, Any], path: str) -> None:
    """Refuse values that a model must not get; entries that the model does not have are ignored.

    Args:
        weights: tensors of any shape, by the model's names.

    Raises:
        UnusableWeights: names the first tensor of another kind of number than the model's, such as integers for a
            weight, or with NaN or infinite values.
    """
    own = model.state_dict()
    arriving = {name: value for name, value in weights.items() if isinstance(own.get(name), torch.Tensor)}
    for name, value in arriving.items():
        if _kind(value) != _kind(own[name]):
            raise UnusableWeights(
                f"{path} holds numbers of type {value.dtype} for {name}; the model has {own[name].dtype}. The file is "
                "damaged or belongs to another kind of model"
            )
    bad = first_nonfinite(arriving)
    if bad is not None:
        raise UnusableWeights(
            f"{path} holds NaN or infinite weights, first in {bad}. The run that wrote it had diverged: use an earlier "
            "checkpoint or model_best.pth of that run, or train again with a lower SOLVER.BASE_LR"
        )


def refuse_incomplete(model: nn.Module, report: LoadReport, path: str) -> None:
    """Refuse a model of which a parameter or a saved buffer did not come from the file.

    Buffers that a module fills in itself are not missing.

    Raises:
        UnusableWeights: names what is missing.
    """
    loaded, not_loaded = set(report.loaded), {*report.missing, *report.wrong_shape} - {*_FROM_CONFIG}
    absent = [name for name, _ in model.named_parameters() if name not in loaded]
    absent += [name for name, _ in model.named_buffers() if name in not_loaded]
    if absent:
        raise UnusableWeights(
            f"{path} does not fit the model of this config; not loaded: {', '.join(absent[:10])} ({len(absent)} in "
            "all). Use the config that the checkpoint was trained with."
        )


def _kind(value: torch.Tensor) -> str:
    if value.is_floating_point():
        return "float"
    return "complex" if value.is_complex() else "bool" if value.dtype == torch.bool else "integer"


def _part(key: str) -> str:
    return ".".join(key.split(".")[:2])

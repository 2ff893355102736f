"""Loading weights, with a report of what was and was not loaded."""

import logging
from collections import Counter
from typing import NamedTuple

from tabulate import tabulate
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from retinanet_ext.d2 import DetectionCheckpointer

logger = logging.getLogger(__name__)


class LoadReport(NamedTuple):
    """Names of parameters and buffers, from the model's point of view; ``unexpected`` exist in the file only."""

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


class _ReportingCheckpointer(DetectionCheckpointer):
    """Keeps what the engine's checkpointer knows about keys that did not fit."""

    incompatible = None

    def _load_model(self, checkpoint):
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


def load_weights(model: nn.Module, path: str, backbone: str = "backbone") -> LoadReport | None:
    """Load model weights from ``path`` and log a report.

    Args:
        model: in place; a distributed wrapper is seen through.
        path: file or URL that the engine's checkpointer reads; empty: nothing happens.
        backbone: attribute of the model that must not come out of this with nothing loaded.

    Returns:
        The report; None for an empty path.

    Raises:
        ValueError: nothing of the backbone was loaded, which is never what was meant. (A head that does not fit is
            normal: another number of classes.)
    """
    if not path:
        return None
    checkpointer = _ReportingCheckpointer(model)
    checkpointer.load(path)
    bare_model = model.module if isinstance(model, DistributedDataParallel) else model
    report = _make_report(bare_model, checkpointer.incompatible)
    if report.missing or report.wrong_shape or report.unexpected:
        logger.warning("weights from %s fit in part:\n%s", path, report.table())
        logger.info("not loaded: %s", ", ".join(report.missing + report.wrong_shape) or "-")
        logger.info("in the file only: %s", ", ".join(report.unexpected) or "-")
    else:
        logger.info("loaded all %d entries from %s", len(report.loaded), path)
    if not any(key.startswith(backbone + ".") for key in report.loaded):
        raise ValueError(
            f"{path} holds nothing that fits the model's {backbone}; training would start from noise without saying "
            f"so.\n{report.table()}\nUse weights of the configured architecture (MODEL.RESNETS.DEPTH and others), or "
            "MODEL.WEIGHTS '' to train from scratch."
        )
    return report


def _make_report(model: nn.Module, incompatible) -> LoadReport:
    wrong_shape = [entry[0] for entry in incompatible.incorrect_shapes]
    missing = [key for key in incompatible.missing_keys if key not in wrong_shape]
    absent = {*wrong_shape, *missing}
    return LoadReport(
        loaded=[key for key in model.state_dict() if key not in absent],
        missing=missing,
        wrong_shape=wrong_shape,
        unexpected=list(incompatible.unexpected_keys),
    )


def _part(key: str) -> str:
    return ".".join(key.split(".")[:2])

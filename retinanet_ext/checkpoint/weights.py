"""Loading weights, with a report of what was and was not loaded."""

import logging
from collections import Counter
from typing import NamedTuple

from tabulate import tabulate
from torch import nn

from retinanet_ext.machine.processes import bare_model

from .checked_checkpointer import CheckedCheckpointer

logger = logging.getLogger(__name__)


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


class _ReportingCheckpointer(CheckedCheckpointer):
    """Keeps the engine's record of keys that did not fit."""

    incompatible = None

    def _load_model(self, checkpoint):
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


def load_weights(model: nn.Module, path: str, *, backbone: str = "backbone", strict: bool = False) -> LoadReport | None:
    """Load model weights from ``path`` and log a report.

    Args:
        model: changed in place; may be wrapped in ``DistributedDataParallel``.
        path: file or URL that the engine's checkpointer reads; empty: nothing happens.
        backbone: attribute of the model that must get at least one parameter from the file.
        strict: for inference: every parameter must come from the file.

    Returns:
        The report; None for an empty path.

    Raises:
        FileNotFoundError: no such file (on Detectron2 a ValueError).
        ValueError: the file cannot be read, or is a pickle that holds more than arrays and plain containers and could
            run code; no parameter of the backbone was loaded, which is never intended (a head that does not fit is
            normal in training with another number of classes); with ``strict``, a parameter was not loaded, or the
            path is empty.
    """
    if not path:
        if strict:
            raise ValueError("MODEL.WEIGHTS is empty; name the checkpoint of a trained model")
        return None
    model = bare_model(model)
    report = _load(model, path)
    if report.missing or report.wrong_shape or report.unexpected:
        logger.warning("weights from %s fit only in part:\n%s", path, report.table())
        logger.info("not loaded: %s", ", ".join(report.missing + report.wrong_shape) or "-")
        logger.info("in the file only: %s", ", ".join(report.unexpected) or "-")
    else:
        logger.info("loaded all %d entries from %s", len(report.loaded), path)
    _refuse_useless(model, report, path, backbone)
    if strict:
        _refuse_incomplete(model, report, path)
    return report


def _load(model: nn.Module, path: str) -> LoadReport:
    checkpointer = _ReportingCheckpointer(model)
    # Names that reach the model after the engine's renaming. A buffer that a module fills in itself is then neither
    # missing nor loaded.
    arrived = set()
    hook = model.register_load_state_dict_pre_hook(lambda module, state_dict, *rest: arrived.update(state_dict))
    try:
        checkpointer.load(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # any type: it depends on where the file is damaged
        # The errors of a download are OSErrors.
        if "://" in path and isinstance(error, OSError):
            remedy = "Without a connection, bring the file by other means and set MODEL.WEIGHTS to its path."
        else:
            remedy = (
                "MODEL.WEIGHTS must name a checkpoint (.pth, .pt, .safetensors, .pkl): tensors by name, at the top "
                "level or under 'model', and no code."
            )
        raise ValueError(f"weights {path} cannot be loaded: {type(error).__name__}: {error}\n{remedy}") from error
    finally:
        hook.remove()
    incompatible = checkpointer.incompatible
    wrong_shape = [entry[0] for entry in incompatible.incorrect_shapes]
    return LoadReport(
        loaded=[key for key in model.state_dict() if key in arrived],
        missing=[key for key in incompatible.missing_keys if key not in wrong_shape],
        wrong_shape=wrong_shape,
        unexpected=list(incompatible.unexpected_keys),
    )


def _refuse_useless(model: nn.Module, report: LoadReport, path: str, backbone: str) -> None:
    parameters = {name for name, _ in model.named_parameters() if name.startswith(backbone + ".")}
    if parameters and parameters.isdisjoint(report.loaded):
        raise ValueError(
            f"{path} holds nothing that fits the model's {backbone}; training would silently start from random "
            f"weights.\n{report.table()}\nUse weights of the configured architecture (MODEL.RESNETS.DEPTH and others), "
            "or MODEL.WEIGHTS '' to train from scratch."
        )


def _refuse_incomplete(model: nn.Module, report: LoadReport, path: str) -> None:
    absent = [name for name, _ in model.named_parameters() if name not in set(report.loaded)]
    if absent:
        raise ValueError(
            f"{path} does not fit the model of this config; not loaded: {', '.join(absent[:10])} ({len(absent)} in "
            "all). Use the config that the checkpoint was trained with."
        )


def _part(key: str) -> str:
    return ".".join(key.split(".")[:2])

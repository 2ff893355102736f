"""Loading weights, with a report of what was and was not loaded."""

import logging

from torch import nn

from retinanet_ext.machine.processes import bare_model

from .checked_checkpointer import CheckedCheckpointer
from .load_report import LoadReport, UnusableWeights, refuse_incomplete

logger = logging.getLogger(__name__)


def load_weights(model: nn.Module, path: str, *, backbone: str = "backbone", strict: bool = False) -> LoadReport | None:
    """Load model weights from ``path`` and log a report.

    Args:
        model: changed in place; may be wrapped in ``DistributedDataParallel``.
        path: file or URL that the engine's checkpointer reads; empty: nothing happens.
        backbone: attribute of the model that must get at least one parameter from the file.
        strict: for inference: every parameter, and every buffer that is saved, must come from the file.

    Returns:
        The report; None for an empty path.

    Raises:
        FileNotFoundError: no such file (on Detectron2 a ValueError).
        ValueError: the file cannot be read, or is a pickle that holds more than arrays and plain containers and could
            run code; no parameter of the backbone was loaded, which is never intended (a head that does not fit is
            normal in training with another number of classes); a weight is NaN, infinite, or no floating-point number;
            with ``strict``, a parameter or buffer was not loaded, or the path is empty.
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
        refuse_incomplete(model, report, path)
    return report


def _load(model: nn.Module, path: str) -> LoadReport:
    checkpointer = CheckedCheckpointer(model)
    try:
        rest = checkpointer.load(path)
    except (FileNotFoundError, UnusableWeights):
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
    _log_license(path, rest.get("provenance"))
    return checkpointer.report


def _log_license(path: str, provenance: object) -> None:
    """The licenses that this package wrote into the file; files of others have none."""
    if not isinstance(provenance, dict):
        return
    data = [entry for entry in provenance.get("data") or () if isinstance(entry, dict)]
    of_data = sorted({str(text) for entry in data for text in entry.get("licenses") or ()})
    logger.info(
        "license of the weights in %s: %s; of the data that trained them: %s", path,
        provenance.get("license") or "not stated (MODEL.LICENSE)", "; ".join(of_data) or "not stated",
    )  # fmt: skip


def _refuse_useless(model: nn.Module, report: LoadReport, path: str, backbone: str) -> None:
    parameters = {name for name, _ in model.named_parameters() if name.startswith(backbone + ".")}
    if parameters and parameters.isdisjoint(report.loaded):
        raise ValueError(
            f"{path} holds nothing that fits the model's {backbone}; training would silently start from random "
            f"weights.\n{report.table()}\nUse weights of the configured architecture (MODEL.RESNETS.DEPTH and others), "
            "or MODEL.WEIGHTS '' to train from scratch."
        )

"""A score threshold for each class: a number, names and numbers, a file, or those stored with the model."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from retinanet_ext.checkpoint.checkpoint_entries import read_entry
from retinanet_ext.evaluation.operating_thresholds import ENTRY, OperatingThresholds, check_threshold

FROM_MODEL = "model"
Thresholds = float | Mapping[str, float] | OperatingThresholds | str | os.PathLike
"""One number for all classes; class name -> number; what ``find_thresholds`` returns; a JSON file with one of these;
or ``"model"``, the thresholds stored in the checkpoint."""

logger = logging.getLogger(__name__)


def class_thresholds(given: Thresholds, class_names: Sequence[str], default: float, weights: str = "") -> list[float]:
    """One threshold for each of the K classes, 0 to 1.

    Args:
        given: see :data:`Thresholds`.
        class_names: of the K classes of the model.
        default: for classes without a threshold, which the log names.
        weights: the checkpoint, for ``"model"``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the checkpoint has no thresholds; unknown classes; a number that is no score.
    """
    if isinstance(given, (int, float)):
        check_threshold(given, "thresholds")
        return [float(given)] * len(class_names)
    source = "thresholds"
    if isinstance(given, (str, os.PathLike)):
        given, source = (_of_model(weights), weights) if given == FROM_MODEL else (_of_file(Path(given)), str(given))
    if isinstance(given, OperatingThresholds):
        given = {one.name: one.threshold for one in given.classes}
        missing = [name for name in class_names if name not in given]
        if missing:
            raise ValueError(
                f"{source}: the operating thresholds are of the classes {', '.join(given)}, but the model has also "
                f"{', '.join(missing)}; make them for this model: retinanet-ext thresholds RUN"
            )
    if not isinstance(given, Mapping):
        raise ValueError(f"{source}: thresholds are a number, or class names and numbers; found {given!r}")
    unknown = [name for name in given if name not in class_names]
    if unknown:
        raise ValueError(
            f"{source} has thresholds of unknown classes: {', '.join(map(str, unknown))}; the model has "
            f"{', '.join(class_names)}"
        )
    for name, value in given.items():
        check_threshold(value, f"{source}: class {name!r}", none=True)
    without = [name for name in class_names if given.get(name) is None]
    if without:
        logger.warning("No threshold in %s for %s; %g is taken.", source, ", ".join(without), default)
    return [default if given.get(name) is None else float(given[name]) for name in class_names]


def _of_model(weights: str) -> OperatingThresholds:
    content = read_entry(weights, ENTRY)
    if content is None:
        raise ValueError(
            f"{weights} has no operating thresholds. Runs that evaluate store them; for this checkpoint evaluate it "
            f"(retinanet-ext train --eval-only ... MODEL.WEIGHTS {weights}), then: retinanet-ext thresholds RUN "
            f"--weights {weights}"
        )
    return OperatingThresholds.of_dict(content, weights)


def _of_file(path: Path) -> OperatingThresholds | object:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; thresholds are '{FROM_MODEL}', a number of 0 to 1, or a JSON file, such as "
            "operating_thresholds.json of an evaluation"
        )
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if isinstance(content, dict) and "classes" in content:
        return OperatingThresholds.of_dict(content, str(path))
    return content


def warn_below(thresholds: Sequence[float], class_names: Sequence[str], floor: float, key: str) -> None:
    """Warn of thresholds below that of the model, which have no effect."""
    below = [name for name, value in zip(class_names, thresholds, strict=True) if value < floor]
    if below:
        logger.warning(
            "%s is %g, above the thresholds of %s: detections between the two are left out. Lower it to at most %g.",
            key, floor, ", ".join(below), min(thresholds),
        )  # fmt: skip

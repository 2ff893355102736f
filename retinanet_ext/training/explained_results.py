"""What stands in ``results.json`` beside the metrics: why some are undefined, and confidence intervals."""

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

from retinanet_ext.d2 import CfgNode
from retinanet_ext.evaluation.bootstrap import CONFIDENCE, SAMPLES, bootstrap, is_cheap
from retinanet_ext.evaluation.evaluation_record import read_reasons
from retinanet_ext.evaluation.image_matches import match_dataset
from retinanet_ext.evaluation.result_files import find_evaluations, read_evaluation

from .run_record import write_results

REASONS, INTERVALS = "reasons", "intervals"

logger = logging.getLogger(__name__)


def with_reasons(cfg: CfgNode, results: Mapping, folder: str = "inference", suffix: str = "") -> dict:
    """The results with an entry ``reasons``: {task: {metric: why it is undefined}}, if some are.

    Args:
        cfg: names the datasets and the output folder.
        results: of the engine: by task, or by dataset and task if there are several datasets.
        folder: of the evaluation, below the output folder.
        suffix: what :class:`Trainer` adds to the names of the entries, such as ``_TTA``; results are without it.
    """
    names = list(cfg.DATASETS.TEST)
    if len(names) != 1:
        found = {name: _reasons(cfg, folder, name, results.get(name, {})) for name in names}
        with_own = {name: {**metrics, **_entry(found.get(name))} for name, metrics in results.items()}
        return {f"{name}{suffix}": metrics for name, metrics in with_own.items()}
    found = _reasons(cfg, folder, names[0], results)
    named = {f"{task}{suffix}": metrics for task, metrics in results.items()}
    return {**named, **_entry({f"{task}{suffix}": reasons for task, reasons in found.items()})}


def _entry(found):
    return {REASONS: found} if found else {}


def _reasons(cfg, folder, name, results):
    metrics = {task: values for task, values in results.items() if isinstance(values, Mapping)}
    return read_reasons(os.path.join(cfg.OUTPUT_DIR, folder, name), metrics)


def write_intervals(cfg: CfgNode) -> None:
    """Add ``intervals`` to ``results.json``: {task: {metric: [low, high]}}, by bootstrap over the evaluated images.

    Only of evaluations that left their files, and where it takes seconds; ``retinanet-ext report`` and ``compare``
    have no limit. A failure is logged and changes nothing.
    """
    names = list(cfg.DATASETS.TEST)
    try:
        folders = [path for path in find_evaluations(cfg.OUTPUT_DIR) if path.name in names]
        found = {path.name: _intervals(path) for path in folders}
        found = {name: tasks for name, tasks in found.items() if tasks}
        if found and len(names) == 1:
            write_results(cfg.OUTPUT_DIR, {INTERVALS: found[names[0]]}, add=True)
        elif found:
            write_results(cfg.OUTPUT_DIR, {name: {INTERVALS: tasks} for name, tasks in found.items()}, add=True)
    except (ValueError, OSError, KeyError) as error:
        logger.warning("No confidence intervals: %s: %s", type(error).__name__, error)


def _intervals(folder: Path) -> dict[str, dict[str, list[float]]]:
    data = read_evaluation(folder)
    found = {}
    for task in data.tasks:
        matches = match_dataset(data, task)
        # Without any prediction AP is undefined, and so is its interval.
        if not is_cheap(matches) or len(data.image_ids) < 2 or not any(map(len, data.predictions.values())):
            continue
        intervals = {name: one for name, one in bootstrap(matches).items() if not math.isnan(one.low)}
        found[task] = {name: [one.low, one.high] for name, one in intervals.items()}
        if "AP" in intervals:
            one = intervals["AP"]
            logger.info(
                "%s %s AP %.2f; %.0f %% interval %.2f to %.2f (%d resamples of %d images)",
                folder.name, task, one.value, 100 * CONFIDENCE, one.low, one.high, SAMPLES, len(data.image_ids),
            )  # fmt: skip
    return found

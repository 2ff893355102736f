"""Log results as lines to copy into a spreadsheet, and compare results with expected values."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Logs the main metrics of every task as two comma-separated lines, names and values.

    Metrics with a `-` in the name, such as `AP-person`, are left out: each class has one.

    Args:
        results: `{task: {metric: value}}`, as evaluators return it; a plain value is logged as `task=value`.

    Raises:
        TypeError: `results` is not a mapping, as may happen in processes other than the main one.
    """
    if not isinstance(results, Mapping):
        raise TypeError(f"results must map tasks to metrics, found {type(results).__name__}")
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info("copypaste: %s=%s", task, metrics)
            continue
        main = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(main))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in main.values()))


def verify_results(cfg: Any, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Checks results against `cfg.TEST.EXPECTED_RESULTS`, a list of `[task, metric, expected, tolerance]`.

    Returns:
        True, also if nothing is expected.

    Raises:
        ValueError: expected metrics are missing, NaN, or off by more than their tolerance; the message lists all.
    """
    failures = []
    for task, metric, expected, tolerance in cfg.TEST.EXPECTED_RESULTS:
        found = results.get(task, {}).get(metric)
        # A comparison with NaN is false, so this form also rejects NaN.
        if found is None or not abs(found - expected) <= tolerance:
            shown = "missing" if found is None else f"{found:.4f}"
            failures.append(f"{task} {metric}: expected {expected} +- {tolerance}, found {shown}")
    if failures:
        raise ValueError(f"results differ from TEST.EXPECTED_RESULTS: {'; '.join(failures)}")
    if cfg.TEST.EXPECTED_RESULTS:
        logger.info("All %d values of TEST.EXPECTED_RESULTS are met.", len(cfg.TEST.EXPECTED_RESULTS))
    return True

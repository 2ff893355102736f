"""The process of one run: ``python -m retinanet_ext.ablation.worker FOLDER --metric bbox/AP``.

Trains and evaluates as ``config.yaml`` in the folder says, and writes the outcome to ``status.json`` there.
"""

import argparse
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retinanet_ext.config.loading import load_config

from .run import DivergedError, run
from .status import DIVERGED, DONE, FAILED, RUNNING, Status, read_status, steps_done, write_status

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if the run is done, 1 if it diverged or failed."""
    parser = argparse.ArgumentParser(description="One run of an ablation study.")
    parser.add_argument("folder", type=Path, help="holds config.yaml")
    parser.add_argument("--metric", required=True, help="must be among the metrics of the run")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    start = time.monotonic()
    earlier = read_status(args.folder) or Status(RUNNING)
    outcome = _outcome(args.folder, args.metric)
    write_status(args.folder, replace(outcome, seconds=earlier.seconds + time.monotonic() - start))
    return 0 if outcome.state == DONE else 1


def _outcome(folder: Path, metric: str) -> Status:
    try:
        cfg = load_config(str(folder / "config.yaml"))
        metrics = run(cfg)
        if metric not in metrics:
            raise ValueError(f"METRIC {metric!r} is not among the metrics of the run: {', '.join(metrics)}")
    except DivergedError as error:
        logger.exception("diverged")
        return Status(DIVERGED, str(error), iterations=error.iteration)
    except Exception as error:  # any exception: whatever happens to one run, the study goes on
        logger.exception("failed")
        return Status(FAILED, f"{type(error).__name__}: {error}", iterations=steps_done(folder))
    values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return Status(DONE, metrics=values, iterations=cfg.SOLVER.MAX_ITER)


if __name__ == "__main__":
    sys.exit(main())

"""The page at the end of a run, whose failure never fails the run."""

import logging

REPORT_SECONDS = 120.0
"""After this time the page at the end of a run begins no further statistics."""

logger = logging.getLogger(__name__)


def report_after_run(cfg) -> None:
    """With TEST.REPORT, write the page of a run that has just ended and log its path; if that fails, log why."""
    if not cfg.TEST.REPORT:
        return
    try:
        # Here, because matplotlib takes long to import, and a run needs it only now.
        from .run_report import write_run_report

        path = write_run_report(cfg.OUTPUT_DIR, seconds=REPORT_SECONDS)
    except Exception as error:  # any type: the results are there, and a page is no reason to lose them
        logger.error("No report of this run: %s: %s", type(error).__name__, " ".join(str(error).split()))
        return
    logger.info("The report of this run: %s", path)

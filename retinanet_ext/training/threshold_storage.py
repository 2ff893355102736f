"""Puts the operating thresholds of an evaluation into the checkpoint whose weights it evaluated."""

import logging
import os
import time

from retinanet_ext.checkpoint.checkpoint_entries import write_entry
from retinanet_ext.d2 import CfgNode, hooks
from retinanet_ext.evaluation.operating_thresholds import ENTRY, THRESHOLDS_FILE, read_thresholds

logger = logging.getLogger(__name__)


def threshold_entries(cfg: CfgNode) -> dict:
    """``{"operating_thresholds": ...}`` of the last evaluation of the first test set; empty if it left none."""
    path = _file(cfg)
    if path is None or not os.path.isfile(path):
        return {}
    try:
        return {ENTRY: read_thresholds(path).to_dict()}
    except ValueError as error:
        logger.warning("No operating thresholds: %s", error)
        return {}


def _file(cfg):
    names = cfg.DATASETS.TEST
    return os.path.join(cfg.OUTPUT_DIR, "inference", names[0], THRESHOLDS_FILE) if names else None


class StoreThresholds(hooks.HookBase):
    """After the evaluation at the end of a run, writes its operating thresholds into the final checkpoint.

    ``retinanet-ext predict --thresholds model`` uses them. Runs on the main process only, after the evaluation's hook.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._started = time.time()

    def after_train(self) -> None:
        """Nothing happens if the run stopped early, or if no evaluation of this run left thresholds."""
        path, checkpoint = _file(self._cfg), os.path.join(self._cfg.OUTPUT_DIR, "model_final.pth")
        if self.trainer.iter + 1 < self.trainer.max_iter or path is None or not os.path.isfile(checkpoint):
            return
        # A second of tolerance, because file systems round times.
        if not os.path.isfile(path) or os.path.getmtime(path) < self._started - 1:
            return
        entries = threshold_entries(self._cfg)
        try:
            for key, value in entries.items():
                write_entry(checkpoint, key, value)
        except (OSError, ValueError) as error:
            logger.warning("The operating thresholds were not stored in %s: %s", checkpoint, error)

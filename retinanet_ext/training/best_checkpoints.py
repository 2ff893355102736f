"""Keeps the checkpoints with the best values of a metric, on either engine."""

import json
import logging
import math
import os
import shutil
from contextlib import suppress
from typing import Any

from retinanet_ext.checkpoint.checked_checkpointer import CheckedCheckpointer
from retinanet_ext.checkpoint.checkpoint_entries import read_entry
from retinanet_ext.d2 import hooks
from retinanet_ext.machine.atomic_file import write_atomically

from .run_record import read_record, set_aside

logger = logging.getLogger(__name__)

BEST = "model_best.pth"


class UntaggedCheckpointer(CheckedCheckpointer):
    """Saves checkpoints that a resumed run does not continue from, with what :attr:`more_entries` returns."""

    more_entries = dict

    def save(self, name: str, **entries: Any) -> None:
        super().save(name, **{**self.more_entries(), **entries})

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


class BestCheckpoints(hooks.HookBase):
    """Saves ``model_best.pth`` whenever an evaluated metric is better than ever before, and the next best ones beside.

    Register it after the hook that evaluates, on the main process. ``model_best.pth`` is always the best; the next ones
    are ``model_best_<iteration>.pth``. ``model_best.json`` lists them, best first, and a resumed training reads it. The
    hook has no state in checkpoints, because the best model may be newer than the checkpoint resumed from, and because
    Detectron2 cannot load a trainer in which another hook has a state.
    """

    def __init__(self, checkpointer: CheckedCheckpointer, metric: str, *, period: int, keep: int = 1):
        """
        Args:
            checkpointer: one that does not tag a last checkpoint.
            metric: name in the storage, such as ``bbox/AP``; higher is better.
            period: that of the evaluation, in iterations; 0: only at the end.
            keep: how many checkpoints stay, the best included.
        """
        self._checkpointer, self._metric, self._period, self._keep = checkpointer, metric, period, keep
        self._kept: list[dict] = []

    def before_train(self) -> None:
        self._kept = self._read_record() if self.trainer.start_iter > 0 else []
        if self._kept:
            best = self._kept[0]
            logger.info("the best %s so far is %.5f, of iteration %d", self._metric, best["value"], best["iteration"])

    def after_step(self) -> None:
        iterations_done = self.trainer.iter + 1
        at_end = iterations_done == self.trainer.max_iter  # `after_train` follows the evaluation at the end
        if self._period > 0 and iterations_done % self._period == 0 and not at_end:
            self._consider(self.trainer.iter)

    def after_train(self) -> None:
        if self.trainer.iter == self.trainer.max_iter:
            self._consider(self.trainer.iter - 1)

    def _consider(self, iteration: int) -> None:
        latest = self.trainer.storage.latest()
        if self._metric not in latest:
            known = ", ".join(name for name in sorted(latest) if "/" in name) or "none"
            logger.warning("no metric %r to choose the best model by; evaluated: %s", self._metric, known)
            return
        value = float(latest[self._metric][0])
        # After a resume from an older checkpoint an iteration may come a second time.
        others = [entry for entry in self._kept if entry["iteration"] != iteration or entry["value"] >= value]
        if not math.isfinite(value) or any(entry["iteration"] == iteration for entry in others):
            return
        if len(others) < self._keep or value > others[-1]["value"]:
            self._save({"value": value, "iteration": iteration}, others)

    def _save(self, new: dict, others: list[dict]) -> None:
        is_best = not others or new["value"] > others[0]["value"]
        new["file"] = BEST if is_best else _further(new["iteration"])
        if is_best and others and self._keep > 1:
            # The old best gets its further name before the new file takes its place.
            others = [{**others[0], "file": self._give_further_name(others[0])}, *others[1:]]
        stem = new["file"].removesuffix(".pth")
        best = {"metric": self._metric, "value": new["value"]}
        self._checkpointer.save(stem, iteration=new["iteration"], best=best)
        ranked = sorted([*others, new], key=lambda entry: -entry["value"])  # stable: of equals, the earlier stays ahead
        self._kept, dropped = ranked[: self._keep], [*ranked[self._keep :], *self._kept]
        first = self._kept[0]
        record = {"metric": self._metric, "value": first["value"], "iteration": first["iteration"], "kept": self._kept}
        write_atomically(self._path("model_best.json"), json.dumps(record))
        names = {entry["file"] for entry in self._kept}
        for name in {entry["file"] for entry in dropped} - names:
            with suppress(FileNotFoundError):
                os.unlink(self._path(name))
        place = self._kept.index(new) + 1
        rank = "is the best so far" if place == 1 else f"is number {place} of the best so far"
        logger.info("%s = %.5f at iteration %d %s", self._metric, new["value"], new["iteration"], rank)

    def _give_further_name(self, best: dict) -> str:
        name = _further(best["iteration"])
        with suppress(FileNotFoundError):  # a user may have removed the file
            unfinished = self._path(f"{name}.unfinished")
            with suppress(FileNotFoundError):
                os.unlink(unfinished)
            try:
                os.link(self._path(BEST), unfinished)
            except FileNotFoundError:
                raise
            except OSError:  # a file system without links
                shutil.copyfile(self._path(BEST), unfinished)
            os.replace(unfinished, self._path(name))
        return name

    def _read_record(self) -> list[dict]:
        path, best = self._path("model_best.json"), self._path(BEST)
        kept = []
        if os.path.exists(path):
            try:
                kept = self._entries(read_record(path))
            except (KeyError, TypeError, ValueError) as error:
                set_aside(path, f"{type(error).__name__}: {error}")
        record_is_newer = kept and os.path.exists(best) and os.path.getmtime(path) >= os.path.getmtime(best)
        if not os.path.exists(best) or record_is_newer:
            return kept
        # A run that was killed between the two has a newer checkpoint; with a damaged record the file still knows.
        found = self._from_checkpoint(best)
        return [found] if found and (not kept or found["value"] > kept[0]["value"]) else kept

    def _entries(self, record: dict) -> list[dict]:
        if record["metric"] != self._metric:
            return []  # chosen by another metric: start afresh
        # Records of other writers have only the best.
        kept = record.get("kept") or [{**record, "file": BEST}]
        entries = [
            {"value": float(entry["value"]), "iteration": int(entry["iteration"]), "file": entry["file"]}
            for entry in kept
        ]
        names = {BEST, *(_further(entry["iteration"]) for entry in entries)}
        if any(entry["file"] not in names or not math.isfinite(entry["value"]) for entry in entries):
            raise ValueError("its files or values are none that this hook writes")
        return sorted(entries, key=lambda entry: -entry["value"])

    def _from_checkpoint(self, path: str) -> dict | None:
        try:
            best, iteration = read_entry(path, "best"), read_entry(path, "iteration")
            if best["metric"] == self._metric:
                return {"value": float(best["value"]), "iteration": int(iteration), "file": BEST}
        except (KeyError, TypeError, ValueError, OSError) as error:
            logger.warning("%s does not say how good it is (%s); the next evaluation replaces it", path, error)
        return None

    def _path(self, name: str) -> str:
        return os.path.join(self._checkpointer.save_dir, name)


def _further(iteration: int) -> str:
    return f"model_best_{iteration:07d}.pth"

"""Finds the checkpoint of a run folder to resume from: the tagged one or, if it is damaged, the newest good one.

This file imports no engine.
"""

import logging
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .checkpoint_file import read_checkpoint
from .checkpoint_writing import first_nonfinite

logger = logging.getLogger(__name__)

TAG, FINAL = "last_checkpoint", "model_final.pth"


def periodic_checkpoints(folder: str) -> list[tuple[int, str]]:
    """Iterations and names of all ``model_<iteration>.pth`` of a folder, newest first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = ((re.fullmatch(r"model_(\d+)\.pth", name), name) for name in names)
    return sorted(((int(match[1]), name) for match, name in found if match), reverse=True)


def has_candidates(folder: str) -> bool:
    """Whether a folder has the tag, or a checkpoint whose writer was killed before it could write the tag."""
    names = [TAG, FINAL, *(name for _, name in periodic_checkpoints(folder))]
    return any(os.path.exists(os.path.join(folder, name)) for name in names)


def tagged_checkpoint(folder: str) -> tuple[str | None, str | None]:
    """The file name in ``last_checkpoint``, or what is wrong with it; both None if there is no such file."""
    try:
        with open(os.path.join(folder, TAG), "rb") as file:
            name = file.read(4096).decode().strip()
    except FileNotFoundError:
        return None, None
    except UnicodeDecodeError:
        return None, "it holds bytes that are no text; expected the name of a file in that folder"
    except OSError as error:
        return None, f"it cannot be read: {error}"
    if not name:
        return None, "it is empty; expected the name of a file in that folder"
    if not name.isprintable() or os.path.basename(name) != name or name in (".", ".."):
        return None, f"it names {name[:200]!r}; expected the name of a file in that folder"
    return name, None


class NewestCheckpoint:
    """The search in one folder, in which all processes of a job take part."""

    def __init__(self, folder: str, needs_trainer: bool, all_gather: Callable[[Any], list]):
        """
        Args:
            needs_trainer: only files with the state of a trainer will do.
            all_gather: returns the objects that the processes pass to it, by rank: the engine's ``comm.all_gather``.
        """
        self._folder, self._needs_trainer, self._all_gather = folder, needs_trainer, all_gather
        self._faults: list[str] = []

    def find(self) -> tuple[str, dict[str, Any]]:
        """Path and content of the file to resume from; a warning names each newer file and its fault.

        Raises:
            ValueError: no file will do, with the fault of each; or the processes see different folders.
        """
        tagged, fault = self._common_tag()
        if fault is not None:
            self._faults.append(f"{TAG}: {fault}")
        content = None if tagged is None else self._try(tagged)
        if content is not None:
            return os.path.join(self._folder, tagged), content
        for name in self._others(tagged):
            content = self._try(name)
            if content is not None:
                logger.warning(
                    "resuming from %s, the newest checkpoint that is whole, because of these faults in %s:\n%s",
                    name, self._folder, "\n".join(self._faults) or f"{TAG} is missing",
                )  # fmt: skip
                return os.path.join(self._folder, name), content
        faults = "\n".join(self._faults) or f"{TAG} is missing"
        raise ValueError(
            f"no checkpoint in {self._folder} can be resumed from:\n{faults}\nBring a whole copy of one of them, or "
            "leave out --resume to start again (MODEL.WEIGHTS may name any file with weights, such as model_best.pth)."
        )

    def _common_tag(self) -> tuple[str | None, str | None]:
        found = self._all_gather(tagged_checkpoint(self._folder))
        if len({name for name, _ in found}) > 1:
            each = ", ".join(f"rank {rank}: {name or 'none'}" for rank, (name, _) in enumerate(found))
            raise ValueError(
                f"the processes find different checkpoints to resume from in {self._folder} ({each}); all machines of "
                "a job must share that folder, or have a copy of its last checkpoint"
            )
        return found[0]

    def _others(self, tagged: str | None) -> list[str]:
        """The other candidates as the main process sees them, newest first."""
        found = periodic_checkpoints(self._folder)
        final = os.path.join(self._folder, FINAL)
        if os.path.exists(final):
            found.append((_iteration(final), FINAL))
        names = [name for _, name in sorted(found, reverse=True) if name != tagged]
        return self._all_gather(names)[0]

    def _try(self, name: str) -> dict[str, Any] | None:
        """The content of a file that every process can resume from; None, with the fault noted, if one cannot."""
        content = fault = None
        try:
            content = self._read(os.path.join(self._folder, name))
        except Exception as error:  # any type: it depends on the fault
            found = getattr(error, "found", None)
            fault = f"damaged: {found}" if found else f"{type(error).__name__}: {error}"
        for rank, message in enumerate(self._all_gather(fault)):
            if message is not None:
                where = f" (on rank {rank})" if fault is None else ""
                self._faults.append(f"{name}{where}: {message}")
                return None
        return content

    def _read(self, path: str) -> dict[str, Any]:
        content = read_checkpoint(path)
        if self._needs_trainer and "trainer" not in content:
            raise ValueError("it holds weights but no trainer state, so training cannot go on from it")
        bad = first_nonfinite({name: _tensor(value) for name, value in content["model"].items()})
        if bad is not None:
            raise ValueError(f"its weights are NaN or infinite, first {bad}")
        return content


def _tensor(value: Any) -> torch.Tensor:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _iteration(path: str) -> int:
    try:
        return int(read_checkpoint(path)["iteration"])
    except Exception:  # any type; the fault is reported when the file is tried
        return -1

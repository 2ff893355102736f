"""The engine's checkpointer with files that are verified, and with a reader that never runs code from a file."""

import os
import re
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, urlparse

from fvcore.common.checkpoint import Checkpointer

from retinanet_ext.d2 import DetectionCheckpointer, comm
from retinanet_ext.machine.atomic_file import write_atomically
from retinanet_ext.machine.processes import bare_model

from .checkpoint_file import read_checkpoint_together, together
from .checkpoint_writing import CheckpointNotWritten, first_nonfinite, write_checkpoint
from .load_report import LoadReport, refuse_unusable
from .newest_checkpoint import NewestCheckpoint, has_candidates, periodic_checkpoints, tagged_checkpoint


class CheckedCheckpointer(DetectionCheckpointer):
    """Writes whole, verifiable files, and opens every file with :func:`read_checkpoint_together`, on either engine.

    Detectron2's own reader runs what a pickle says. It is never called here.

    Attributes:
        keep: how many files ``model_<iteration>.pth`` stay after a save; 0: all.
        entries: further entries of each file.
        report: what the last load brought to the model; None before.
    """

    _matching_heuristics = False
    _read_ahead: tuple[str, dict] | None = None
    _resumed_from: str | None = None
    report: LoadReport | None = None

    def __init__(self, model, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any):
        """See the engine's ``DetectionCheckpointer``."""
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.keep = 0
        self.entries: dict[str, Any] = {}

    @classmethod
    def like(cls, checkpointer: Checkpointer) -> "CheckedCheckpointer":
        """A checkpointer of this class for the model, the folder and the checkpointables of ``checkpointer``."""
        if isinstance(checkpointer, cls):
            return checkpointer
        to_disk, others = checkpointer.save_to_disk, checkpointer.checkpointables
        return cls(checkpointer.model, checkpointer.save_dir, save_to_disk=to_disk, **others)

    def save(self, name: str, **entries: Any) -> None:
        """Write ``<save_dir>/<name>.pth``, tag it as the last one, and remove those that ``keep`` does not cover.

        The file holds the model, the checkpointables, what a method ``checkpoint_entries()`` of the model returns,
        :attr:`entries`, and the arguments.

        Raises:
            FloatingPointError: a weight or buffer is NaN or infinite; nothing is written.
            CheckpointNotWritten: the disk is full or fails; the earlier files are whole.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        self._refuse_diverged(content["model"], name)
        content.update({key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()})
        content.update({**getattr(bare_model(self.model), "checkpoint_entries", dict)(), **self.entries, **entries})
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_checkpoint(path, content)
        try:
            self.tag_last_checkpoint(os.path.basename(path))
        except OSError as error:
            raise CheckpointNotWritten(
                f"{path} is written, but last_checkpoint beside it is not ({error}). Free some space in "
                f"{self.save_dir}; then go on with --resume"
            ) from error
        self._resumed_from = None
        self._prune(name)

    def _refuse_diverged(self, weights: dict[str, Any], name: str) -> None:
        bad = first_nonfinite(weights)
        if bad is not None:
            raise FloatingPointError(
                f"the weights are not finite, first {bad}, so {name}.pth is not written and earlier checkpoints stay. "
                "Training has diverged: lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or turn on "
                "SOLVER.CLIP_GRADIENTS, then go on from the last checkpoint with --resume"
            )

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the file that ``--resume`` takes."""
        write_atomically(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def _prune(self, name: str) -> None:
        match = re.fullmatch(r"model_(\d+)", name)
        if self.keep < 1 or match is None:
            return
        # Higher numbers are of an earlier run in this folder, which is not this run's to remove.
        own = [(number, file) for number, file in periodic_checkpoints(self.save_dir) if number <= int(match[1])]
        for _, file in own[self.keep :]:
            self.logger.info("Removing checkpoint %s: SOLVER.CHECKPOINTS_KEPT is %d", file, self.keep)
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self.save_dir, file))

    def has_checkpoint(self) -> bool:
        """Whether the folder has ``last_checkpoint``, or files that the writer of one may have left without it."""
        return has_candidates(self.save_dir)

    def get_checkpoint_file(self) -> str:
        """The file that was resumed from, or else the one that ``last_checkpoint`` names; empty if it names none."""
        if self._resumed_from is not None:
            return self._resumed_from
        name, _ = tagged_checkpoint(self.save_dir)
        return os.path.join(self.save_dir, name) if name else ""

    def newest_good(self) -> str:
        """The file to resume from: the tagged one or, if it is damaged, the newest one that is whole.

        All processes of a job must call this, and get the same answer. A model that resumes a training (it has the
        checkpointable ``trainer``) needs a file with its state. The file is read once: the next load of it is free.

        Raises:
            ValueError: no file can be resumed from; lists each of them with its fault.
        """
        path, content = NewestCheckpoint(self.save_dir, "trainer" in self.checkpointables, comm.all_gather).find()
        self._read_ahead = (path, content)
        return path

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As the engine's, from :meth:`newest_good`."""
        if resume and any(comm.all_gather(self.has_checkpoint())):
            self._resumed_from = self.newest_good()
            return self.load(self._resumed_from)
        return self.load(path, checkpointables=[])

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the engine's. ``?matching_heuristics=True`` may end the path of weights for a part of the model."""
        # The engine removes this ending from the path before `_load_file` sees it.
        self._matching_heuristics = parse_qs(urlparse(path or "").query).get("matching_heuristics") == ["True"]
        self._path = path
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        ahead, self._read_ahead = self._read_ahead, None
        if ahead is not None and ahead[0] == filename:
            checkpoint = ahead[1]
        else:
            checkpoint = read_checkpoint_together(filename, comm.all_gather)
        return {**checkpoint, "matching_heuristics": True} if self._matching_heuristics else checkpoint

    def _load_model(self, checkpoint: dict[str, Any]):
        # Names that reach the model after the engine's renaming. A buffer that a module fills in itself is then
        # neither missing nor loaded.
        arrived = set()

        def look(module, state_dict, *rest):
            arrived.update(state_dict)
            problem = f"the weights of {self._path} cannot be used"
            together(lambda: refuse_unusable(self.model, state_dict, self._path), problem, comm.all_gather)

        hook = self.model.register_load_state_dict_pre_hook(look)
        try:
            incompatible = super()._load_model(checkpoint)
        finally:
            hook.remove()
        wrong_shape = [entry[0] for entry in incompatible.incorrect_shapes]
        self.report = LoadReport(
            loaded=[key for key in self.model.state_dict() if key in arrived],
            missing=[key for key in incompatible.missing_keys if key not in wrong_shape],
            wrong_shape=wrong_shape,
            unexpected=list(incompatible.unexpected_keys),
        )
        return incompatible

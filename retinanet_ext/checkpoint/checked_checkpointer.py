"""The engine's checkpointer with a reader that never runs code from a file."""

from typing import Any
from urllib.parse import parse_qs, urlparse

from fvcore.common.checkpoint import Checkpointer

from retinanet_ext.d2 import DetectionCheckpointer, comm
from retinanet_ext.machine.processes import bare_model

from .checkpoint_file import read_checkpoint_together


class CheckedCheckpointer(DetectionCheckpointer):
    """Opens every file with :func:`read_checkpoint_together`, on either engine.

    Detectron2's own reader runs what a pickle says. It is never called here.
    """

    _matching_heuristics = False

    @classmethod
    def like(cls, checkpointer: Checkpointer) -> "CheckedCheckpointer":
        """A checkpointer of this class for the model, the folder and the checkpointables of ``checkpointer``."""
        if isinstance(checkpointer, cls):
            return checkpointer
        to_disk, others = checkpointer.save_to_disk, checkpointer.checkpointables
        return cls(checkpointer.model, checkpointer.save_dir, save_to_disk=to_disk, **others)

    def save(self, name: str, **entries: Any) -> None:
        """As the engine's. A model's ``checkpoint_entries()``, if it has that method, go beside its weights."""
        own = getattr(bare_model(self.model), "checkpoint_entries", dict)()
        super().save(name, **{**own, **entries})

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the engine's. ``?matching_heuristics=True`` may end the path of weights for a part of the model."""
        # The engine removes this ending from the path before `_load_file` sees it.
        self._matching_heuristics = parse_qs(urlparse(path or "").query).get("matching_heuristics") == ["True"]
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint_together(filename, comm.all_gather)
        return {**checkpoint, "matching_heuristics": True} if self._matching_heuristics else checkpoint

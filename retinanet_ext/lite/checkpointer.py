"""Checkpoints: a crash while saving leaves the last good one intact, and a file that is loaded cannot run code.

The layout is Detectron2's (``model``, ``trainer``, ``iteration``), and so are parameter names: each engine
reads the other's files.
"""

import logging
import os
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlparse

from fvcore.common.checkpoint import Checkpointer, _IncompatibleKeys
from iopath.common.file_io import HTTPURLHandler, PathHandler, PathManager
from torch import nn

from retinanet_ext.checkpoint.checkpoint_file import read_checkpoint_together, together
from retinanet_ext.checkpoint.checkpoint_writing import write_checkpoint
from retinanet_ext.machine.atomic_file import write_atomically

from . import comm, pretrained_names

logger = logging.getLogger(__name__)

DETECTRON2_URL = "https://dl.fbaipublicfiles.com/detectron2/"


class DetectionCheckpointer(Checkpointer):
    """Saves and loads a model and the objects that must survive a restart.

    Adds to fvcore's class: safe reading, atomic writing, ``detectron2://`` and ``torchvision://`` paths, and
    loading weights of a bare backbone into the backbone of the model. The last applies to Caffe2's and torchvision's
    names, to files with ``"matching_heuristics": True``, and to paths that end with ``?matching_heuristics=True``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ):
        """
        Args:
            model: bare or wrapped in ``DistributedDataParallel``; only the bare model is saved and loaded.
            save_dir: folder of the checkpoints; empty: ``save`` does nothing.
            save_to_disk: whether this process writes; by default only the main process does.
            checkpointables: further objects with ``state_dict`` and ``load_state_dict``, by their key in the
                file.
        """
        save_to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = _path_manager()
        self._suffix_matching = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth``, the checkpoint to resume from; it appears complete or not at all.

        Args:
            name: file name without extension.
            kwargs: further entries of the file.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_checkpoint(path, data)
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_atomically(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a file into the model and the checkpointables; returns the remaining entries of the file.

        Args:
            path: local path, ``https://``, ``detectron2://`` (Detectron2's model zoo), or ``torchvision://``
                with the name of a model or of its weights. Empty: nothing is loaded.
            checkpointables: keys to load beside the model; ``None``: all that the file holds.

        Raises:
            FileNotFoundError: the file is missing on this or on another process of the job.
            ValueError: the file type is unknown, or the file is damaged or would run code.
            RuntimeError: another process of the job cannot download or read the file.
        """
        address = urlparse(path)
        self._suffix_matching = False
        if address.query and parse_qs(address.query).keys() == {"matching_heuristics"}:
            self._suffix_matching = parse_qs(address.query)["matching_heuristics"] == ["True"]
            path = address._replace(query="").geturl()
        if path:
            path = self._local_copy(path)
        return super().load(path, checkpointables=checkpointables)

    def _local_copy(self, path: str) -> str:
        local_path = path
        if "://" in path:
            # One download per machine: its other processes find the file in the cache.
            self._download(path, comm.get_local_rank() == 0)
            local_path = self._download(path, True)
        found = comm.all_gather(os.path.isfile(local_path))
        missing_on = [rank for rank, has_file in enumerate(found) if not has_file]
        if missing_on:
            where = f" on ranks {missing_on}" if comm.get_world_size() > 1 else ""
            raise FileNotFoundError(
                f"checkpoint {path} not found{where}. MODEL.WEIGHTS (or last_checkpoint in OUTPUT_DIR, with "
                "--resume) must name a file that every machine of the job can read"
            )
        return local_path

    def _download(self, path: str, wanted: bool) -> str | None:
        """The local path of a URL, in every process that wants it; a failure in one process is an error in all."""
        download = partial(self.path_manager.get_local_path, path)
        problem = f"checkpoint {path} cannot be downloaded"
        return together(download if wanted else lambda: None, problem, comm.all_gather)

    def _load_file(self, f: str) -> dict[str, Any]:
        return read_checkpoint_together(f, comm.all_gather)

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        """Load ``checkpoint["model"]``; entries that do not fit are skipped and returned by kind.

        Returns:
            ``missing_keys``, ``unexpected_keys``, ``incorrect_shapes`` (name, shape in the file, shape in the
            model).
        """
        weights = checkpoint["model"]
        self._convert_ndarray_to_tensor(weights)
        suffix_matching = self._suffix_matching or checkpoint.get("matching_heuristics", False)
        if pretrained_names.is_caffe2(weights):
            weights, suffix_matching = pretrained_names.convert_caffe2(weights), True
        elif pretrained_names.is_torchvision(weights) and "conv1.weight" not in self.model.state_dict():
            weights, suffix_matching = pretrained_names.convert_torchvision(weights), True
        if suffix_matching:
            names = list(self.model.state_dict())
            weights, unmatched = pretrained_names.match_by_suffix(weights, names)
            matched = len(weights) - len(unmatched)
            logger.info("%d weights matched the end of a name in the model, %d did not", matched, len(unmatched))
        checkpoint["model"] = weights
        incompatible = super()._load_model(checkpoint)
        # Old files hold anchors; they are not needed, because the config determines them.
        unexpected = [k for k in incompatible.unexpected_keys if "anchor_generator.cell_anchors" not in k]
        return incompatible._replace(unexpected_keys=unexpected)


class _Detectron2Handler(PathHandler):
    """``detectron2://name``: a file of Detectron2's model zoo."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["detectron2://"]

    def _url(self, path: str) -> str:
        return DETECTRON2_URL + path.removeprefix("detectron2://")

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return _path_manager().get_local_path(self._url(path), force=force, **kwargs)


class _TorchvisionHandler(_Detectron2Handler):
    """``torchvision://resnet50`` or ``torchvision://ResNet50_Weights.IMAGENET1K_V2``: ImageNet weights.

    A bare model name selects the model's first weights (V1): these are usually compared with, and never change.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return ["torchvision://"]

    def _url(self, path: str) -> str:
        from torchvision.models import get_model_weights, get_weight

        logger.info(
            "torchvision's weights expect INPUT.FORMAT RGB, RESNETS.STRIDE_IN_1X1 False, and ImageNet's mean "
            "and standard deviation in PIXEL_MEAN and PIXEL_STD (0-255)"
        )
        name = path.removeprefix("torchvision://")
        return (get_weight(name) if "." in name else get_model_weights(name).IMAGENET1K_V1).url


def _path_manager() -> PathManager:
    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    manager.register_handler(_Detectron2Handler())
    manager.register_handler(_TorchvisionHandler())
    return manager

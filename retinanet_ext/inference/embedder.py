"""Embeddings for images, lists and streams, in batches."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from retinanet_ext.checkpoint.checkpoint_entries import read_entries
from retinanet_ext.checkpoint.weights import load_weights
from retinanet_ext.d2 import CfgNode, build_model
from retinanet_ext.data.doctor.image_probe import IMAGE_ERRORS
from retinanet_ext.embedding.calibration import Calibration
from retinanet_ext.embedding.face_input import CROP_KEYS
from retinanet_ext.embedding.harmonic import COMPATIBLE_WITH
from retinanet_ext.machine.cpu import keep_freed_memory

from . import run_face_detector
from .fast_copy import inference_model
from .fingerprint import fingerprint
from .image_pixels import PIXELS_AHEAD, count_pixels
from .predictor import Input, read_input
from .threaded_map import batches_ahead

CALIBRATION = "calibration"  # the entry of a checkpoint

logger = logging.getLogger(__name__)


class _Prepared(NamedTuple):
    model_input: dict
    file_name: str
    found: bool


class Embedder:
    """Runs FaceNet over images in batches. Faces are cropped as in the test mapper, in threads while the model works.

    :func:`retinanet_ext.load` makes one from the folder of a run. D numbers per embedding.

    Args:
        cfg: the config; INPUT.FACE and INPUT.FORMAT say how faces are cropped. Without ``model``, the model is built
            from the config and loaded from MODEL.WEIGHTS, which must hold all of its parameters.
        model: maps ``list[dict]`` to ``list[{"embedding": (D,)}]``; put in evaluation mode here.
        batch_size: images per forward pass.
        workers: threads that read and crop images.
        face_input: crops a uint8 BGR array ``(H, W, 3)``; None: as the config says.

    Attributes:
        dim: D.
        input: how faces are cropped, as text, for comparison with that of a calibration.
        calibration: of the checkpoint, if ``model`` was loaded from one that has it; else None.
        compatible_with: fingerprints of the models that ``model``, loaded from a checkpoint, was trained to be
            comparable with (``HarmonicFaceNet``).
        fingerprint: 16 hexadecimal digits that identify the weights, on either engine and any device.
        files_without_face: paths of the images so far in which the detector found no face, "" for an array. They were
            cropped as INPUT.FACE says for this case.

    Raises:
        ValueError: a batch size below 1, or weights that do not fit.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module | None = None,
        batch_size: int = 32,
        *,
        workers: int = 2,
        face_input: Callable | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}.")
        if face_input is None:
            face_input = run_face_detector.face_input(cfg)
        self.input = crop_settings(cfg)
        self.calibration: Calibration | None = None
        self.compatible_with: tuple[str, ...] = ()
        if model is None:
            model = build_model(cfg)
            load_weights(model, cfg.MODEL.WEIGHTS, strict=True)
            entries = read_entries(cfg.MODEL.WEIGHTS)
            self.calibration = _calibration(entries, cfg.MODEL.WEIGHTS, self.input)
            self.compatible_with = tuple(entries.get(COMPATIBLE_WITH) or ())
        if torch.device(cfg.MODEL.DEVICE).type == "cpu":
            keep_freed_memory()
        self.cfg = cfg
        self.dim: int = cfg.MODEL.EMBEDDING.DIM
        self.fingerprint = fingerprint(model)
        self.files_without_face: list[str] = []
        self.model = inference_model(cfg, model).eval()
        self.face_input = face_input
        self.batch_size = batch_size
        self.workers = workers

    @property
    def faces_not_found(self) -> int:
        """Number of images so far in which the detector found no face."""
        return len(self.files_without_face)

    def __call__(self, images: Input | Sequence[Input] | np.ndarray) -> torch.Tensor:
        """Embed one image, or several of any sizes.

        Args:
            images: one image: a path, a Pillow image, or a uint8 BGR array ``(H, W, 3)`` or grey array ``(H, W)``; or a
                list of these, or an array ``(N, H, W, 3)``.

        Returns:
            float32 ``(N, D)`` on the CPU, each of length 1; ``(1, D)`` for one image, ``(0, D)`` for an empty list.

        Raises:
            OSError: a file cannot be read; the message names it.
            TypeError: an image is none of these.
        """
        is_batch = isinstance(images, (list, tuple)) or (isinstance(images, np.ndarray) and images.ndim == 4)
        embeddings = list(self.stream(images if is_batch else [images]))
        return torch.stack(embeddings) if embeddings else torch.zeros(0, self.dim)

    def stream(self, images: Iterable[Input]) -> Iterator[torch.Tensor]:
        """Yield the embedding ``(D,)`` of each image, in order; a few batches of crops are in memory, and no images.

        Args:
            images: consumed lazily, a few batches ahead.

        Raises:
            As :meth:`__call__`; nothing after the image at fault is embedded.
        """
        batches = batches_ahead(
            self._prepare, images, self.workers, self.batch_size, cost=count_pixels, budget=PIXELS_AHEAD
        )
        for batch in batches:
            with torch.no_grad():
                outputs = self.model([prepared.model_input for prepared in batch])
            for prepared, output in zip(batch, outputs, strict=True):
                if not prepared.found:
                    self.files_without_face.append(prepared.file_name)
                # Copied, because a view would keep the embeddings of the whole batch in memory.
                yield output["embedding"].to("cpu", torch.float32, copy=True)

    def _prepare(self, given: Input) -> _Prepared:
        image, file_name = _read(given, self.cfg.INPUT.MAX_PIXELS)
        crop = self.face_input(image)
        tensor = torch.from_numpy(np.array(crop.image.transpose(2, 0, 1), order="C"))
        return _Prepared({"image": tensor, "file_name": file_name}, file_name, crop.found)


def crop_settings(cfg: CfgNode) -> str:
    """The keys that say how a face is cropped, as JSON."""
    settings = {f"INPUT.FACE.{key}": cfg.INPUT.FACE[key] for key in CROP_KEYS if key in cfg.INPUT.FACE}
    return json.dumps({**settings, "INPUT.FORMAT": cfg.INPUT.FORMAT})


def _calibration(entries: Mapping[str, Any], path: str, input: str) -> Calibration | None:
    """The calibration in a checkpoint, None if it has none; a warning if faces were cropped in another way then."""
    entry = entries.get(CALIBRATION)
    if entry is None:
        return None
    calibration = Calibration.from_dict(entry, path)
    if calibration.input and calibration.input != input:
        old, new = json.loads(calibration.input), json.loads(input)
        changed = [f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in new if old.get(key) != new[key]]
        logger.warning(
            "%s was calibrated with other crops of faces (%s): its threshold need not hold. Calibrate again.",
            path, "; ".join(changed),
        )  # fmt: skip
    return calibration


def _read(given: Input, max_pixels: int) -> tuple[np.ndarray, str]:
    """The image as uint8 BGR ``(H, W, 3)``, and its path, "" if it has none."""
    try:
        image, file_name = read_input(given, max_pixels)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{given}: no such file") from error
    except IMAGE_ERRORS as error:
        if str(given) in str(error):
            raise
        raise OSError(f"{given} cannot be read as an image: {type(error).__name__}: {error}") from error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    is_image = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if not is_image or not image.size:
        found = f"{getattr(image, 'dtype', type(image))} {getattr(image, 'shape', '')}"
        raise TypeError(
            "An image must be a path, a Pillow image, or a uint8 array of shape (H, W, 3) in BGR or (H, W), found "
            f"{found}."
        )
    return image, file_name

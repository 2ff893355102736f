"""Embeds image files. Unreadable files are reported, and so are images without a face."""

import logging
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from retinanet_ext.data.doctor.image_probe import IMAGE_ERRORS

from .image_pixels import PIXELS_AHEAD, count_pixels
from .predictor import read_input
from .progress_report import ProgressReport
from .threaded_map import map_ahead

logger = logging.getLogger(__name__)


class FileEmbeddings(NamedTuple):
    """Embeddings of files.

    Attributes:
        embeddings: float32 ``(N, D)``.
        paths: the N files.
        without_face: those of ``paths`` in which the face detector found none.
        skipped: path -> reason, for each file that could not be read, or in which a detector found no object.
    """

    embeddings: torch.Tensor
    paths: list[Path]
    without_face: list[Path]
    skipped: dict[Path, str]


def embed_files(embedder, paths: Sequence[Path]) -> FileEmbeddings:
    """Embed image files with an ``Embedder`` or an ``ObjectEmbedder``; few images are in memory at a time."""
    waiting, kept, without_face, skipped = deque(), [], [], {}

    def readable(progress):
        read = partial(_read, max_pixels=embedder.cfg.INPUT.MAX_PIXELS)
        for path, image in map_ahead(read, paths, cost=count_pixels, budget=PIXELS_AHEAD):
            if isinstance(image, Exception):
                skipped[path] = f"{type(image).__name__}: {image}"
                progress.update()
            else:
                waiting.append(path)
                yield image

    embeddings, missed = [], embedder.faces_not_found
    with ProgressReport(len(paths), "image") as progress:
        for embedding in embedder.stream(readable(progress)):
            path = waiting.popleft()
            progress.update()
            if embedding is None:
                skipped[path] = "nothing is detected, so there is no object to embed"
                continue
            kept.append(path)
            embeddings.append(embedding)
            if getattr(embedder, "num_detections", 1) > 1:
                logger.warning("%s: %d detections; the best one is taken", path, embedder.num_detections)
            if embedder.faces_not_found > missed:
                missed = embedder.faces_not_found
                without_face.append(path)
    for path, reason in skipped.items():
        logger.warning("Skipped %s: %s", path, reason)
    if without_face:
        names = ", ".join(map(str, without_face[:5])) + (", ..." if len(without_face) > 5 else "")
        logger.warning(
            "No face was found in %d of %d images, which were cropped as INPUT.FACE says: %s",
            len(without_face), len(kept), names,
        )  # fmt: skip
    stacked = torch.stack(embeddings) if embeddings else torch.zeros(0, embedder.dim)
    return FileEmbeddings(stacked, kept, without_face, skipped)


def _read(path: Path, max_pixels: int):
    """(path, uint8 BGR image ``(H, W, 3)`` after its EXIF rotation), or (path, error)."""
    try:
        return path, read_input(path, max_pixels)[0]
    except (*IMAGE_ERRORS, ValueError) as error:
        return path, error

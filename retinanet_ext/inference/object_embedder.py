"""The embedding of the one object in each photo, from a detector with embeddings: what fills a gallery."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike

import torch

from .identification import calibration_of, check_has_embeddings
from .predictor import Input, Predictor

logger = logging.getLogger(__name__)


class ObjectEmbedder:
    """Gives the embedding of the best detection of each image. Called and read as an ``Embedder`` is.

    Args:
        predictor: a model with embeddings. Its score threshold says what counts as a detection.

    Attributes:
        dim: D.
        fingerprint: identifies the weights.
        calibration: that of the checkpoint, or None.
        num_detections: of the image that :meth:`stream` gave last.
        input: says what is embedded.
        compatible_with: no other model's fingerprint.

    Raises:
        ValueError: the model has no embeddings.
    """

    input = "the best detection of each image"
    faces_not_found = 0
    compatible_with = ()

    def __init__(self, predictor: Predictor) -> None:
        check_has_embeddings(predictor)
        self.predictor, self.cfg = predictor, predictor.cfg
        self.dim: int = predictor.cfg.MODEL.EMBEDDING.DIM
        self.fingerprint: str = predictor.fingerprint
        self.calibration = calibration_of(predictor)
        self.num_detections = 0

    def __call__(self, images: Input | Sequence[Input]) -> torch.Tensor:
        """
        Args:
            images: one image or a list of them, as for ``Predictor``.

        Returns:
            float32 ``(N, D)`` on the CPU, each of length 1.

        Raises:
            ValueError: nothing is detected in an image; names it. More than one detection is logged.
        """
        images = images if isinstance(images, (list, tuple)) else [images]
        embeddings = []
        for number, embedding in enumerate(self.stream(images)):
            name = images[number] if isinstance(images[number], (str, PathLike)) else f"image {number}"
            if embedding is None:
                raise ValueError(
                    f"{name}: nothing is detected, so there is no object to embed; leave the image out, or lower the "
                    "score threshold"
                )
            if self.num_detections > 1:
                logger.warning("%s: %d detections; the best one is taken", name, self.num_detections)
            embeddings.append(embedding)
        return torch.stack(embeddings) if embeddings else torch.zeros(0, self.dim)

    def stream(self, images: Iterable[Input]) -> Iterator[torch.Tensor | None]:
        """Yield the embedding ``(D,)`` of each image, in order; None if nothing is detected in it."""
        for result in self.predictor.predict(images):
            self.num_detections = len(result)
            # Copied, because a view would keep the embeddings of the whole image in memory.
            yield result.embeddings[0].clone() if len(result) else None

"""The embedding of the one object in each photo, from a detector with embeddings: what fills a gallery."""

import logging
from collections.abc import Iterable, Iterator, Sequence

import torch

from .identification import check_has_embeddings
from .predictor import Input, Predictor

logger = logging.getLogger(__name__)


class ObjectEmbedder:
    """Gives the embedding of the best detection of each image. Called and read as an ``Embedder`` is.

    Args:
        predictor: a model with embeddings. Its score threshold says what counts as a detection.

    Attributes:
        dim: D.
        fingerprint: identifies the weights.

    Raises:
        ValueError: the model has no embeddings.
    """

    def __init__(self, predictor: Predictor) -> None:
        check_has_embeddings(predictor)
        self.predictor, self.cfg = predictor, predictor.cfg
        self.dim: int = predictor.cfg.MODEL.EMBEDDING.DIM
        self.fingerprint: str = predictor.fingerprint

    def __call__(self, images: Input | Sequence[Input]) -> torch.Tensor:
        """
        Args:
            images: one image or a list of them, as for ``Predictor``.

        Returns:
            float32 ``(N, D)`` on the CPU, each of length 1.

        Raises:
            ValueError: nothing is detected in an image; names it. More than one detection is logged.
        """
        embeddings = list(self.stream(images if isinstance(images, (list, tuple)) else [images]))
        return torch.stack(embeddings) if embeddings else torch.zeros(0, self.dim)

    def stream(self, images: Iterable[Input]) -> Iterator[torch.Tensor]:
        """Yield the embedding ``(D,)`` of each image, in order, as :meth:`__call__`."""
        for number, result in enumerate(self.predictor.predict(images)):
            name = result.file_name or f"image {number}"
            if not len(result):
                raise ValueError(
                    f"{name}: nothing is detected, so there is no object to embed; leave the image out, or lower the "
                    "score threshold"
                )
            if len(result) > 1:
                found = ", ".join(f"{kind} {score:.2f}" for kind, score in zip(result.names, result.scores.tolist()))
                logger.warning("%s: %d detections (%s); the first one is taken", name, len(result), found)
            # Copied, because a view would keep the embeddings of the whole image in memory.
            yield result.embeddings[0].clone()

"""Probable label errors of identities: images that look like another identity than the one they are filed under."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from .findings import WARNING, Finding
from .label_errors import LabelError

WRONG_IDENTITY = "image that is probably of another identity"
# Squared distances of embeddings of length 1. An image is nearer to another centre by at least this much.
MARGIN = 0.1
_BLOCK = 4096


def identity_label_errors(
    dataset: str,
    records: Sequence[dict],
    embed: Callable[[Iterable[str]], Iterable[torch.Tensor]],
    identity_names: Sequence[str],
    margin: float = MARGIN,
) -> list[LabelError]:
    """Images that lie nearer to the centre of another identity than to that of their own.

    The centre of an identity is the mean of its embeddings, scaled to length 1; that of an image's own identity leaves
    the image itself out. An identity with a single image has no such centre, and its image is not looked at.

    Args:
        dataset: its name.
        records: with ``file_name``, ``image_id`` and ``identity``, an index of ``identity_names``.
        embed: gives the embedding ``(D,)``, of length 1, of each file, in order: ``Embedder.stream``.
        identity_names: by index.
        margin: least difference of the squared distances.

    Returns:
        The most certain first; ``score`` is the squared distance to the image's own centre, ``rank`` the difference,
        as a part of its largest value, 4.
    """
    embeddings = torch.stack(list(embed(record["file_name"] for record in records))).double().numpy()
    own = np.array([record["identity"] for record in records])
    known, index, counts = np.unique(own, return_inverse=True, return_counts=True)
    sums = np.zeros((len(known), embeddings.shape[1]))
    np.add.at(sums, index, embeddings)
    centres = _unit(sums)
    found = []
    for start in range(0, len(records), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(records)))
        to_own = _squared(embeddings[rows], _unit(sums[index[rows]] - embeddings[rows]))
        to_others = 2 - 2 * embeddings[rows] @ centres.T
        to_others[np.arange(len(rows)), index[rows]] = np.inf
        nearest = to_others.argmin(axis=1)
        gap = to_own - to_others[np.arange(len(rows)), nearest]
        for place in np.flatnonzero((gap > margin) & (counts[index[rows]] > 1)):
            names = identity_names[own[rows[place]]], identity_names[known[nearest[place]]]
            distances = to_own[place], to_others[place, nearest[place]]
            found.append(_error(dataset, records[rows[place]], names, distances))
    return sorted(found, key=lambda error: -error.rank)


def _error(dataset, record, names, distances) -> LabelError:
    text = (
        f"filed under {names[0]}, whose other images lie at a squared distance of {distances[0]:.2f}; nearer is "
        f"{names[1]}, at {distances[1]:.2f}"
    )
    finding = Finding(
        WRONG_IDENTITY, WARNING, dataset, record["file_name"], record["image_id"], None, text,
        f"the folder of {names[1]}, unless the model is mistaken",
    )  # fmt: skip
    return LabelError(finding, float(distances[0]), float(distances[0] - distances[1]) / 4, None)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a - b) ** 2).sum(axis=1)

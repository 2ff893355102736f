"""Verification with two models of comparable embeddings: v1 with v1, and v1 with v2 (FaceNet, appendix, figure 8).

P pairs, N images, D numbers per embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .verification import VerificationResult, evaluate, pair_distances


@dataclass(frozen=True)
class HarmonicResult:
    """``v1``: both images of a pair embedded by v1. ``v1_v2``: one by v1 and the other by v2."""

    v1: VerificationResult
    v1_v2: VerificationResult


def evaluate_harmonic(
    embeddings: np.ndarray,
    embeddings_v1: np.ndarray,
    indices: np.ndarray,
    same: np.ndarray,
    folds: np.ndarray,
    fars: Sequence[float],
) -> HarmonicResult:
    """Evaluate pairs by v1 alone, and across the models.

    Across, each pair (i, j) counts twice, as d(v1(i), v2(j)) and as d(v2(i), v1(j)), both in the fold of the pair.

    Args:
        embeddings, embeddings_v1: ``(N, D)`` of the same images, by v2 and v1.
        indices: int ``(P, 2)``, rows of the embeddings.
        same: bool ``(P,)``.
        folds: int ``(P,)``.
        fars: see ``evaluate``.

    Raises:
        ValueError: see ``evaluate``.
    """
    both, offset = np.concatenate([embeddings_v1, embeddings]), len(embeddings_v1)
    crossed = np.concatenate([indices + [0, offset], indices + [offset, 0]])
    return HarmonicResult(
        v1=evaluate(pair_distances(embeddings_v1, indices), same, folds, fars),
        v1_v2=evaluate(pair_distances(both, crossed), np.tile(same, 2), np.tile(folds, 2), fars),
    )

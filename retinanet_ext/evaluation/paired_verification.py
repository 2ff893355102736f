"""Two verifications of the same pairs of images: the difference of their accuracies, and the pairs that changed."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .bootstrap import CONFIDENCE, SAMPLES, Interval, percentile_interval

PAIRS_FILE = "distances.csv"
_COLUMNS = ("first", "second", "same", "fold", "distance", "threshold", "accepted")
_SHOWN = 3


@dataclass(frozen=True)
class VerifiedPairs:
    """P pairs and the answers to them.

    Args:
        pairs: P times (first image, second image, same, fold).
        distances: ``(P,)``, squared.
        right: bool ``(P,)``, whether the answer at the threshold of the pair's fold is right.
        source: the file.
    """

    pairs: list[tuple[str, str, bool, int]]
    distances: np.ndarray
    right: np.ndarray
    source: str


@dataclass(frozen=True)
class PairComparison:
    """See :func:`compare_pairs`.

    Args:
        num_pairs: P.
        first, second: accuracy over all pairs, 0 to 100.
        change: second - first, with its paired interval.
        gained, lost: (pair, distance in the first, distance in the second) where only the second, or only the first, is
            right; the largest change of the distance first.
    """

    num_pairs: int
    first: float
    second: float
    change: Interval
    gained: list[tuple]
    lost: list[tuple]


def read_pairs(path: str | os.PathLike) -> VerifiedPairs:
    """Read ``distances.csv`` of a verification.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another content.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; evaluate the FaceNet again with --eval-only")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != _COLUMNS:
            raise ValueError(f"{path} has the columns {reader.fieldnames}; legal: {', '.join(_COLUMNS)}")
        rows = list(reader)
    pairs, distances, right = [], [], []
    for number, row in enumerate(rows, start=2):
        try:
            same, distance = bool(int(row["same"])), float(row["distance"])
            if not math.isfinite(distance):
                raise ValueError(f"the distance {distance}")
            pairs.append((row["first"], row["second"], same, int(row["fold"])))
            distances.append(distance)
            right.append(same == bool(int(row["accepted"])))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}; evaluate again with --eval-only") from error
    if not pairs:
        raise ValueError(f"{path} has no pairs; evaluate again with --eval-only")
    return VerifiedPairs(pairs, np.array(distances), np.array(right), str(path))


def compare_pairs(
    first: VerifiedPairs, second: VerifiedPairs, *, samples: int = SAMPLES, seed: int = 0,
    confidence: float = CONFIDENCE,
) -> PairComparison:  # fmt: skip
    """Compare the answers, pair by pair.

    The interval draws pairs with replacement. Pairs share images and people, so it may be too narrow.

    Raises:
        ValueError: the pairs differ.
    """
    index = {pair: n for n, pair in enumerate(second.pairs)}
    missing = [pair for pair in first.pairs if pair not in index]
    if missing or len(first.pairs) != len(second.pairs) or len(index) != len(second.pairs):
        raise ValueError(
            f"{first.source} and {second.source} cannot be compared: {len(missing)} of the {len(first.pairs)} pairs of "
            f"the first are not among the {len(second.pairs)} of the second, such as {missing[:_SHOWN]} (first image, "
            "second image, same, fold). Verify both on the same pairs"
        )
    order = np.array([index[pair] for pair in first.pairs])
    right, distances = second.right[order], second.distances[order]
    steps = right.astype(np.int64) - first.right
    # A resample is made of pairs that gain, lose or stay; their numbers are all that counts.
    counts = np.array([(steps > 0).sum(), (steps < 0).sum(), (steps == 0).sum()])
    drawn = np.random.default_rng(seed).multinomial(len(steps), counts / len(steps), size=samples)
    change = percentile_interval(
        100 * float(steps.mean()), 100 * (drawn[:, 0] - drawn[:, 1]) / len(steps), confidence
    )
    by_change = np.argsort(-np.abs(distances - first.distances), kind="stable")
    listed = [
        [(first.pairs[n], float(first.distances[n]), float(distances[n])) for n in by_change if steps[n] == step]
        for step in (1, -1)
    ]
    accuracies = (100 * float(of.mean()) for of in (first.right, right))
    return PairComparison(len(steps), *accuracies, change, *listed)

"""Same or different? Accuracy over folds, VAL at a FAR, ROC, AUC and EER, for anybody's distances (FaceNet, section 4).

``evaluate_reference`` is the readable form and does not run in training; ``evaluate`` computes the same from one sort.
P pairs, N images, D numbers per embedding. Only numpy.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .roc import Roc, allowed_pairs

FARS = (1e-1, 1e-2, 1e-3)
_BLOCK = 65536  # pairs whose embeddings are in memory at a time


@dataclass(frozen=True)
class ValAtFar:
    """VAL where the threshold of each fold was selected for a FAR on the other folds. Arrays are ``(K,)``, by fold.

    Args:
        target: the FAR that was asked for.
        thresholds: selected on the other folds. NaN: these have no different pair.
        vals: share of the fold's same pairs that are accepted. NaN: it has none, or no threshold.
        fars: share of the fold's different pairs that are accepted. NaN likewise.
        problem: "" or why the FAR cannot be measured on so few pairs, as a sentence.
    """

    target: float
    thresholds: np.ndarray
    vals: np.ndarray
    fars: np.ndarray
    problem: str

    @property
    def val(self) -> float:
        """Mean over the folds that have one; NaN if none has."""
        return mean_and_error(self.vals)[0]

    @property
    def val_error(self) -> float:
        """Standard error of that mean; NaN for fewer than two folds."""
        return mean_and_error(self.vals)[1]

    @property
    def far(self) -> float:
        """The FAR achieved on the held-out folds: their mean."""
        return mean_and_error(self.fars)[0]

    @property
    def threshold(self) -> float:
        """Mean over folds."""
        return mean_and_error(self.thresholds)[0]


@dataclass(frozen=True)
class VerificationResult:
    """Rates are 0 to 1. Arrays over folds are ``(K,)``, in ascending order of the folds' numbers.

    Args:
        folds: int64, the folds' numbers.
        fold_sizes: int64, pairs per fold.
        accuracies: share of each fold's pairs that are answered right, at the threshold of that fold.
        thresholds: for each fold the threshold of highest accuracy on the other folds; see ``Roc.best_threshold``.
        val_at_far: in the order of ``fars``.
        roc: of all pairs together.
    """

    folds: np.ndarray
    fold_sizes: np.ndarray
    accuracies: np.ndarray
    thresholds: np.ndarray
    val_at_far: tuple[ValAtFar, ...]
    roc: Roc

    @property
    def accuracy(self) -> float:
        """Mean over folds."""
        return mean_and_error(self.accuracies)[0]

    @property
    def accuracy_error(self) -> float:
        """Standard error of that mean over folds, the paper's "±"."""
        return mean_and_error(self.accuracies)[1]

    @property
    def threshold(self) -> float:
        """Mean over folds."""
        return float(np.mean(self.thresholds))

    def metrics(self) -> dict[str, float]:
        """What ``results.json`` has: rates in percent, thresholds as they are, numbers of pairs."""
        found = {"accuracy": 100 * self.accuracy, "accuracy_error": 100 * self.accuracy_error}
        found["threshold"] = self.threshold
        for at in self.val_at_far:
            name = f"VAL@FAR={at.target:g}"
            found |= {name: 100 * at.val, f"{name}_error": 100 * at.val_error, f"{name}_measured_FAR": 100 * at.far}
        found |= {"AUC": 100 * self.roc.auc, "EER": 100 * self.roc.eer}
        return found | {"num_same": self.roc.num_same, "num_different": self.roc.num_different}


def evaluate_reference(
    distances: Sequence[float], same: Sequence[bool], folds: Sequence[int], fars: Sequence[float] = FARS
) -> dict[str, list[float]]:
    """Readable form of :func:`evaluate`: a loop over folds, thresholds and pairs. Tests compare the two.

    Returns:
        ``accuracies`` and ``thresholds``, by fold; for each FAR ``vals FAR``, ``fars FAR`` and ``thresholds FAR``.
    """

    def accepted(pairs, threshold, kind):
        return sum(1 for pair in pairs if same[pair] == kind and distances[pair] <= threshold)

    def rate(pairs, threshold, kind):
        number = sum(1 for pair in pairs if same[pair] == kind)
        return accepted(pairs, threshold, kind) / number if number else float("nan")

    found: dict[str, list[float]] = {}
    for fold in sorted(set(folds)):
        own = [pair for pair in range(len(same)) if folds[pair] == fold]
        others = [pair for pair in range(len(same)) if folds[pair] != fold]
        ends = sorted({distances[pair] for pair in others})
        ends = [np.nextafter(ends[0], -np.inf), *ends]
        rejected = [sum(not same[p] for p in others) - accepted(others, end, False) for end in ends]
        correct = [accepted(others, end, True) + right for end, right in zip(ends, rejected)]
        threshold = _middle_of_widest(ends, [value == max(correct) for value in correct])
        right = accepted(own, threshold, True) + sum(not same[p] for p in own) - accepted(own, threshold, False)
        found.setdefault("thresholds", []).append(threshold)
        found.setdefault("accuracies", []).append(right / len(own))
        for far in fars:
            legal = [end for end in ends if rate(others, end, False) <= far * (1 + 1e-12)]
            after = [end for end in ends if legal and end > legal[-1]]
            threshold = (legal[-1] + (after or legal[-1:])[0]) / 2 if legal else float("nan")
            found.setdefault(f"thresholds {far:g}", []).append(threshold)
            found.setdefault(f"vals {far:g}", []).append(rate(own, threshold, True) if legal else float("nan"))
            found.setdefault(f"fars {far:g}", []).append(rate(own, threshold, False) if legal else float("nan"))
    return found


def _middle_of_widest(ends, is_best):
    widest, middle, start = -1.0, 0.0, None
    for index, best in enumerate([*is_best, False]):
        if best and start is None:
            start = index
        if not best and start is not None:
            low, high = ends[start], ends[min(index, len(ends) - 1)]
            if high - low > widest:
                widest, middle = high - low, (low + high) / 2
            start = None
    return middle


def evaluate(
    distances: np.ndarray, same: np.ndarray, folds: np.ndarray, fars: Sequence[float] = FARS
) -> VerificationResult:
    """Verification by a threshold on the distance. The threshold of a fold never sees the pairs of that fold.

    Args:
        distances: ``(P,)``, smaller for more alike; squared L2 distances in the paper.
        same: bool ``(P,)``, whether both images of the pair show one identity.
        folds: int ``(P,)``, the fold of each pair.
        fars: false-accept rates, 0 to below 1, for which VAL is reported.

    Raises:
        ValueError: lengths differ; a distance is not finite; all pairs are of one kind or in one fold; an illegal FAR.
    """
    distances, same, folds = _checked(distances, same, folds, fars)
    order = np.argsort(distances, kind="stable")
    distances, same, folds = distances[order], same[order], folds[order]
    numbers, sizes = np.unique(folds, return_counts=True)
    thresholds, accuracies, selected = [], [], []
    for number in numbers:
        own = folds == number
        held_out, others = Roc.of_sorted(distances[own], same[own]), Roc.of_sorted(distances[~own], same[~own])
        threshold = others.best_threshold()
        right, wrong = held_out.accepted(threshold)
        thresholds.append(threshold)
        accuracies.append((right + held_out.num_different - wrong) / own.sum())
        selected.append([_val_at(held_out, others, far) for far in fars])
    columns = np.array(selected).reshape(len(numbers), len(fars), 3)
    different = [int((~same & (folds != number)).sum()) for number in numbers]
    at_far = tuple(
        ValAtFar(far, *columns[:, index].T, problem=far_problem(far, min(different), "the other folds"))
        for index, far in enumerate(fars)
    )
    roc = Roc.of_sorted(distances, same)
    return VerificationResult(numbers, sizes, np.array(accuracies), np.array(thresholds), at_far, roc)


def _val_at(held_out, others, far):
    """Threshold, VAL and FAR of a fold; NaN where undefined."""
    if not others.num_different:
        return np.nan, np.nan, np.nan
    threshold = others.threshold_at_far(far)
    accepted_same, accepted_different = held_out.accepted(threshold)
    val = accepted_same / held_out.num_same if held_out.num_same else np.nan
    return threshold, val, accepted_different / held_out.num_different if held_out.num_different else np.nan


def far_problem(far: float, different: int, where: str) -> str:
    """A sentence if ``different`` pairs cannot measure the FAR, because a single accepted pair exceeds it; else ""."""
    if far == 0 or allowed_pairs(far, different) >= 1:
        return ""
    return (
        f"{different} different pairs in {where} cannot measure a FAR of {far:g}: one accepted pair is already "
        f"{1 / max(1, different):.2g}; it takes at least {int(np.ceil(1 / far * (1 - 1e-12)))}"
    )


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error (deviation with n - 1, over sqrt n), of the values ``(K,)`` that are not NaN."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    mean = float(values.mean()) if len(values) else float("nan")
    return mean, float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _checked(distances, same, folds, fars):
    distances = check_distances(distances)
    same, folds = np.asarray(same), np.asarray(folds)
    if distances.ndim != 1 or same.shape != distances.shape or folds.shape != distances.shape:
        raise ValueError(
            f"distances {distances.shape}, same {same.shape} and folds {folds.shape} must each have shape (P,)"
        )
    same = check_kinds(same)
    if len(np.unique(folds)) < 2:
        raise ValueError(f"{len(same)} pairs in one fold; a threshold is selected on other folds, so give at least two")
    for far in fars:
        if not 0 <= far < 1:
            raise ValueError(f"a FAR of {far}; legal: from 0 to below 1")
    return distances, same, folds


def check_distances(distances: np.ndarray) -> np.ndarray:
    """The distances ``(P,)`` as float64.

    Raises:
        ValueError: a distance is not finite; the message has the pair's index.
    """
    distances = np.asarray(distances, dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(distances))
    if len(wrong):
        raise ValueError(
            f"the distance of pair {wrong[0]} is {distances.flat[wrong[0]]}, and {len(wrong)} of {distances.size} are "
            "not finite; look for NaN in the embeddings of that pair"
        )
    return distances


def check_kinds(same: np.ndarray) -> np.ndarray:
    """``same`` as bool ``(P,)``.

    Raises:
        ValueError: values other than 0 and 1, or all pairs of one kind.
    """
    if not np.isin(same, (0, 1)).all():
        raise ValueError("same must be bool: whether both images of a pair show one identity")
    same = np.asarray(same, dtype=bool)
    if not len(same) or same.all() or not same.any():
        kind = "same" if same.any() else "different"
        found = f"all {len(same)} pairs are {kind} pairs" if len(same) else "there are no pairs"
        raise ValueError(f"{found}; verification needs pairs of one identity and pairs of two")
    return same


def pair_distances(embeddings: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Squared L2 distances, float64 ``(P,)``, of pairs, int ``(P, 2)``, of rows of the embeddings ``(N, D)``."""
    embeddings = np.asarray(embeddings)
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    distances = np.empty(len(pairs))
    for start in range(0, len(pairs), _BLOCK):
        first, second = (embeddings[index].astype(np.float64) for index in pairs[start : start + _BLOCK].T)
        distances[start : start + _BLOCK] = np.square(first - second).sum(axis=1)
    return distances


def video_distance(first: np.ndarray, second: np.ndarray, frames: int | None = 100) -> float:
    """Distance of two videos: the mean of the squared L2 distances of all pairs of a frame of each (paper, 5.7).

    For embeddings of length 1 this orders videos as the mean cosine similarity s does, because it is 2 - 2 s.

    Args:
        first, second: embeddings ``(N1, D)`` and ``(N2, D)`` of the frames with a face, in order.
        frames: how many frames from the start of each video count; None: all.
    """
    first, second = (np.asarray(video, dtype=np.float64)[:frames] for video in (first, second))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or not len(first) or not len(second):
        raise ValueError(
            f"embeddings of two videos of shapes {first.shape} and {second.shape}; legal: (N1, D) and (N2, D), with at "
            "least one frame each"
        )
    squares = np.square(first).sum(axis=1).mean() + np.square(second).sum(axis=1).mean()
    return max(0.0, float(squares - 2 * first.mean(axis=0) @ second.mean(axis=0)))


def verify_embeddings(
    embeddings: Mapping[Any, np.ndarray] | np.ndarray, pairs: Any, fars: Sequence[float] = FARS
) -> VerificationResult:
    """:func:`evaluate` for embeddings of any model.

    Args:
        embeddings: ``(D,)`` by image id, or an array ``(N, D)``, whose ids are the rows' indices.
        pairs: has ``first`` and ``second``, image ids, ``same`` and ``fold``, P of each; see ``pairs.py``.
        fars: see :func:`evaluate`.

    Raises:
        KeyError: a pair names an image without embedding.
        ValueError: see :func:`evaluate`; embeddings of several sizes.
    """
    rows, matrix = embedding_rows(embeddings)
    indices = pair_rows(rows, pairs)
    return evaluate(pair_distances(matrix, indices), pairs.same, pairs.fold, fars)


def embedding_rows(embeddings: Mapping[Any, np.ndarray] | np.ndarray) -> tuple[Mapping[Any, int], np.ndarray]:
    """Row of each image id, and the embeddings as one array ``(N, D)``."""
    if not isinstance(embeddings, Mapping):
        matrix = np.asarray(embeddings)
        return {index: index for index in range(len(matrix))}, matrix
    sizes = {np.shape(embedding): image for image, embedding in embeddings.items()}
    if len(sizes) > 1:
        (one, image), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            f"the embedding of {image!r} has shape {one}, that of {second!r} {other}; compare those of one model"
        )
    return {image: row for row, image in enumerate(embeddings)}, np.stack([*embeddings.values()])


def check_finite(matrix: np.ndarray, images: Sequence[Any]) -> None:
    """Refuse embeddings ``(N, D)`` with NaN or infinity.

    Raises:
        ValueError: names the first of the N ``images`` with one, as its ``repr`` shows it.
    """
    wrong = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} of {len(matrix)} embeddings have NaN or infinity, first that of {images[wrong[0]]!r}; the "
            "weights of the model have probably diverged"
        )


def pair_rows(rows: Mapping[Any, int], pairs: Any) -> np.ndarray:
    """Rows of both images of each pair, int64 ``(P, 2)``.

    Raises:
        KeyError: images of pairs are not in ``rows``; the message has their number and the first of them.
    """
    absent = _absent(rows, [*pairs.first, *pairs.second])
    if absent:
        raise KeyError(
            f"{len(absent)} images of the pairs have no embedding, first {absent[0]!r}; embed all images that the "
            "pairs name"
        )
    return np.array([[rows[a], rows[b]] for a, b in zip(pairs.first, pairs.second)], dtype=np.int64).reshape(-1, 2)


def _absent(rows, images: Iterable) -> list:
    return list(dict.fromkeys(image for image in images if image not in rows))

"""Draws pairs of images, and their folds, from a random state. N images, P pairs.

Pairs of N images i < j are numbered: pair (i, j) has the number j (j - 1) / 2 + i.
"""

import numpy as np

# Up to this many pairs are listed and shuffled. Beyond, numbers of pairs are drawn until enough differ.
_MAX_LISTED = 5_000_000


def same_pairs(labels: np.ndarray, count: int | str, random: np.random.RandomState) -> np.ndarray:
    """Pairs of one identity: int64 ``(P, 2)``, indices of images, in random order.

    Args:
        labels: identity of each image, int64 ``(N,)``.
        count: P, or "all".
        random: gives the order.

    Raises:
        ValueError: fewer pairs exist.
    """
    # Images sorted by identity: a pair is an identity and a pair of positions in its group.
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    ends = np.cumsum(sizes * (sizes - 1) // 2)
    total = int(ends[-1]) if len(ends) else 0
    numbers = _draw(total, _checked_count(count, total, "same"), random)
    group = np.searchsorted(ends, numbers, side="right")
    within = numbers - (ends[group] - sizes[group] * (sizes[group] - 1) // 2)
    return np.sort(order[_unranked(within) + starts[group][:, None]], axis=1)


def different_pairs(labels: np.ndarray, count: int | str, random: np.random.RandomState) -> np.ndarray:
    """Pairs of two identities: int64 ``(P, 2)``; see :func:`same_pairs`."""
    total = len(labels) * (len(labels) - 1) // 2
    sizes = np.unique(labels, return_counts=True)[1]
    number_same = int((sizes * (sizes - 1) // 2).sum())
    count = _checked_count(count, total - number_same, "different")
    if total <= _MAX_LISTED or count * 2 > total:
        pairs = _unranked(np.arange(total))
        pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
        return pairs[random.permutation(len(pairs))[:count]]
    pairs = np.empty((0, 2), dtype=np.int64)
    numbers = np.empty(0, dtype=np.int64)
    while len(pairs) < count:
        numbers = _distinct(np.concatenate([numbers, random.randint(0, total, 2 * count, dtype=np.int64)]))
        pairs = _unranked(numbers)
        pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
    return pairs[:count]


def fold_numbers(count: int, folds: int, random: np.random.RandomState) -> np.ndarray:
    """A fold from 0 for each of ``count`` pairs, int64 ``(count,)``, in random order: sizes differ by at most one."""
    return random.permutation(np.arange(count, dtype=np.int64) % folds)


def _checked_count(count, total, kind):
    if count == "all":
        return total
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError(f"the number of {kind} pairs is {count!r}; legal: an integer above 0, or 'all'")
    if count > total:
        raise ValueError(f"{count} {kind} pairs are asked for, but the images give only {total}; take fewer, or 'all'")
    return int(count)


def _draw(total, count, random):
    if total <= _MAX_LISTED or count * 2 > total:
        return random.permutation(total)[:count].astype(np.int64)
    numbers = np.empty(0, dtype=np.int64)
    while len(numbers) < count:
        numbers = _distinct(np.concatenate([numbers, random.randint(0, total, 2 * count, dtype=np.int64)]))
    return numbers[:count]


def _distinct(numbers):
    """The different numbers in the order in which they first occur."""
    return numbers[np.sort(np.unique(numbers, return_index=True)[1])]


def _unranked(numbers):
    """The pairs (i, j), i < j, of numbers ``(P,)``: int64 ``(P, 2)``."""
    second = ((1 + np.sqrt(1 + 8 * numbers.astype(np.float64))) / 2).astype(np.int64)
    # The square root may be off by one for large numbers.
    second -= second * (second - 1) // 2 > numbers
    second += (second + 1) * second // 2 <= numbers
    return np.stack([numbers - second * (second - 1) // 2, second], axis=1)

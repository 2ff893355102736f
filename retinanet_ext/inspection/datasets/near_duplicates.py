"""Finds images that are the same, or nearly, within a dataset and between datasets.

Byte-identical files have the same digest. Near-duplicates (the same picture at another size or quality, or slightly
brighter) have 64-bit hashes that differ in a few bits, and thumbnails that are correlated. Pairs of hashes are found
exactly, by multi-index search: of hashes that differ in at most 4 bits, at least one of 5 parts is the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .image_facts import THUMBNAIL, ImageTable

MAX_DISTANCE = 4  # bits
MIN_CORRELATION = 0.98  # of two thumbnails
_PARTS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))  # first bit and number of bits
# Of many images with the same hash in one dataset (frames of a camera that stands still), each image is compared with
# the first ones only.
_REFERENCES = 32
_BLOCK = 1 << 16  # pairs of images that are compared at once
_BITS_OF_16 = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)

SAME_DATASET, LEAK, OTHER_DATASET = "one dataset", "training and test data", "two datasets"


@dataclass(frozen=True)
class Twin:
    """Image `image` is (nearly) the same as image `partner`; both are indices.

    ``where``: one of SAME_DATASET, LEAK, OTHER_DATASET. ``distance``: bits between the hashes; -1: identical files.
    """

    image: int
    partner: int
    where: str
    distance: int


def find_twins(table: ImageTable, datasets: np.ndarray, tested: Sequence[bool], seen: np.ndarray) -> list[Twin]:
    """For each image, at most one twin of each of the three places: identical files first, then the nearest.

    The twin of an image in the same dataset, or in another of the same split, comes before it. Between splits, the
    test image is named, with its twin in the training data.

    Args:
        table: of N images.
        datasets: ``(N,)`` int, the dataset of each image.
        tested: for each dataset, whether it is of the test data.
        seen: ``(N,)`` bool: leave out images that were found to be the same record as an earlier one.
    """
    tested = np.asarray(tested, bool)[datasets]
    best = _Best(len(datasets), datasets, tested)
    usable = np.flatnonzero(~seen)
    by_digest: dict[bytes, list[int]] = {}
    for index in usable.tolist():
        if table.digests[index]:
            by_digest.setdefault(table.digests[index], []).append(index)
    for group in by_digest.values():
        if len(group) > 1:
            references = _first_of_each(group, datasets)
            first, second = np.meshgrid(references, group, indexing="ij")
            best.add(first.ravel(), second.ravel(), np.full(first.size, -1))
    usable = usable[~table.flat[usable]]
    patterns = _normalized(table.thumbnails)
    for first, second, distance in _similar_images(table.hashes, usable, datasets):
        alike = np.einsum("ij,ij->i", patterns[first], patterns[second]) >= MIN_CORRELATION
        best.add(first[alike], second[alike], distance[alike])
    return best.twins()


def similar_pairs(hashes: np.ndarray, max_distance: int = MAX_DISTANCE) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of hashes that differ in at most `max_distance` bits, in blocks.

    Args:
        hashes: uint64 ``(U,)``, all different.
        max_distance: below the number of parts, 5.

    Yields:
        indices ``(P, 2)`` and distances ``(P,)``. A pair may come several times.
    """
    if max_distance >= len(_PARTS):
        raise ValueError(f"max_distance is {max_distance}; the search finds up to {len(_PARTS) - 1} bits.")
    for start, bits in _PARTS:
        part = (hashes >> np.uint64(start)) & np.uint64((1 << bits) - 1)
        order = np.argsort(part, kind="stable")
        part = part[order]
        left = np.arange(len(order))
        # Hashes with the same part lie side by side: compare each with the next, the one after, and so on.
        for step in range(1, len(order)):
            left = left[left < len(order) - step]
            left = left[part[left] == part[left + step]]
            if not len(left):
                break
            pairs = np.stack([order[left], order[left + step]], axis=1)
            distances = _distances(hashes[pairs[:, 0]], hashes[pairs[:, 1]])
            near = distances <= max_distance
            if near.any():
                yield pairs[near], distances[near]


def _distances(first, second):
    words = np.ascontiguousarray(first ^ second).view(np.uint16).reshape(-1, 4)
    return _BITS_OF_16[words].sum(axis=1, dtype=np.int64)


def _similar_images(hashes, usable, datasets):
    """Yield indices of two images each, and the distance of their hashes, in blocks of a bounded size."""
    if not len(usable):
        return
    different, group = np.unique(hashes[usable], return_inverse=True)
    members = _Lists(usable, group, len(different))
    references = _Lists(*_references(usable, group, datasets), len(different))
    same = np.flatnonzero(members.counts > 1)
    blocks = [(np.stack([same, same], axis=1), np.zeros(len(same), np.int64))]
    for pairs, distances in (*blocks, *similar_pairs(different)):
        for a, b in ((0, 1), (1, 0)):
            sizes = references.counts[pairs[:, a]] * members.counts[pairs[:, b]]
            ends = np.cumsum(sizes)
            start = 0
            while start < len(pairs):
                done = ends[start - 1] if start else 0
                stop = max(start + 1, int(np.searchsorted(ends, done + _BLOCK, side="right")))
                yield _product(references, pairs[start:stop, a], members, pairs[start:stop, b], distances[start:stop])
                start = stop


class _Lists:
    """Lists of images, one for each group."""

    def __init__(self, images, group, num_groups):
        self.images = images[np.argsort(group, kind="stable")]
        self.counts = np.bincount(group, minlength=num_groups)
        self.starts = np.cumsum(self.counts) - self.counts


def _references(usable, group, datasets):
    """The first images of each group and dataset."""
    key = group.astype(np.int64) * (int(datasets.max()) + 1) + datasets[usable]
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    place = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    kept = np.sort(order[place < _REFERENCES])
    return usable[kept], group[kept]


def _product(first, first_groups, second, second_groups, distances):
    """All pairs of an image of the first list and one of the second, for each pair of groups."""
    n, m = first.counts[first_groups], second.counts[second_groups]
    sizes = n * m
    row = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    a = first.images[first.starts[first_groups][row] + place // m[row]]
    b = second.images[second.starts[second_groups][row] + place % m[row]]
    return a, b, distances[row]


def _first_of_each(group, datasets):
    taken: dict[int, int] = {}
    for index in group:
        taken.setdefault(int(datasets[index]), index)
    return list(taken.values())


def _normalized(thumbnails):
    """float32 ``(N, 256)`` with mean 0 and length 1; 0 for images of one colour."""
    values = thumbnails.reshape(-1, THUMBNAIL * THUMBNAIL).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


class _Best:
    """The nearest twin of each image, in each of the three places."""

    def __init__(self, count, datasets, tested):
        self.datasets, self.tested, self.count = datasets, tested, count
        self.nothing = np.iinfo(np.int64).max
        self.keys = {place: np.full(count, self.nothing) for place in (SAME_DATASET, LEAK, OTHER_DATASET)}

    def add(self, first, second, distance):
        different = first != second
        first, second, distance = first[different], second[different], distance[different]
        same = self.datasets[first] == self.datasets[second]
        leak = ~same & (self.tested[first] != self.tested[second])
        # Of a leak the test image is named, else the later one.
        named_first = np.where(leak, self.tested[first], first > second)
        image, partner = np.where(named_first, first, second), np.where(named_first, second, first)
        key = (distance + 1) * self.count + partner
        for place, chosen in ((SAME_DATASET, same), (LEAK, leak), (OTHER_DATASET, ~same & ~leak)):
            np.minimum.at(self.keys[place], image[chosen], key[chosen])

    def twins(self):
        found = []
        for place, keys in self.keys.items():
            for image in np.flatnonzero(keys != self.nothing).tolist():
                distance, partner = divmod(int(keys[image]), self.count)
                found.append(Twin(image, partner, place, distance - 1))
        return found

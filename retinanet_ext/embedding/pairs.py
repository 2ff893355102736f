"""Pairs of images for verification: read, written, drawn, and found among the images of a dataset.

P pairs. An image is named by its id, its path relative to the dataset's folder with forward slashes.

Two text forms are read:

- LFW's ``pairs.txt``: a first line ``folds pairs-per-fold`` (or one number: a single fold), then for each fold that
  many lines ``name n1 n2`` (same person) and as many lines ``name1 n1 name2 n2``, separated by tabs. ``n`` is the
  number in the file name ``name_0001.jpg``.
- A table of ``path,path,same`` or ``path,path,same,fold``, separated by commas or tabs, with or without a heading.
"""

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retinanet_ext.d2 import MetadataCatalog

from .pair_drawing import different_pairs, fold_numbers, same_pairs

# Suffixes of image files, in lower case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".pnm", ".bmp", ".webp", ".tif", ".tiff", ".gif")
MISSING_POLICIES = ("error", "count")
MISSING_KEY = "DATASETS.ON_MISSING_PAIR"
_TRUE = {"1", "true", "yes", "same"}
_FALSE = {"0", "false", "no", "different", "diff"}
_NUMBERED = re.compile(r"(?:(?P<name>.+)_)?(?P<number>[0-9]+)")
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Pairs:
    """``first``, ``second``: image ids, str objects ``(P,)``. ``same``: bool ``(P,)``, whether both show the same
    identity. ``fold``: int64 ``(P,)``, from 0."""

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    fold: np.ndarray

    @classmethod
    def of(cls, first: Sequence[str], second: Sequence[str], same: Sequence[bool], fold: Sequence[int]) -> "Pairs":
        """Pairs from four sequences of one length."""
        ids = [np.array(list(names), dtype=object).reshape(-1) for names in (first, second)]
        pairs = cls(*ids, np.asarray(same, dtype=bool).reshape(-1), np.asarray(fold, dtype=np.int64).reshape(-1))
        if len({len(pairs.first), len(pairs.second), len(pairs.same), len(pairs.fold)}) != 1:
            raise ValueError("first, second, same and fold of pairs must have one length")
        return pairs

    def __len__(self) -> int:
        return len(self.same)

    def __eq__(self, other: object) -> bool:
        names = ("first", "second", "same", "fold")
        return isinstance(other, Pairs) and all(np.array_equal(getattr(self, n), getattr(other, n)) for n in names)

    @property
    def num_folds(self) -> int:
        """Number of different folds."""
        return len(np.unique(self.fold))


@dataclass(frozen=True, eq=False)
class MatchedPairs:
    """Pairs as rows of a list of images. ``indices``: int64 ``(P, 2)``; ``same``, ``fold``: as in :class:`Pairs`;
    ``num_missing``: pairs that were left out, because an image is missing."""

    indices: np.ndarray
    same: np.ndarray
    fold: np.ndarray
    num_missing: int


def match_pairs(pairs: Pairs, image_ids: Sequence[str], on_missing: str = "error", what: str = "") -> MatchedPairs:
    """Find the images of pairs in a list.

    Args:
        pairs: P pairs.
        image_ids: N ids, as in the records of the dataset.
        on_missing: "error", or "count": pairs with an image that is not in the list are left out and counted.
        what: names the dataset in messages.

    Returns:
        The pairs that were found, in order, as indices into ``image_ids``.

    Raises:
        ValueError: an image is missing under "error", or no pair is left; the message names the first images.
    """
    if on_missing not in MISSING_POLICIES:
        raise ValueError(f"{MISSING_KEY} is {on_missing!r}; legal values: {', '.join(MISSING_POLICIES)}")
    rows = {image_id: row for row, image_id in enumerate(image_ids)}
    indices = np.array(
        [[rows.get(a, -1), rows.get(b, -1)] for a, b in zip(pairs.first, pairs.second, strict=True)], dtype=np.int64
    ).reshape(-1, 2)
    found = (indices >= 0).all(axis=1)
    num_missing = int((~found).sum())
    if num_missing and (on_missing == "error" or not found.any()):
        missing = sorted({i for i in (*pairs.first[~found], *pairs.second[~found]) if i not in rows})
        remedy = f"set {MISSING_KEY} count, which leaves these pairs out and counts them" if found.any() else (
            "check that the names are paths relative to the dataset's ROOT"
        )  # fmt: skip
        where = f"Dataset {what!r}: " if what else ""
        raise ValueError(
            f"{where}{num_missing} of {len(pairs)} pairs have an image that the dataset lacks, {len(missing)} images "
            f"in all, such as {', '.join(map(repr, missing[:_SHOWN]))}. Add the images, or {remedy}."
        )
    return MatchedPairs(indices[found], pairs.same[found], pairs.fold[found], num_missing)


def registered_pairs(dataset_name: str) -> Pairs | None:
    """The pairs of a registered dataset: ``verification_pairs`` in its metadata, ``Pairs`` or a function that returns
    them; None if it has none.
    """
    pairs = MetadataCatalog.get(dataset_name).get("verification_pairs", None)
    return pairs() if callable(pairs) else pairs


def draw_pairs(
    image_ids: Sequence[str],
    identities: Sequence,
    *,
    same: int | str = "all",
    different: int | str = "all",
    folds: int = 10,
    seed: int = 0,
) -> Pairs:
    """Draw pairs of images at random, without repetition; the same on every machine, whatever the order of the images.

    Args:
        image_ids: N different ids.
        identities: identity of each image: N values of any kind that can be compared.
        same: number of pairs of the same identity, or "all".
        different: number of pairs of different identities, or "all".
        folds: number of folds. Each has the same number of same pairs, and of different pairs, up to one. An identity
            may be in several folds.
        seed: not negative.

    Returns:
        The pairs, sorted by fold, in each fold the same ones first.

    Raises:
        ValueError: the images do not give that many pairs, or fewer pairs of a kind than folds.
    """
    order = sorted(range(len(image_ids)), key=lambda index: image_ids[index])
    ids = np.array([image_ids[index] for index in order], dtype=object)
    values = [identities[index] for index in order]
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    labels = np.array([numbers[value] for value in values], dtype=np.int64)
    # RandomState's streams are frozen by NumPy's policy; those of Generator may change with a release.
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    kinds = (same_pairs(labels, same, random), different_pairs(labels, different, random))
    for name, drawn in zip(("same", "different"), kinds, strict=True):
        if len(drawn) < folds:
            raise ValueError(
                f"{len(drawn)} pairs of the {name} identity or identities cannot be divided into {folds} folds; draw "
                f"at least {folds}, or set fewer folds"
            )
    fold = np.concatenate([fold_numbers(len(drawn), folds, random) for drawn in kinds])
    is_same = np.repeat([True, False], [len(kinds[0]), len(kinds[1])])
    indices = np.concatenate(kinds)
    order = np.lexsort((~is_same, fold))
    return Pairs(ids[indices[order, 0]], ids[indices[order, 1]], is_same[order], fold[order])


def read_pairs(path: str | Path, root: str | Path | None = None, *, folds: int = 10, seed: int = 0) -> Pairs:
    """Read a file of either form, recognised by its first line: numbers alone begin LFW's form.

    Args:
        path: a text file.
        root: the folder of the images, see :func:`read_lfw_pairs` and :func:`read_pair_table`.
        folds, seed: for a table without folds, see :func:`read_pair_table`.
    """
    with open(path, encoding="utf-8-sig") as file:
        first = file.readline()
    if re.fullmatch(r"\s*[0-9]+(\s+[0-9]+)?\s*", first):
        return read_lfw_pairs(path, root)
    return read_pair_table(path, root, folds=folds, seed=seed)


def read_lfw_pairs(path: str | Path, root: str | Path | None = None) -> Pairs:
    """Read a file in the form of LFW's ``pairs.txt``.

    Args:
        path: see the module.
        root: the folder of the images. There, the number 1 of a name means ``name/name_0001`` or ``name/1`` with any
            known suffix; an image that does not exist keeps LFW's name. None: LFW's names, ``name/name_0001.jpg``.

    Returns:
        The pairs in the order of the file.

    Raises:
        ValueError: the file has another form, or another number of pairs than its first line says; names the line.
    """
    with open(path, encoding="utf-8-sig") as file:
        lines = [line.rstrip("\r\n") for line in file]
    while lines and not lines[-1].strip():
        lines.pop()
    header = lines[0].split() if lines else []
    if not 1 <= len(header) <= 2 or not all(word.isdecimal() for word in header):
        raise ValueError(
            f"{path}, line 1: found {lines[0] if lines else ''!r}; legal: the numbers of folds and of pairs in each, "
            "or one number of pairs. Pairs of paths are a table: path,path,same"
        )
    folds, count = (1, int(header[0])) if len(header) == 1 else (int(header[0]), int(header[1]))
    if len(lines) - 1 != 2 * folds * count:
        raise ValueError(
            f"{path}: {folds} folds of {count} same and {count} different pairs are {2 * folds * count} lines after "
            f"the first one; found {len(lines) - 1}"
        )
    name_of = _ImageNames(root)
    first, second, same = [], [], []
    for index, line in enumerate(lines[1:]):
        is_same = index % (2 * count) < count
        words = _lfw_words(line, is_same, f"{path}, line {index + 2}")
        first.append(name_of(words[0], int(words[1])))
        second.append(name_of(words[0] if is_same else words[2], int(words[-1])))
        same.append(is_same)
    return Pairs.of(first, second, same, np.arange(len(same)) // max(1, 2 * count))


def write_lfw_pairs(path: str | Path, pairs: Pairs) -> None:
    """Write pairs in LFW's form, fold by fold. An image ``name/name_0001.jpg`` or ``name/1.pgm`` is ``name 1``.

    Raises:
        ValueError: the folds differ in size, or an image has another kind of name; :func:`write_pair_table` takes all.
    """
    folds = np.unique(pairs.fold)
    counts = {int((pairs.same[pairs.fold == fold] == kind).sum()) for fold in folds for kind in (True, False)}
    if len(counts) != 1:
        raise ValueError(
            f"{path}: LFW's form has as many same as different pairs in every fold, but here are {sorted(counts)}; "
            "write a table (write_pair_table)"
        )
    (count,) = counts
    lines = [f"{count}" if len(folds) == 1 else f"{len(folds)}\t{count}"]
    for fold in folds:
        for kind in (True, False):
            for index in np.flatnonzero((pairs.fold == fold) & (pairs.same == kind)):
                (a, n), (b, m) = (_name_and_number(ids[index], path) for ids in (pairs.first, pairs.second))
                lines.append(f"{a}\t{n}\t{m}" if kind else f"{a}\t{n}\t{b}\t{m}")
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_pair_table(path: str | Path, root: str | Path | None = None, *, folds: int = 10, seed: int = 0) -> Pairs:
    """Read lines ``path,path,same`` or ``path,path,same,fold``, with commas or tabs.

    Args:
        path: the file. Its first line is a heading if the first two fields look like no path: they have neither a
            slash nor the suffix of an image.
        root: the folder of the images; paths that begin with it are taken relative to it.
        folds: number of folds if the file has none; they are then drawn, as in :func:`draw_pairs`.
        seed: for these folds.

    Raises:
        ValueError: a line has another form; names it and what is legal.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        text = file.read()
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    rows = [(number, row) for number, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1) if row]
    if rows and _is_heading(rows[0][1]):
        rows = rows[1:]
    if not rows:
        raise ValueError(f"{path}: found no pairs; legal: lines path,path,same or path,path,same,fold")
    fields = [_table_fields(row, len(rows[0][1]), f"{path}, line {number}") for number, row in rows]
    prefix = os.path.abspath(root) + os.sep if root is not None else ""
    ids = [[_relative(row[side], prefix) for row in fields] for side in (0, 1)]
    same = np.array([row[2] for row in fields], dtype=bool)
    if len(fields[0]) == 4:
        return Pairs.of(*ids, same, [row[3] for row in fields])
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    fold = np.zeros(len(same), dtype=np.int64)
    for kind in (True, False):
        fold[same == kind] = fold_numbers(int((same == kind).sum()), folds, random)
    return Pairs.of(*ids, same, fold)


def write_pair_table(path: str | Path, pairs: Pairs) -> None:
    """Write ``first,second,same,fold``, with this heading and ``same`` as 1 or 0."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["first", "second", "same", "fold"])
        writer.writerows(
            [a, b, int(s), int(f)] for a, b, s, f in zip(pairs.first, pairs.second, pairs.same, pairs.fold, strict=True)
        )


def _lfw_words(line, is_same, where):
    # Names of other data may have spaces, so that tabs come first.
    words = line.split("\t") if "\t" in line else line.split()
    numbers = (1, 2) if is_same else (1, 3)
    if len(words) != len(numbers) + (1 if is_same else 2) or not all(words[index].isdecimal() for index in numbers):
        legal = "name, number, number (a same pair)" if is_same else "name, number, name, number (a different pair)"
        raise ValueError(f"{where}: found {line!r}; legal here: {legal}, separated by tabs")
    return words


class _ImageNames:
    """Image ids of names and numbers; lists each folder once."""

    def __init__(self, root):
        self._root = root
        self._files = {}

    def __call__(self, name, number):
        default = f"{name}/{name}_{number:04d}.jpg"
        if self._root is None:
            return default
        if name not in self._files:
            self._files[name] = self._list(os.path.join(self._root, name))
        files = self._files[name]
        for stem in (f"{name}_{number:04d}", f"{name}_{number}", f"{number}", f"{number:04d}"):
            if stem in files:
                return f"{name}/{files[stem]}"
        return default

    @staticmethod
    def _list(folder):
        if not os.path.isdir(folder):
            return {}
        files = [os.path.splitext(file) for file in sorted(os.listdir(folder))]
        return {stem: stem + suffix for stem, suffix in reversed(files) if suffix.lower() in IMAGE_SUFFIXES}


def _name_and_number(image_id, path):
    folder, _, file = image_id.rpartition("/")
    match = _NUMBERED.fullmatch(os.path.splitext(file)[0])
    if not folder or "/" in folder or "\t" in folder or not match or match["name"] not in (None, folder):
        raise ValueError(
            f"{path}: LFW's form names images as folder/folder_0001.jpg or folder/1.pgm, found {image_id!r}; write a "
            "table (write_pair_table)"
        )
    return folder, int(match["number"])


def _is_heading(row):
    return len(row) in (3, 4) and not any(
        "/" in field or os.path.splitext(field.strip())[1].lower() in IMAGE_SUFFIXES for field in row[:2]
    )


def _table_fields(row, length, where):
    row = [field.strip() for field in row]
    word = row[2].lower() if len(row) > 2 else ""
    if len(row) not in (3, 4) or len(row) != length or not row[0] or not row[1] or word not in _TRUE | _FALSE:
        raise ValueError(
            f"{where}: found {','.join(row)!r}; legal: path,path,same or path,path,same,fold, with the same number of "
            "fields in each line, and same as 1 or 0"
        )
    if len(row) == 4 and not row[3].isdecimal():
        raise ValueError(f"{where}: the fold is {row[3]!r}; legal: an integer from 0")
    return (row[0], row[1], word in _TRUE, *([int(row[3])] if len(row) == 4 else []))


def _relative(path, prefix):
    if prefix and os.path.isabs(path):
        path = os.path.normpath(path)
        path = path[len(prefix) :] if path.startswith(prefix) else path
    return path.replace(os.sep, "/")

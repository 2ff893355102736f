"""Checks of run-length encoded masks by arithmetic, before pycocotools sees them. Independent of the engine.

A COCO mask is ``{"size": [h, w], "counts": ...}``. The counts are lengths of runs along the columns, first of zeros,
then of ones, and so on: a list of integers, or the same compressed into a string. In the string each character holds 5
bits of a number, lowest first, and a sixth bit that says whether more follow. From the fourth number on, a number is
the difference to the one two before it (format of the COCO API). pycocotools does not check the string: it may read
beyond its end, or write beyond the mask.
"""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

LEGAL = "size [height, width] and counts whose sum is height * width"
_FIRST_CHARACTER, _NUMBER_OF_CHARACTERS = 48, 64
_MORE, _BITS, _SIGN = 0x20, 0x1F, 0x10
_MAX_CHARACTERS = 6  # of one number: 30 bits. pycocotools keeps 32.


def checked_runs(mask: Mapping[str, Any]) -> np.ndarray:
    """Lengths of the runs of an encoded mask.

    Args:
        mask: what an annotation has as its segmentation.

    Returns:
        ``(n,)`` int64; runs of zeros and ones in turn, zeros first.

    Raises:
        ValueError: not a mask that pycocotools can decode. The message says what was found.
    """
    missing = [key for key in ("size", "counts") if key not in mask]
    if missing:
        raise ValueError(f"a mask without {', '.join(missing)}")
    size, counts = mask["size"], mask["counts"]
    if not _is_size(size):
        raise ValueError(f"size {size!r}")
    runs = _decompressed(counts) if isinstance(counts, (str, bytes)) else _listed(counts)
    if (runs < 0).any():
        raise ValueError(f"a negative run of {int(runs.min())} pixels")
    total = int(runs.sum())
    if total != size[0] * size[1]:
        raise ValueError(f"runs of {total} pixels in all for size {list(size)}, which has {size[0] * size[1]}")
    return runs


def bounding_box(runs: np.ndarray, height: int) -> tuple[int, int, int, int] | None:
    """``(x0, y0, x1, y1)`` in pixels around the ones of a mask, or None if it has none.

    Args:
        runs: what :func:`checked_runs` returned.
        height: of the mask.
    """
    ends = np.cumsum(runs)
    starts, ends = (ends - runs)[1::2], ends[1::2]
    filled = ends > starts
    first, last = starts[filled], ends[filled] - 1
    if not len(first):
        return None
    # A run that enters the next column covers the last row of one column and the first row of the next.
    wraps = (first // height < last // height).any()
    y0, y1 = (0, height) if wraps else (int((first % height).min()), int((last % height).max()) + 1)
    return int(first[0] // height), y0, int(last[-1] // height) + 1, y1


def _is_size(size):
    return (
        isinstance(size, (list, tuple))
        and len(size) == 2
        and all(isinstance(v, numbers.Integral) and not isinstance(v, bool) and 0 < v < 2**31 for v in size)
    )


def _listed(counts):
    if not isinstance(counts, (list, tuple, np.ndarray)):
        raise ValueError(f"counts of type {type(counts).__name__}")
    odd = [v for v in counts if not isinstance(v, numbers.Integral) or isinstance(v, bool) or abs(v) >= 2**31]
    if odd:
        raise ValueError(f"counts with {odd[0]!r}, which is not an integer below 2**31")
    return np.asarray(counts, dtype=np.int64).reshape(-1)


def _decompressed(counts):
    text = counts.encode("utf-8", "replace") if isinstance(counts, str) else counts
    values = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - _FIRST_CHARACTER
    bad = np.flatnonzero((values < 0) | (values >= _NUMBER_OF_CHARACTERS))
    if len(bad):
        raise ValueError(f"counts with the byte {text[bad[0]:bad[0] + 1]!r} at position {bad[0]}, which none uses")
    if not len(values) or values[-1] & _MORE:
        raise ValueError(f"counts that end inside a number, after {len(values)} characters")
    ends = np.flatnonzero(values & _MORE == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        raise ValueError(f"counts with a number of {int(lengths.max())} characters; {_MAX_CHARACTERS} are enough")
    place = np.arange(len(values)) - np.repeat(starts, lengths)
    numbers_found = np.add.reduceat((values & _BITS) << (5 * place), starts)
    numbers_found -= np.where(values[ends] & _SIGN, np.int64(1) << (5 * lengths), 0)
    # The first number stands alone; the others add up along the odd and along the even indices.
    numbers_found[1::2] = np.cumsum(numbers_found[1::2])
    numbers_found[2::2] = np.cumsum(numbers_found[2::2])
    return numbers_found

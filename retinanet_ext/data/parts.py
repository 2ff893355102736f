"""Divide a dataset into parts, for training and validation from one set of annotations."""

import hashlib
import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)


def position(name: str) -> float:
    """Where an image stands between 0 (included) and 1: a hash of its name, the same on every machine."""
    # 53 bits, because a float holds no more: with 64 bits the largest values would round to 1.
    return (int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 11) / 2**53


def is_in_part(name: str, part: Sequence[float]) -> bool:
    """Whether the image `name` belongs to the part ``[start, end)``, with 0 <= start < end <= 1."""
    return part[0] <= position(name) < part[1]


def checked_part(part: object, where: str) -> tuple[float, float]:
    """Return the value of a key PART as a tuple.

    Raises:
        ValueError: not two numbers with 0 <= start < end <= 1.
    """
    numbers = isinstance(part, (list, tuple)) and len(part) == 2
    numbers = numbers and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in part)
    if not numbers or not 0 <= part[0] < part[1] <= 1:
        raise ValueError(f"{where}: PART must be [start, end] with 0 <= start < end <= 1, found {part!r}.")
    return float(part[0]), float(part[1])


def records_of_part(records: list[dict], names: Sequence[str], part: Sequence[float], dataset_name: str) -> list[dict]:
    """Return the records whose image is in the part.

    Args:
        records: all records.
        names: the name of the image of each record, independent of the folder that the data lie in.
        part: see :func:`is_in_part`.
        dataset_name: for messages.

    Raises:
        ValueError: no record is in the part.
    """
    kept = [record for record, name in zip(records, names, strict=True) if is_in_part(name, part)]
    logger.info("Dataset %r: PART %s holds %d of %d images", dataset_name, list(part), len(kept), len(records))
    if not kept:
        raise ValueError(
            f"Dataset {dataset_name!r}: none of its {len(records)} images is in PART {list(part)}. An image belongs "
            "to a part by a hash of its name; widen the part."
        )
    return kept

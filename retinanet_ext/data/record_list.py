"""The records of a registered dataset as a list. Independent of the engine."""

from itertools import islice
from typing import Any


def as_record_list(found: Any, dataset_name: str) -> list[dict]:
    """Return what the function of a dataset returned as a list.

    Args:
        found: a list of records, or anything with a length that can be indexed or iterated, such as a map-style
            dataset of PyTorch.
        dataset_name: for the message.

    Raises:
        TypeError: `found` has no length. It may be an endless stream, and reading it would end with the memory.
    """
    if isinstance(found, list):
        return found
    try:
        length = len(found)
    except TypeError:
        raise TypeError(
            f"dataset {dataset_name!r}: its function returned a {type(found).__name__}, which has no length and may be "
            "endless. It must return a list of records (dicts), or a dataset with a length; wrap a finite iterable in "
            "list(). To train from a stream, pass it to build_detection_train_loader(dataset=...) in a trainer that "
            "overrides build_train_loader; Detectron2 reads streams there"
        ) from None
    # A map-style dataset need not raise IndexError at its end, on which iteration would rely.
    if hasattr(found, "__getitem__") and not isinstance(found, dict):
        return [found[index] for index in range(length)]
    return list(islice(found, length))

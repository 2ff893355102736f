"""A mapper for training that takes another image in place of one that cannot be read, and says so in the sample."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from .checked_mapper import reading_fault
from .record_store import RecordStore

# Entry of a sample: the images that could not be read before this one could, as dicts; see `ReplacingMapper`.
BAD_IMAGES = "bad_images"
# Entry of a sample that is no sample: none of the images that were tried could be read.
NOTHING_READ = "nothing_read"


def same_orientation(record: dict) -> Hashable:
    """Images of objects replace each other if both or none are wider than high: loaders batch such images together."""
    return record.get("width", 0) > record.get("height", 0)


def same_identity(record: dict) -> Hashable:
    """Images of one identity replace each other, so that a batch keeps its identities."""
    return record["identity"]


class ReplacingMapper:
    """Wraps a mapper (dataset dict -> model input) and replaces images that it cannot read.

    The replacement is drawn from NumPy's global generator. `lite` seeds it for each place in the stream of samples, so
    a resumed run draws the same replacement.
    """

    def __init__(
        self,
        mapper: Callable[[dict], dict | None],
        records: RecordStore,
        alike: Callable[[dict], Hashable] = same_orientation,
        most_attempts: int = 100,
    ) -> None:
        """
        Args:
            mapper: any mapper.
            records: those of the loader.
            alike: maps a record to a value that is equal for records that may replace each other. If all of those fail,
                any other record is taken.
            most_attempts: how many images are tried before the sample is given up.
        """
        self.mapper = mapper
        self._records = records
        self._alike = alike
        self._most_attempts = most_attempts

    def __call__(self, dataset_dict: dict) -> dict[str, Any] | None:
        """
        Args:
            dataset_dict: a record.

        Returns:
            What the mapper returns for it, or for its replacement. In the second case ``bad_images`` lists what could
            not be read, each as ``{"file_name", "image_id", "reason"}``. If nothing could be read, the record itself
            comes back with that list and ``nothing_read`` True: the process that trains ends the run then, because an
            error in a loader's worker would show as one of the loader.

        Raises:
            Exception: of the mapper, if it is not about the file.
        """
        bad = []
        for record in self._candidates(dataset_dict):
            try:
                sample = self.mapper(record)
            except Exception as error:  # any type: Pillow's decoders raise many
                reason = reading_fault(error, record)
                if reason is None:
                    raise
                bad.append({"file_name": record["file_name"], "image_id": record.get("image_id"), "reason": reason})
                continue
            if not bad:
                return sample
            if sample is not None:
                return {**sample, BAD_IMAGES: bad}
        return {**dataset_dict, BAD_IMAGES: bad, NOTHING_READ: True}

    @cached_property
    def _groups(self) -> dict[Hashable, np.ndarray]:
        # Made at the first replacement: it goes through all records, and most runs never need it.
        groups = defaultdict(list)
        for index, record in enumerate(self._records):
            groups[self._alike(record)].append(index)
        return {value: np.array(indices) for value, indices in groups.items()}

    def _candidates(self, first: dict) -> Iterator[dict]:
        """The record itself, then others without repeating a file: those alike in a random order, then any."""
        yield first
        tried = {first["file_name"]}
        alike = self._groups.get(self._alike(first), ())
        for indices in (alike, range(len(self._records))):
            for index in np.random.permutation(indices):
                if len(tried) >= self._most_attempts:
                    return
                record = self._records[int(index)]
                if record["file_name"] not in tried:
                    tried.add(record["file_name"])
                    yield record

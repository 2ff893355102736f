"""Records of a data set, stored compactly. Independent of the engine."""

import logging
import pickle
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

logger = logging.getLogger(__name__)


class RecordStore(Dataset):
    """Records (dicts) by index, pickled end to end in one tensor that loader workers share.

    The loader of either engine takes it as its dataset, and a mapper can hold the same object, so that the records are
    in memory once. Every access returns a new dict.
    """

    def __init__(self, records: Sequence[dict]) -> None:
        pickled = [pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL) for record in records]
        self._ends = np.cumsum([0, *map(len, pickled)], dtype=np.int64)
        # Tensors, not bytes: a worker that is spawned gets a tensor by shared memory, not as a copy.
        self._bytes = torch.from_numpy(np.frombuffer(b"".join(pickled), dtype=np.uint8).copy())
        logger.info("%d records stored in %.1f MiB", len(self), len(self._bytes) / 2**20)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return pickle.loads(memoryview(self._bytes[self._ends[index] : self._ends[index + 1]].numpy()))

    def __iter__(self) -> Iterator[dict]:
        return (self[index] for index in range(len(self)))

"""A list of records in one block of memory."""

import logging
import pickle
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

logger = logging.getLogger(__name__)


class SerializedList(Dataset):
    """Read-only list whose elements are kept pickled, end to end, in one tensor.

    Worker processes share the pages of that tensor. A list of dicts they would copy bit by bit, because merely
    looking at a Python object writes its reference count. Every access returns a new object, free to be changed.
    """

    def __init__(self, elements: list) -> None:
        pickled = [pickle.dumps(element, protocol=pickle.HIGHEST_PROTOCOL) for element in elements]
        self._ends = torch.tensor(np.cumsum([len(p) for p in pickled], dtype=np.int64))
        self._bytes = torch.from_numpy(np.frombuffer(b"".join(pickled), dtype=np.uint8).copy())
        logger.info("%d records serialised, %.1f MiB", len(self), len(self._bytes) / 2**20)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        begin = 0 if index == 0 else int(self._ends[index - 1])
        return pickle.loads(memoryview(self._bytes[begin : int(self._ends[index])].numpy()))

"""Records as the samples a mapper makes of them, reproducible in training."""

import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .. import comm
from .grouping import GroupedBatchSampler

logger = logging.getLogger(__name__)

WARN_AFTER_REFUSALS = 3
STOP_AFTER_REFUSALS = 100

Mapper = Callable[[Any], Any]
Collator = Callable[[list], Any]


@contextlib.contextmanager
def _seeded(seed: int, position: int) -> Iterator[None]:
    """Within the block, the global generators of Python, NumPy and torch (CPU) start from (seed, position)."""
    words = np.random.SeedSequence((seed, position)).generate_state(4)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(words.tobytes())
        np.random.seed(words)
        # Not torch.manual_seed: it would reset the generator of the GPU as well.
        torch.default_generator.manual_seed(int(words[0]))
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class MappedDataset(Dataset):
    """Mapped records, by index."""

    def __init__(self, records: Dataset, mapper: Mapper) -> None:
        self._records = records
        self._mapper = mapper

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Any:
        sample = self._mapper(self._records[index])
        if sample is None:
            raise ValueError(
                f"the mapper returned None for record {index}; only in training can another record take its place"
            )
        return sample


class SeededMappedDataset(Dataset):
    """Mapped records, by (position, index): all randomness of the mapper follows from the seed and the position.

    So the sample at a position of the stream is the same whatever process makes it, after a restart too.
    Where the mapper returns None, other records are tried in its place.
    """

    def __init__(self, records: Dataset, mapper: Mapper, seed: int) -> None:
        self._records = records
        self._mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, item: tuple[int, int]) -> Any:
        position, index = item
        substitutes = np.random.default_rng((self.seed, position))
        refused = []
        with _seeded(self.seed, position):
            while len(refused) < STOP_AFTER_REFUSALS:
                sample = self._mapper(self._records[index])
                if sample is not None:
                    return sample
                refused.append(index)
                if len(refused) == WARN_AFTER_REFUSALS:
                    logger.warning("the mapper returned None for %d records in a row: %s", len(refused), refused)
                index = int(substitutes.integers(len(self)))
        raise ValueError(
            f"the mapper returned None for {len(refused)} records in a row, the first of them {refused[:5]}; "
            "it seems to refuse every record"
        )


class TrainLoader:
    """Batches for training, endless with the samplers of this package.

    Attributes:
        start_batch: how many batches to skip when iteration begins. Skipping is done on indices, without reading
            an image: the batches that follow are those of an unbroken run.
        seed: what augmentation, and the default sampler, are seeded with. Another one, set before iteration
            begins, makes the loader that of another run.
    """

    def __init__(
        self,
        dataset: SeededMappedDataset,
        sampler: Iterable[int],
        batch_size: int,
        *,
        groups: Sequence[int] | None,
        num_workers: int,
        collate_fn: Collator,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.batch_size = batch_size
        self.start_batch = 0
        self._groups = groups
        self._num_workers = num_workers
        self._collate_fn = collate_fn

    @property
    def seed(self) -> int:
        return self.dataset.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        # A sampler that was given a seed of its own keeps it.
        if getattr(self.sampler, "seed", None) == self.seed:
            self.sampler.seed = seed
        self.dataset.seed = seed

    def __iter__(self) -> Iterator[Any]:
        batches = GroupedBatchSampler(
            self.sampler,
            self.batch_size,
            self._groups,
            start_batch=self.start_batch,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
        )
        loader = DataLoader(
            self.dataset,
            batch_sampler=batches,
            num_workers=self._num_workers,
            collate_fn=self._collate_fn,
            pin_memory=torch.cuda.is_initialized(),  # a run on the CPU has nothing to copy to a GPU
            # Its own generator: DataLoader draws from the global one otherwise, and the run would depend on it.
            generator=torch.Generator().manual_seed(self.seed),
        )
        return iter(loader)

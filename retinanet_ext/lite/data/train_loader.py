"""Turn records into the batches of a training run: store, draw, map, group and collate them, reproducibly.

All randomness of a sample follows from the seed and from the sample's position in the stream of the run. A resumed run
therefore continues with the same samples as an unbroken run, whatever the number of workers.
"""

import contextlib
import logging
import pickle
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .. import comm

logger = logging.getLogger(__name__)

WARN_AFTER_REFUSALS = 3
STOP_AFTER_REFUSALS = 100
# What callers may pass on to torch's DataLoader; the rest decides which samples form a batch.
LOADER_OPTIONS = {
    "generator", "in_order", "multiprocessing_context", "persistent_workers", "pin_memory", "pin_memory_device",
    "prefetch_factor", "timeout", "worker_init_fn",
}  # fmt: skip

Mapper = Callable[[Any], Any]
Collator = Callable[[list], Any]


class SerializedList(Dataset):
    """Read-only list whose elements are stored pickled, end to end, in one tensor.

    Worker processes share the pages of that tensor. They would copy a list of dicts bit by bit, because even reading
    a Python object writes its reference count. Every access returns a new object, which the caller may change.
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


@contextlib.contextmanager
def _seeded(seed: int, position: int) -> Iterator[None]:
    """Within the block, the global generators of Python, NumPy and torch (CPU) start from (seed, position)."""
    words = np.random.SeedSequence((seed, position)).generate_state(4)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(words.tobytes())
        np.random.seed(words)
        # torch.manual_seed would reset the generator of the GPU as well.
        torch.default_generator.manual_seed(int(words[0]))
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededMappedDataset(Dataset):
    """Mapped records, by (position in the stream, index of the record).

    All randomness of the mapper follows from the seed and the position, so the sample at a position is the same
    whichever process makes it, also after a restart. If the mapper returns None, other records are tried.
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


def aspect_ratio_groups(records: Iterable[dict]) -> list[int]:
    """0 for each record that is wider than high, 1 for the rest: batches of one group need little padding.

    Raises:
        ValueError: a record lacks ``width`` or ``height``.
    """
    for index, record in enumerate(records):
        if "width" not in record or "height" not in record:
            raise ValueError(
                f"record {index} ({record.get('file_name', 'without file_name')}) has no width and height, "
                "which grouping by aspect ratio needs. Add them, or set DATALOADER.ASPECT_RATIO_GROUPING to False"
            )
    return [0 if record["width"] > record["height"] else 1 for record in records]


class GroupedBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yields lists of ``batch_size`` pairs (position, index) of one group, each list as soon as it is full.

    The position counts samples in the joint stream of all processes. It identifies the sample across restarts,
    whatever the number of workers. When a finite stream ends, incomplete lists are dropped.
    """

    def __init__(
        self,
        sampler: Iterable[int],
        batch_size: int,
        groups: Sequence[int] | None = None,
        *,
        start_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """
        Args:
            sampler: this process's indices.
            batch_size: images per batch of this process.
            groups: the group of every record; None puts all records into one group, so that batches are consecutive.
            start_batch: number of batches to skip at the beginning.
            rank, world_size: element ``i`` of ``sampler`` has the position ``rank + i * world_size``.
        """
        self._sampler = sampler
        self._batch_size = batch_size
        self._groups = groups
        self._start_batch = start_batch
        self._rank = rank
        self._world_size = world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        buckets: dict[int, list[tuple[int, int]]] = defaultdict(list)
        completed = 0
        for step, index in enumerate(self._sampler):
            group = 0 if self._groups is None else self._groups[index]
            bucket = buckets[group]
            bucket.append((self._rank + step * self._world_size, index))
            if len(bucket) == self._batch_size:
                del buckets[group]
                completed += 1
                if completed > self._start_batch:
                    yield bucket


def trivial_batch_collator(batch: list) -> list:
    """The batch as it is: a list of samples."""
    return batch


def check_loader_options(function: str, options: dict[str, Any]) -> None:
    """Refuse keyword arguments that are not to be passed on to torch's ``DataLoader``.

    Raises:
        TypeError: names the argument and the legal ones.
    """
    for name in options.keys() - LOADER_OPTIONS:
        raise TypeError(
            f"{function} has no argument {name!r}; besides its own arguments it takes those of DataLoader that do not "
            f"decide which samples form a batch: {', '.join(sorted(LOADER_OPTIONS))}"
        )


class TrainLoader:
    """Batches for training, endless with the samplers of this package.

    Attributes:
        start_batch: number of batches to skip when iteration begins. Skipping reads no images; the batches that
            follow are those of an unbroken run.
        seed: seed of the augmentation and of the default sampler; set a new seed only before iteration begins.
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
        options: dict[str, Any] | None = None,
    ) -> None:
        """``options``: further arguments of torch's ``DataLoader``."""
        self.dataset = dataset
        self.sampler = sampler
        self.batch_size = batch_size
        self.start_batch = 0
        self._groups = groups
        self._num_workers = num_workers
        self._collate_fn = collate_fn
        self._options = options or {}
        self._new_loader()  # options that contradict each other fail here, not at the first batch

    @property
    def seed(self) -> int:
        return self.dataset.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        # A sampler that was built with a different seed keeps it.
        if getattr(self.sampler, "seed", None) == self.seed:
            self.sampler.seed = seed
        self.dataset.seed = seed

    def __iter__(self) -> Iterator[Any]:
        return iter(self._new_loader())

    def _new_loader(self) -> DataLoader:
        batches = GroupedBatchSampler(
            self.sampler,
            self.batch_size,
            self._groups,
            start_batch=self.start_batch,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
        )
        options = {
            "pin_memory": torch.cuda.is_initialized(),  # a run on the CPU has nothing to copy to a GPU
            # By default DataLoader draws from the global generator; the run would then depend on its state.
            "generator": torch.Generator().manual_seed(self.seed),
            **self._options,
        }
        return DataLoader(
            self.dataset, batch_sampler=batches, num_workers=self._num_workers, collate_fn=self._collate_fn, **options
        )

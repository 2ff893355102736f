"""Batches of indices, made before any image is read."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from torch.utils.data import Sampler


def aspect_ratio_groups(records: list[dict]) -> list[int]:
    """0 for each record that is wider than high, 1 for the rest: batches of one kind need little padding.

    Raises:
        ValueError: a record lacks ``width`` or ``height``.
    """
    for number, record in enumerate(records):
        if "width" not in record or "height" not in record:
            raise ValueError(
                f"record {number} ({record.get('file_name', 'without file_name')}) has no width and height, "
                "which grouping by aspect ratio needs. Add them, or set DATALOADER.ASPECT_RATIO_GROUPING to False"
            )
    return [0 if record["width"] > record["height"] else 1 for record in records]


class GroupedBatchSampler(Sampler[list[tuple[int, int]]]):
    """Lists of ``batch_size`` pairs (position, index), all of one group, each complete as soon as it is full.

    The position is the place of the sample in the joint stream of all processes. It identifies the sample across
    restarts, whatever the number of workers. What is left over when a finite stream ends makes no batch.
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
            batch_size: of this process.
            groups: the group of every record; None puts all in one, so that batches are consecutive.
            start_batch: how many batches to leave out at the beginning.
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

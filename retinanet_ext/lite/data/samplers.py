"""The order of records: index streams for training, and the split of a test set over processes."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from .. import comm


class TrainingSampler(Sampler[int]):
    """Endless stream of indices: one permutation of the dataset after the other, split over the processes.

    The stream is the same on every process; process ``r`` of ``n`` takes elements ``r, r + n, r + 2n, ...``.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        """
        Args:
            size: number of records.
            shuffle: whether each pass is a new permutation; otherwise every pass is ``0..size-1``.
            seed: determines the stream; must be equal on all processes. None: a random seed, shared by all.

        Raises:
            TypeError, ValueError: ``size`` is not a positive integer.
        """
        if not isinstance(size, int):
            raise TypeError(f"size must be an int, got {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"size is {size}; there must be at least one record to draw from")
        self._size = size
        self._shuffle = shuffle
        self.seed = comm.shared_random_seed() if seed is None else int(seed)
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._stream(), self._rank, None, self._world_size)

    def _stream(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            if self._shuffle:
                yield from torch.randperm(self._size, generator=generator).tolist()
            else:
                yield from range(self._size)


class RepeatFactorTrainingSampler(Sampler[int]):
    """Endless stream in which record ``i`` occurs ``repeat_factors[i]`` times per pass on average.

    Repeat factor sampling of LVIS (arXiv:1908.03195, appendix B.2): images with rare categories come more often.
    """

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None) -> None:
        """
        Args:
            repeat_factors: float ``(N,)``, one per record. Fractions are rounded up or down at random in every pass.
            shuffle, seed: as for :class:`TrainingSampler`.

        Raises:
            ValueError: there is no record, a factor is negative, or all factors are 0.
        """
        if not (repeat_factors >= 0).all() or not repeat_factors.sum() > 0:
            raise ValueError(f"repeat_factors must be at least 0 and not all 0, got {repeat_factors}")
        self._whole = torch.trunc(repeat_factors)
        self._fraction = repeat_factors - self._whole
        self._shuffle = shuffle
        self.seed = comm.shared_random_seed() if seed is None else int(seed)
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Repeat factor of every record, from the frequency of its rarest category.

        With ``f(c)`` the fraction of records that show category ``c``, the factor of a category is
        ``max(1, sqrt(repeat_thresh / f(c)))``. The factor of a record is the largest of its categories (1 if none).

        Args:
            dataset_dicts: N records with ``annotations``.
            repeat_thresh: frequency below which a category is repeated, in 0..1.
            sqrt: False leaves out the square root.

        Returns:
            float32 ``(N,)``.
        """
        shown = [{annotation["category_id"] for annotation in record["annotations"]} for record in dataset_dicts]
        counts = Counter(itertools.chain.from_iterable(shown))
        ratios = {c: repeat_thresh / (count / len(dataset_dicts)) for c, count in counts.items()}
        factors = {c: max(1.0, math.sqrt(ratio) if sqrt else ratio) for c, ratio in ratios.items()}
        per_record = [max((factors[c] for c in categories), default=1.0) for categories in shown]
        return torch.tensor(per_record, dtype=torch.float32)

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._stream(), self._rank, None, self._world_size)

    def _stream(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            round_up = torch.rand(len(self._fraction), generator=generator) < self._fraction
            times = (self._whole + round_up).long()
            indices = torch.repeat_interleave(torch.arange(len(times)), times)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()


class InferenceSampler(Sampler[int]):
    """Every index once. Each process gets a consecutive share; the sizes of the shares differ by at most one."""

    def __init__(self, size: int) -> None:
        """
        Args:
            size: number of records.

        Raises:
            ValueError: ``size`` is not positive.
        """
        if size <= 0:
            raise ValueError(f"size is {size}; there must be at least one record to go through")
        rank, world_size = comm.get_rank(), comm.get_world_size()
        share, extra = divmod(size, world_size)
        begin = rank * share + min(rank, extra)
        self._indices = range(begin, begin + share + (rank < extra))

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

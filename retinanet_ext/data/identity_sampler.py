"""Batches of P identities with K images each, for losses that compare the images of a batch."""

import itertools
import logging
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from retinanet_ext.d2 import CfgNode, comm

K_KEY, R_KEY, BATCH_KEY = "DATALOADER.IMAGES_PER_IDENTITY", "DATALOADER.RANDOM_NEGATIVES", "SOLVER.IMS_PER_BATCH"

logger = logging.getLogger(__name__)


class IdentityBatchSampler(Sampler[int]):
    """Endless stream of indices of images, whose consecutive B are a batch over all processes; no image is in it twice.

    A batch has P identities with K images each, drawn anew, and R images drawn from all others. An identity with fewer
    than K images gives all it has, and images drawn from all others fill its place. All identities are gone through in
    a random order, then again in a new order; no identity has two places in a batch.

    Of each batch a process takes B / W images, W processes. They are whole identities, and an equal share of the R
    images, if W divides P and R. The batches of all W processes together are the same for any W.
    """

    def __init__(
        self,
        identities: Sequence[int],
        *,
        batch_size: int,
        images_per_identity: int,
        random_images: int = 0,
        seed: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """
        Args:
            identities: the identity of each of N images, ``(N,)``.
            batch_size: B, over all processes.
            images_per_identity: K, from 2.
            random_images: R.
            seed: determines the stream; equal on all processes. None: a random seed, shared by all.
            rank, world_size: of this process and W; None: those of the job.

        Raises:
            ValueError: the batch cannot be made from these images; says what to change.
        """
        self._images = _images_by_identity(identities)
        self._num_images = len(identities)
        self._batch_size, self._per_identity, self._random_images = batch_size, images_per_identity, random_images
        self._rank = comm.get_rank() if rank is None else rank
        self._world_size = comm.get_world_size() if world_size is None else world_size
        self._check()
        self._num_places = (batch_size - random_images) // images_per_identity
        self.seed = comm.shared_random_seed() if seed is None else int(seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, records: Sequence[dict], seed: int | None = None) -> "IdentityBatchSampler":
        """A sampler for records with ``identity``; see ``DATALOADER.IMAGES_PER_IDENTITY`` for the keys."""
        sampler = cls(
            [record["identity"] for record in records],
            batch_size=cfg.SOLVER.IMS_PER_BATCH,
            images_per_identity=cfg.DATALOADER.IMAGES_PER_IDENTITY,
            random_images=cfg.DATALOADER.RANDOM_NEGATIVES,
            seed=seed,
        )
        sampler.log()
        return sampler

    def log(self) -> None:
        """Say what a batch is, and how many identities have too few images."""
        counts = np.array([len(images) for images in self._images])
        logger.info(
            "Batches of %d identities with %d images, and %d random ones; %d batches go through all %d identities",
            self._num_places, self._per_identity, self._random_images,
            -(-len(counts) // self._num_places), len(counts),
        )  # fmt: skip
        if (counts < self._per_identity).any():
            logger.info(
                "%d identities have fewer than %d images, %d of them one, which has no positive pair; random images "
                "fill their places (MIN_IMAGES in DATASETS.CUSTOM leaves such identities out)",
                (counts < self._per_identity).sum(), self._per_identity, (counts == 1).sum(),
            )  # fmt: skip

    def __iter__(self) -> Iterator[int]:
        share = self._share()
        return itertools.chain.from_iterable([batch[place] for place in share] for batch in self.batches())

    def batches(self) -> Iterator[list[int]]:
        """The batches over all processes: lists of B indices, K for each place of an identity, then the R images."""
        # RandomState's streams are frozen by NumPy's policy; those of Generator may change with a release.
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(self.seed)))
        return (self._batch(places, random) for places in self._places(random))

    def _places(self, random: np.random.RandomState) -> Iterator[list[int]]:
        """Lists of P different identities. At the end of a pass the list is filled from the next one."""
        waiting: list[int] = []
        while True:
            used = set(waiting)
            order = random.permutation(len(self._images)).tolist()
            # Those that the unfinished list has already come last in the new pass.
            waiting += [i for i in order if i not in used] + [i for i in order if i in used]
            while len(waiting) >= self._num_places:
                yield waiting[: self._num_places]
                waiting = waiting[self._num_places :]

    def _batch(self, places: list[int], random: np.random.RandomState) -> list[int]:
        groups = [self._some(self._images[identity], random) for identity in places]
        missing = sum(self._per_identity - len(group) for group in groups) + self._random_images
        others = iter(self._others(set(itertools.chain.from_iterable(groups)), missing, random))
        for group in groups:
            group.extend(itertools.islice(others, self._per_identity - len(group)))
        return [*itertools.chain.from_iterable(groups), *others]

    def _some(self, images: np.ndarray, random: np.random.RandomState) -> list[int]:
        return images[random.permutation(len(images))[: self._per_identity]].tolist()

    def _others(self, taken: set[int], count: int, random: np.random.RandomState) -> list[int]:
        """`count` different images that are not taken."""
        if 2 * (len(taken) + count) > self._num_images:
            free = np.setdiff1d(np.arange(self._num_images), sorted(taken))
            return free[random.permutation(len(free))[:count]].tolist()
        found: list[int] = []
        while len(found) < count:
            image = int(random.randint(self._num_images))
            if image not in taken:
                taken.add(image)
                found.append(image)
        return found

    def _share(self) -> list[int]:
        """Positions in the batch of this process's images."""
        rank, processes, extra = self._rank, self._world_size, self._random_images
        if self._num_places % processes or extra % processes:
            size = self._batch_size // processes
            return list(range(rank * size, (rank + 1) * size))
        size, extra = (self._batch_size - extra) // processes, extra // processes
        begin = self._batch_size - self._random_images + rank * extra
        return [*range(rank * size, (rank + 1) * size), *range(begin, begin + extra)]

    def _check(self) -> None:
        batch, per_identity, extra = self._batch_size, self._per_identity, self._random_images
        if per_identity < 2:
            raise ValueError(
                f"{K_KEY} is {per_identity}; legal: an integer from 2, because one image has no positive pair, or 0, "
                "which leaves the order of the images to DATALOADER.SAMPLER_TRAIN"
            )
        if extra < 0 or batch <= extra or (batch - extra) % per_identity:
            raise ValueError(
                f"{BATCH_KEY} {batch} less {R_KEY} {extra} must be a multiple of {K_KEY} {per_identity}, above 0; "
                f"set {BATCH_KEY} to {extra + max(1, round((batch - extra) / per_identity)) * per_identity}, say"
            )
        if batch % self._world_size:
            raise ValueError(f"{BATCH_KEY} {batch} must be a multiple of the number of processes, {self._world_size}")
        pairs = sum(len(images) > 1 for images in self._images)
        if pairs < 2:
            raise ValueError(
                f"DATASETS.TRAIN has {len(self._images)} identities, {pairs} of them with two images or more; triplets "
                f"need at least 2 such identities. Add images, or set {K_KEY} 0 for a loss that needs no pairs"
            )
        places = (batch - extra) // per_identity
        if places > len(self._images):
            most = len(self._images) * per_identity + extra
            raise ValueError(
                f"a batch has {places} identities ({BATCH_KEY} {batch} less {R_KEY} {extra}, divided by {K_KEY} "
                f"{per_identity}), but DATASETS.TRAIN has {len(self._images)}; set {BATCH_KEY} to {most} at most, or "
                f"raise {K_KEY}"
            )
        if batch > self._num_images:
            raise ValueError(
                f"{BATCH_KEY} is {batch}, but DATASETS.TRAIN has {self._num_images} images, and no image is in a batch "
                "twice; lower it"
            )


def _images_by_identity(identities: Sequence[int]) -> list[np.ndarray]:
    """The indices of the images of each identity that has any, sorted by identity."""
    numbers = np.asarray(identities, dtype=np.int64)
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    return np.split(order, starts[1:]) if len(numbers) else []

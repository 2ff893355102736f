from collections import Counter
from itertools import islice

import pytest

from retinanet_ext.data.identity_sampler import IdentityBatchSampler


def identities(*counts):
    return [identity for identity, count in enumerate(counts) for _ in range(count)]


def sampler(numbers, batch_size=8, k=4, extra=0, seed=0, rank=0, world_size=1):
    return IdentityBatchSampler(
        numbers, batch_size=batch_size, images_per_identity=k, random_images=extra, seed=seed, rank=rank,
        world_size=world_size,
    )  # fmt: skip


def test_a_batch_has_p_identities_with_k_images_and_none_twice():
    numbers = identities(6, 4, 5, 9, 4, 7, 4)
    for batch in islice(sampler(numbers, batch_size=12).batches(), 50):
        assert len(batch) == len(set(batch)) == 12
        assert sorted(Counter(numbers[index] for index in batch).values()) == [4, 4, 4]
        assert all(len({numbers[i] for i in batch[start : start + 4]}) == 1 for start in (0, 4, 8))


def test_every_pass_has_all_identities_and_every_image_comes():
    numbers = identities(*[5] * 10)
    batches = list(islice(sampler(numbers, batch_size=12).batches(), 200))
    places = [numbers[batch[start]] for batch in batches for start in (0, 4, 8)]
    for begin in range(0, 600, 10):
        assert sorted(places[begin : begin + 10]) == list(range(10))
    assert {index for batch in batches for index in batch} == set(range(50))


def test_small_identities_give_all_they_have_and_others_fill_their_places():
    numbers = identities(1, 2, 3, 4, 9)
    for batch in islice(sampler(numbers, batch_size=8).batches(), 100):
        assert len(set(batch)) == 8
        for start in (0, 4):
            group = [numbers[index] for index in batch[start : start + 4]]
            own = min(4, numbers.count(group[0]))
            assert group[:own] == [group[0]] * own and {i for i, n in enumerate(numbers) if n == group[0]} >= set(
                batch[start : start + own]
            )


def test_random_images_come_at_the_end_of_a_batch_and_are_others():
    numbers = identities(*[4] * 30)
    seen = set()
    for batch in islice(sampler(numbers, batch_size=11, extra=3).batches(), 400):
        assert len(set(batch)) == 11
        seen.update(batch[8:])
    assert len(seen) == 120


@pytest.mark.parametrize(("size", "k", "extra"), [(8, 2, 0), (10, 2, 2), (8, 5, 3)])
def test_processes_share_the_batches_of_one(size, k, extra):
    numbers = identities(*[5] * 9)
    joint = islice(sampler(numbers, size, k=k, extra=extra).batches(), 20)
    processes = [iter(sampler(numbers, size, k=k, extra=extra, rank=rank, world_size=2)) for rank in (0, 1)]
    for batch in joint:
        first, second = (list(islice(process, size // 2)) for process in processes)
        assert sorted(first + second) == sorted(batch)
        if extra == 2:  # two whole identities and one random image each
            assert first == batch[:4] + batch[8:9] and second == batch[4:8] + batch[9:]


def test_the_stream_follows_from_the_seed():
    numbers = identities(*[5] * 9)
    first = list(islice(sampler(numbers), 80))
    assert first == list(islice(sampler(numbers), 80)) != list(islice(sampler(numbers, seed=1), 80))


@pytest.mark.parametrize(
    ("numbers", "options", "message"),
    [
        (identities(4, 4), {"k": 1}, "IMAGES_PER_IDENTITY is 1; legal: an integer from 2"),
        (identities(4, 4, 4), {"batch_size": 10}, "must be a multiple of DATALOADER.IMAGES_PER_IDENTITY 4.*to 8"),
        (identities(4, 4, 4), {"batch_size": 8, "extra": 2}, "less DATALOADER.RANDOM_NEGATIVES 2"),
        (identities(4, 4, 4), {"batch_size": 2, "extra": 2}, "above 0"),
        (identities(9), {}, "1 identities, 1 of them with two images"),
        (identities(1, 1, 1), {}, "3 identities, 0 of them"),
        (identities(4, 4), {"batch_size": 12}, "3 identities .* DATASETS.TRAIN has 2; set SOLVER.IMS_PER_BATCH to 8"),
        (identities(2, 2), {"batch_size": 8}, "has 4 images, and no image"),
        (identities(4, 4), {"world_size": 3}, "number of processes, 3"),
    ],
)
def test_impossible_batches_are_refused_with_the_remedy(numbers, options, message):
    with pytest.raises(ValueError, match=message):
        sampler(numbers, **options)

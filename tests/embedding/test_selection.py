"""Triplet selection against loops over explicit triplets, as sets, and against pytorch-metric-learning."""

import itertools
from fractions import Fraction

import pytest
import torch

from retinanet_ext.embedding import select_triplets
from retinanet_ext.embedding.pooling import l2_normalize
from retinanet_ext.embedding.selection import TRIPLET_SELECTION_REGISTRY, AnchorBlock
from retinanet_ext.losses import triplet
from retinanet_ext.losses.triplet import squared_distances


def brute_force(name, embeddings, identities, margin):
    """The definitions in words, one triplet at a time. Distances and comparisons are exact."""
    rows = [[Fraction(value) for value in row] for row in embeddings.tolist()]
    images = range(len(rows))
    d = [[sum((x - y) ** 2 for x, y in zip(rows[i], rows[j])) for j in images] for i in images]
    who, margin, found = identities.tolist(), Fraction(margin), set()
    for a in images:
        positives = [p for p in images if p != a and who[p] == who[a]]
        negatives = [n for n in images if who[n] != who[a]]
        if name == "batch_hard" and positives and negatives:
            # max and min return the first of equal ones.
            found.add((a, max(positives, key=lambda p: d[a][p]), min(negatives, key=lambda n: d[a][n])))
        if name == "batch_all":
            found.update((a, p, n) for p in positives for n in negatives if d[a][n] < d[a][p] + margin)
        for p in positives if name == "semi_hard" else []:
            legal = [n for n in negatives if d[a][p] < d[a][n] < d[a][p] + margin]
            if legal:
                found.add((a, p, min(legal, key=lambda n: d[a][n])))
    return found


def as_set(triplets):
    rows = [tuple(row) for row in triplets.tolist()]
    assert len(rows) == len(set(rows))
    return set(rows)


def random_case(generator):
    vectors = l2_normalize(torch.randn(24, 4, generator=generator))
    return vectors, torch.randint(6, (24,), generator=generator), 0.25


def grid_case(generator):
    """Small integers: most distances tie, some with the bound by the margin, and many images are equal."""
    return torch.randint(3, (24, 2), generator=generator).float(), torch.randint(5, (24,), generator=generator), 2.0


def duplicates_case(generator):
    """Images equal to others of the same identity and of another, which a rounded product would tell apart."""
    vectors = l2_normalize(torch.randn(6, 16, generator=generator)).repeat(4, 1)
    return vectors, torch.randint(4, (24,), generator=generator), 0.5


def uneven_case(generator):
    """One identity has most images, some have one."""
    identities = torch.tensor([5] * 12 + [3, 3, 8, 9, 7, 7, 7])
    return l2_normalize(torch.randn(19, 4, generator=generator)), identities, 0.3


CASES = [random_case, grid_case, duplicates_case, uneven_case]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["semi_hard", "batch_hard", "batch_all"])
@pytest.mark.parametrize("block", [1 << 20, 100])
def test_triplets_are_those_of_the_definition(name, case, block, generator, device, monkeypatch):
    monkeypatch.setattr(triplet, "BLOCK_PAIRS", block)
    for _ in range(5):
        embeddings, identities, margin = case(generator)
        found = select_triplets(name, embeddings.to(device), identities.to(device), margin)
        expected = brute_force(name, embeddings, identities, margin)
        assert expected and as_set(found) == expected


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["semi_hard", "batch_hard", "batch_all"])
def test_weights_count_the_active_triplets_of_each_pair(name, case, generator, device):
    embeddings, identities, margin = case(generator)
    expected, active = torch.zeros(len(embeddings), len(embeddings)), 0
    d = squared_distances(embeddings, embeddings).float()
    triplets = brute_force(name, embeddings, identities, margin)
    for a, p, n in triplets:
        if d[a, n] < d[a, p] + margin:
            active += 1
            expected[a, p] += 1
            expected[a, n] -= 1
    counts = TRIPLET_SELECTION_REGISTRY.get(name)().counts(
        AnchorBlock.make(d.to(device), identities.to(device), 0), margin
    )
    assert torch.equal(counts.weights.cpu(), expected)
    assert (counts.selected, counts.active) == (len(triplets), active)
    who = identities.tolist()
    pairs = [(a, p) for a, p in itertools.permutations(range(len(who)), 2) if who[a] == who[p]]
    candidates = {
        "semi_hard": len(pairs),
        "batch_hard": len({a for a, _ in pairs}),
        "batch_all": sum(who[n] != who[a] for a, _ in pairs for n in range(len(who))),
    }
    assert counts.candidates == candidates[name]


@pytest.mark.parametrize("identities", [[], [4], [4, 4, 4, 4], [0, 1, 2, 3], [4, 4], [0, 1]])
@pytest.mark.parametrize("name", ["semi_hard", "batch_hard", "batch_all"])
def test_batches_without_triplets(name, identities, generator, device):
    embeddings = l2_normalize(torch.randn(len(identities), 4, generator=generator)).to(device)
    identities = torch.tensor(identities, dtype=torch.int64, device=device)
    found = select_triplets(name, embeddings, identities, 0.2)
    assert found.shape == (0, 3) and found.dtype == torch.int64
    if len(identities):
        block = AnchorBlock.make(squared_distances(embeddings, embeddings).float(), identities, 0)
        counts = TRIPLET_SELECTION_REGISTRY.get(name)().counts(block, 0.2)
        assert not counts.weights.any() and counts.selected == 0 and counts.active == 0


def test_of_equal_negatives_the_first_is_taken():
    embeddings = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, -2.0]])
    identities = torch.tensor([0, 0, 1, 2, 3])
    for name in ("semi_hard", "batch_hard"):
        assert (0, 1, 2) in as_set(select_triplets(name, embeddings, identities, 5.0))


def test_a_negative_at_the_distance_of_the_positive_or_of_the_margin_is_not_semi_hard():
    identities = torch.tensor([0, 0, 1])
    for negative, legal in ((1.0, False), (1.5, True), (2.0, False)):
        embeddings = torch.tensor([[0.0], [1.0], [-negative]])
        triplets = as_set(select_triplets("semi_hard", embeddings, identities, 3.0))  # 1 < negative^2 < 4
        assert ((0, 1, 2) in triplets) == legal


def test_an_unknown_selection_is_refused(generator):
    with pytest.raises(KeyError, match="MODEL.EMBEDDING.LOSS.SELECTION is 'semihard'.*semi_hard"):
        select_triplets("semihard", torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64), 0.2)


def test_batch_all_and_batch_hard_are_those_of_pytorch_metric_learning(generator):
    """On squared distances its miners mean the same, but for triplets exactly at the margin."""
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    from pytorch_metric_learning import miners

    squared = distances.LpDistance(normalize_embeddings=False, power=2)
    embeddings = l2_normalize(torch.randn(60, 8, generator=generator))
    identities = torch.randint(12, (60,), generator=generator)
    theirs = {
        "batch_all": miners.TripletMarginMiner(margin=0.2, distance=squared),
        "batch_hard": miners.BatchHardMiner(distance=squared),
    }
    for name, miner in theirs.items():
        expected = torch.stack(miner(embeddings, identities), dim=1)
        assert as_set(select_triplets(name, embeddings, identities, 0.2)) == as_set(expected)


def test_semi_hard_takes_the_nearest_of_those_of_pytorch_metric_learning(generator):
    """Its miner returns every semi-hard negative; the paper's selection is one of them for each pair."""
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    from pytorch_metric_learning.miners import TripletMarginMiner

    embeddings = l2_normalize(torch.randn(60, 8, generator=generator))
    identities = torch.randint(12, (60,), generator=generator)
    squared = distances.LpDistance(normalize_embeddings=False, power=2)
    miner = TripletMarginMiner(margin=0.2, type_of_triplets="semihard", distance=squared)
    every = as_set(torch.stack(miner(embeddings, identities), dim=1))
    matrix, nearest = squared_distances(embeddings, embeddings), {}
    for a, p, n in sorted(every, key=lambda row: -matrix[row[0], row[2]]):
        nearest[a, p] = n
    found = as_set(select_triplets("semi_hard", embeddings, identities, 0.2))
    assert found == {(a, p, n) for (a, p), n in nearest.items()} and len(found) < len(every)

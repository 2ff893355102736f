import dataclasses
import itertools

import numpy as np
import pytest
import torch

from retinanet_ext.embedding import clustering
from retinanet_ext.embedding.clustering import cluster, clustering_scores, clustering_scores_reference, connected_parts


def unit(n, dim=8, seed=0, centres=6, spread=0.35):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(centres, dim))[rng.integers(0, centres, n)] + spread * rng.normal(size=(n, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def same_partition(a, b):
    return np.array_equal(np.equal.outer(a, a), np.equal.outer(b, b))


@pytest.mark.parametrize("method", ["average", "complete", "single"])
@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.5, 1.0, 1.9])
def test_scikit_learn_finds_the_same_clusters(method, threshold, monkeypatch):
    sklearn_cluster = pytest.importorskip("sklearn.cluster")
    monkeypatch.setattr(clustering, "_BLOCK", 17)
    embeddings = unit(120)
    distances = ((embeddings[:, None].astype(np.float64) - embeddings[None]) ** 2).sum(axis=2)
    model = sklearn_cluster.AgglomerativeClustering(
        n_clusters=None, distance_threshold=threshold, metric="precomputed", linkage=method
    )
    found = cluster(embeddings, threshold, method)
    assert same_partition(found, model.fit_predict(distances))
    firsts = [int(np.flatnonzero(found == label)[0]) for label in range(found.max() + 1)]
    assert firsts == sorted(firsts) and firsts[0] == 0


def test_clusters_by_hand():
    """Points on a line at 0, 1, 3 and 7; distances are squared, so the numbers are easy."""
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    # 0 and 1 merge at 1. Then 3: its mean over (9, 4) is 6.5, its largest 9, its smallest 4.
    assert cluster(points, 0.9).tolist() == [0, 1, 2, 3]
    assert cluster(points, 1.0).tolist() == [0, 0, 1, 2]
    assert cluster(points, 6.4).tolist() == [0, 0, 1, 2] and cluster(points, 6.5).tolist() == [0, 0, 0, 1]
    assert cluster(points, 8.9, "complete").tolist() == [0, 0, 1, 2]
    assert cluster(points, 9.0, "complete").tolist() == [0, 0, 0, 1]
    assert cluster(points, 4.0, "single").tolist() == [0, 0, 0, 1]
    # 7: the mean over (49, 36, 16).
    assert cluster(points, 33.6).tolist() == [0, 0, 0, 1] and cluster(points, 33.7).tolist() == [0, 0, 0, 0]


def test_none_one_and_equal_items():
    assert cluster(np.zeros((0, 4)), 1.0).shape == (0,)
    assert cluster(np.ones((1, 4)), 1.0).tolist() == [0]
    equal = np.repeat(unit(3, centres=3, spread=2.0), 4, axis=0)
    assert cluster(equal, 0.0).tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_ties_give_a_partition_within_the_threshold():
    """Corners of a square: the nearest pairs are all equally near."""
    corners = np.array([[0, 0], [0, 1], [1, 1], [1, 0]])
    # Two pairs merge at 1. Their mean distance is (1 + 1 + 2 + 2) / 4.
    assert len(np.unique(cluster(corners, 1.4))) == 2
    assert len(np.unique(cluster(corners, 1.5))) == 1
    assert len(np.unique(cluster(corners, 0.99))) == 4


def test_connected_parts_are_those_of_a_plain_search(monkeypatch):
    monkeypatch.setattr(clustering, "_BLOCK", 7)
    embeddings = unit(60, centres=20)
    near = ((embeddings[:, None] - embeddings[None]) ** 2).sum(axis=2) <= 0.3
    reach = near.copy()
    for _ in range(60):
        reach = (reach.astype(int) @ near.astype(int)) > 0
    parts = connected_parts(torch.from_numpy(embeddings), 0.3)
    assert np.array_equal(np.equal.outer(parts, parts), reach)
    assert 1 < len(np.unique(parts)) < 60


def test_bad_input_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="legal: average, complete, single"):
        cluster(unit(3), 1.0, "ward")
    for threshold in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="legal: 0 or more"):
            cluster(unit(3), threshold)
    bad = unit(3)
    bad[1, 1] = np.nan
    with pytest.raises(ValueError, match="embedding 1 is not finite"):
        cluster(bad, 1.0)
    monkeypatch.setattr(clustering, "MAX_CONNECTED", 10)
    assert len(cluster(unit(30), 0.0)) == 30
    with pytest.raises(ValueError, match="30 of the images hang together.*smaller threshold"):
        cluster(unit(30), 4.0)


def test_scores_by_hand():
    """Clusters {a a b} and {a b}, identities a (three items) and b (two)."""
    scores = clustering_scores([0, 0, 0, 1, 1], list("aabab"))
    # B-cubed precision of the items: 2/3, 2/3, 1/3, 1/2, 1/2; recall: 2/3, 2/3, 1/2, 1/3, 1/2.
    assert scores.bcubed_precision == pytest.approx((5 / 3 + 1) / 5)
    assert scores.bcubed_recall == pytest.approx((4 / 3 + 1 / 2 + 1 / 3 + 1 / 2) / 5)
    # Pairs in one cluster: 3 + 1; of one identity: 3 + 1; both: the two a of the first cluster.
    assert (scores.pairwise_precision, scores.pairwise_recall, scores.pairwise_f1) == (1 / 4, 1 / 4, 1 / 4)
    assert (scores.clusters, scores.identities) == (2, 2)


def test_scores_at_the_extremes():
    identities = [0, 0, 1, 1]
    perfect = clustering_scores([5, 5, 3, 3], identities)
    assert perfect.bcubed_f1 == perfect.pairwise_f1 == 1
    alone = clustering_scores([0, 1, 2, 3], identities)
    assert (alone.bcubed_precision, alone.bcubed_recall) == (1, 0.5)
    assert (alone.pairwise_precision, alone.pairwise_recall, alone.pairwise_f1) == (1, 0, 0)
    one = clustering_scores([0, 0, 0, 0], identities)
    assert (one.bcubed_precision, one.bcubed_recall) == (0.5, 1)
    assert (one.pairwise_precision, one.pairwise_recall) == (2 / 6, 1)
    assert clustering_scores([0], [0]).pairwise_f1 == 1
    with pytest.raises(ValueError, match="N at least 1"):
        clustering_scores([], [])


def test_scores_are_those_of_the_loop():
    rng = np.random.default_rng(0)
    for clusters, identities in itertools.product((1, 4, 30), repeat=2):
        a, b = rng.integers(0, clusters, 30), rng.integers(0, identities, 30)
        fast, reference = clustering_scores(a, b), clustering_scores_reference(a.tolist(), b.tolist())
        assert dataclasses.astuple(fast) == pytest.approx(dataclasses.astuple(reference))


def test_pairwise_scores_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics.cluster")
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 5, 50), rng.integers(0, 6, 50)
    _, (fn, tp) = metrics.pair_confusion_matrix(b, a)
    fp = metrics.pair_confusion_matrix(b, a)[0, 1]
    scores = clustering_scores(a, b)
    assert scores.pairwise_precision == pytest.approx(tp / (tp + fp))
    assert scores.pairwise_recall == pytest.approx(tp / (tp + fn))

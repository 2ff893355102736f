"""Clustering of embeddings (paper, section 5.8): agglomerative, with a distance threshold; and how well clusters fit
labels: B-cubed and pairwise precision, recall and F1.

N items, D numbers per embedding. Distances are squared L2.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist

LINKAGES = ("average", "complete", "single")
# Items that may hang together; their distances take twice 8 N^2 / 2 bytes: 3.2 GB.
MAX_CONNECTED = 20_000
_BLOCK = 1024
# float32 distances of embeddings of length 1 are off by less. More edges than needed do no harm.
_SLACK = 1e-4


def cluster(embeddings: torch.Tensor | np.ndarray, threshold: float, method: str = "average") -> np.ndarray:
    """Merge the two nearest clusters again and again, as long as their distance is at most ``threshold``.

    Two clusters at a distance of at most ``threshold`` hold two items that are. So only items that hang together by a
    chain of such pairs can ever meet, and each such part is clustered alone, with the same result. Memory grows with
    the square of the largest part, time with the square of N.

    Args:
        embeddings: float ``(N, D)`` of length 1.
        threshold: largest squared L2 distance of two clusters that are merged.
        method: distance of two clusters: the mean over all pairs of items (``average``), the largest (``complete``)
            or the smallest (``single``). Which of equally near clusters merge first is not defined.

    Returns:
        int64 ``(N,)``: the cluster of each item, counted from 0 in the order of their first items.

    Raises:
        ValueError: ``method`` or ``threshold`` is not legal, an embedding is not finite, or more than
            ``MAX_CONNECTED`` items hang together.
    """
    values = np.asarray(embeddings.detach().cpu() if isinstance(embeddings, torch.Tensor) else embeddings)
    if values.ndim != 2:
        raise ValueError(f"embeddings have shape {values.shape}; expected: (N, D)")
    if method not in LINKAGES:
        raise ValueError(f"the linkage is {method!r}; legal: {', '.join(LINKAGES)}")
    if not threshold >= 0:
        raise ValueError(f"the threshold of the clustering is {threshold}; legal: 0 or more")
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(wrong):
        raise ValueError(f"embedding {wrong[0]} is not finite")
    parts = connected_parts(torch.from_numpy(values.astype(np.float32)), threshold)
    labels, taken = np.zeros(len(values), np.int64), 0
    order = np.argsort(parts, kind="stable")
    for items in np.split(order, np.flatnonzero(np.diff(parts[order])) + 1):
        found = _cluster_part(values[items].astype(np.float64), threshold, method)
        labels[items] = found + taken
        taken += found.max(initial=0) + 1
    return _in_order_of_appearance(labels)


def connected_parts(embeddings: torch.Tensor, threshold: float) -> np.ndarray:
    """int64 ``(N,)``: equal for items of float32 ``(N, D)`` that a chain of pairs at most ``threshold`` apart connects.

    Pairs that are farther apart by rounding alone may be connected too. Memory: blocks of 1,024 N distances.
    """
    parts = np.arange(len(embeddings))
    squares = embeddings.square().sum(dim=1)
    slack = _SLACK * (1 + 2 * float(squares.max())) if len(embeddings) else 0.0
    for start in range(0, len(embeddings), _BLOCK):
        block = embeddings[start : start + _BLOCK]
        distances = squares[start : start + _BLOCK, None] + squares[start:] - 2 * block @ embeddings[start:].T
        first, second = (distances <= threshold + slack).numpy().nonzero()
        # Few pairs of parts stand for many pairs of items.
        edges = np.unique(np.stack([parts[first + start], parts[second + start]]), axis=1)
        graph = coo_array((np.ones(edges.shape[1], bool), tuple(edges)), shape=(len(parts), len(parts)))
        parts = connected_components(graph, directed=False)[1][parts]
    return parts.astype(np.int64)


def _cluster_part(values: np.ndarray, threshold: float, method: str) -> np.ndarray:
    """Clusters of connected items ``(N, D)``, float64: int64 ``(N,)`` from 0."""
    if len(values) < 2:
        return np.zeros(len(values), np.int64)
    if len(values) > MAX_CONNECTED:
        raise ValueError(
            f"{len(values)} of the images hang together by pairs within the threshold {threshold:g}, more than the "
            f"{MAX_CONNECTED} that are clustered at once; choose a smaller threshold, or cluster fewer images at a time"
        )
    merges = linkage(pdist(values, "sqeuclidean"), method)
    return fcluster(merges, threshold, "distance").astype(np.int64) - 1


def _in_order_of_appearance(labels: np.ndarray) -> np.ndarray:
    _, firsts, inverse = np.unique(labels, return_index=True, return_inverse=True)
    ranks = np.empty(len(firsts), np.int64)
    ranks[np.argsort(firsts)] = np.arange(len(firsts))
    return ranks[inverse.reshape(-1)]


@dataclass(frozen=True)
class ClusteringScores:
    """How well clusters fit identities, 0 to 1. Each F1 is the harmonic mean of the two figures before it.

    B-cubed: for each item, the share of its cluster that is of its identity (precision) and the share of its identity
    that is in its cluster (recall), each with the item itself, averaged over the items.

    Pairwise: of the pairs in one cluster the share that are of one identity (precision; 1 without such pairs), and of
    the pairs of one identity the share that are in one cluster (recall; 1 without such pairs).
    """

    bcubed_precision: float
    bcubed_recall: float
    bcubed_f1: float
    pairwise_precision: float
    pairwise_recall: float
    pairwise_f1: float
    clusters: int
    identities: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def clustering_scores_reference(clusters, identities) -> ClusteringScores:
    """The readable form of `clustering_scores`: a loop over all pairs of items. Tests compare the two."""
    items = list(zip(clusters, identities, strict=True))
    precisions, recalls = [], []
    together = alike = both = 0
    for i, (cluster_, identity) in enumerate(items):
        in_cluster = [other for other in items if other[0] == cluster_]
        of_identity = [other for other in items if other[1] == identity]
        shared = sum(other == (cluster_, identity) for other in items)
        precisions.append(shared / len(in_cluster))
        recalls.append(shared / len(of_identity))
        for other_cluster, other_identity in items[:i]:
            together += other_cluster == cluster_
            alike += other_identity == identity
            both += (other_cluster, other_identity) == (cluster_, identity)
    return _scores(
        sum(precisions) / len(items), sum(recalls) / len(items), both, together, alike,
        len({c for c, _ in items}), len({i for _, i in items}),
    )  # fmt: skip


def clustering_scores(clusters: np.ndarray, identities: np.ndarray) -> ClusteringScores:
    """
    Args:
        clusters: cluster of each item, ``(N,)`` of any type that sorts.
        identities: its true identity, ``(N,)`` of any type that sorts.

    Raises:
        ValueError: there are no items, or the two differ in number.
    """
    clusters, identities = np.asarray(clusters), np.asarray(identities)
    if clusters.shape != identities.shape or clusters.ndim != 1 or not len(clusters):
        raise ValueError(
            f"clusters have shape {clusters.shape} and identities {identities.shape}; expected: (N,) both, N at least 1"
        )
    _, rows, cluster_sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    _, columns, identity_sizes = np.unique(identities, return_inverse=True, return_counts=True)
    cells, counts = np.unique(np.stack([rows.reshape(-1), columns.reshape(-1)]), axis=1, return_counts=True)
    squares, total = counts.astype(np.float64) ** 2, len(clusters)
    return _scores(
        (squares / cluster_sizes[cells[0]]).sum() / total, (squares / identity_sizes[cells[1]]).sum() / total,
        _pairs(counts), _pairs(cluster_sizes), _pairs(identity_sizes), len(cluster_sizes), len(identity_sizes),
    )  # fmt: skip


def _pairs(counts: np.ndarray) -> int:
    counts = counts.astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _scores(precision, recall, both: int, together: int, alike: int, clusters: int, identities: int):
    pairwise = (both / together if together else 1.0, both / alike if alike else 1.0)
    return ClusteringScores(
        float(precision), float(recall), _f1(precision, recall), *pairwise, _f1(*pairwise), clusters, identities
    )


def _f1(precision: float, recall: float) -> float:
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0

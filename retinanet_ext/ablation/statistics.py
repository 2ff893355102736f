"""The statistics of a comparison over seeds."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Size, mean, standard deviation (with n - 1) and confidence interval of the mean of a sample.

    The mean is None for an empty sample, standard deviation and interval are None for fewer than two values.
    """

    n: int
    mean: float | None
    std: float | None
    interval: tuple[float, float] | None

    @property
    def excludes_zero(self) -> bool:
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def summarize(values: Iterable[float]) -> Summary:
    """Mean, standard deviation and the interval of Student's t with n - 1 degrees of freedom, at `CONFIDENCE`."""
    values = np.asarray(list(values), dtype=np.float64)
    n = len(values)
    if n == 0:
        return Summary(0, None, None, None)
    mean = float(values.mean())
    if n == 1:
        return Summary(1, mean, None, None)
    std = float(values.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / math.sqrt(n)
    return Summary(n, mean, std, (mean - half, mean + half))


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Summary:
    """Summary of `values - reference` over the seeds that both have.

    Effects of a seed on both arms (the order of the images, the initial weights) cancel in the difference.
    """
    return summarize(values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys()))


@dataclass(frozen=True)
class Pair:
    """Two arms, the one with the higher value in the paper first.

    Args:
        paper: the paper's difference, first - second, not negative.
        ours: difference of our means.
        paired: our difference, seed by seed, over the common seeds.
    """

    first: str
    second: str
    paper: float
    ours: float
    paired: Summary

    @property
    def is_tied(self) -> bool:
        return self.paper == 0 or self.ours == 0

    @property
    def is_reversed(self) -> bool:
        return self.paper > 0 > self.ours

    @property
    def is_clear(self) -> bool:
        """Whether the whole paired interval lies on the same side of zero as the difference of our means."""
        return self.paired.excludes_zero and self.paired.mean * self.ours > 0


@dataclass(frozen=True)
class OrderAgreement:
    """How well our order of the arms agrees with the paper's.

    Args:
        arms: those that have a value both here and in the paper.
        tau: Kendall's tau-b, 1 for the same order, -1 for the opposite; None with fewer than two arms, or if all
            values of one side are equal.
        pairs: all pairs of these arms.
    """

    arms: tuple[str, ...]
    tau: float | None
    pairs: tuple[Pair, ...]


def compare_order(values: Mapping[str, Mapping[int, float]], paper: Mapping[str, float]) -> OrderAgreement:
    """Compare the order of our means with the paper's, over the arms that both have.

    Kendall's tau rather than Spearman's rho: it counts pairs of arms, so each pair that lowers it can be named, and
    it has a meaning for the few arms of a table. Equal values in the paper count as ties (tau-b).

    Args:
        values: arm -> seed -> our metric.
        paper: arm -> the paper's value.
    """
    arms = tuple(arm for arm in values if values[arm] and arm in paper)
    means = {arm: summarize(values[arm].values()).mean for arm in arms}
    pairs = []
    for one, other in itertools.combinations(arms, 2):
        first, second = (one, other) if paper[one] >= paper[other] else (other, one)
        paired = paired_difference(values[first], values[second])
        pairs.append(Pair(first, second, paper[first] - paper[second], means[first] - means[second], paired))
    tau = math.nan
    if len(arms) > 1:
        tau = float(stats.kendalltau([means[arm] for arm in arms], [paper[arm] for arm in arms]).statistic)
    return OrderAgreement(arms, None if math.isnan(tau) else tau, tuple(pairs))

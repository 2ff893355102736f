"""Means, intervals and orders, compared with arithmetic by hand and printed tables of Student's t."""

import math

import pytest

from retinanet_ext.ablation.statistics import compare_order, paired_difference, summarize

T_2 = 4.302653  # 97.5 % quantile of Student's t with 2 degrees of freedom, as printed in tables; with 1: 12.7062


def test_three_values_by_hand():
    summary = summarize([1.0, 2.0, 6.0])  # deviations -2, -1, 3: variance (4 + 1 + 9) / 2 = 7
    assert (summary.n, summary.mean) == (3, 3.0)
    assert summary.std == pytest.approx(math.sqrt(7))
    half = T_2 * math.sqrt(7 / 3)
    assert summary.interval == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert not summary.excludes_zero


def test_two_equal_values_have_an_interval_of_no_width():
    summary = summarize([-2.5, -2.5])
    assert summary.std == 0 and summary.interval == (-2.5, -2.5) and summary.excludes_zero


def test_one_value_has_no_interval_and_none_no_mean():
    one, none = summarize([4.0]), summarize([])
    assert (one.n, one.mean, one.std, one.interval, one.excludes_zero) == (1, 4.0, None, None, False)
    assert (none.n, none.mean, none.std, none.interval) == (0, None, None, None)


def test_differences_are_paired_by_seed_over_the_common_seeds():
    # One arm has no seed 0, the other no seed 3. The common part of a seed (10, 20) cancels.
    difference = paired_difference({0: 99.0, 1: 11.0, 2: 23.0}, {2: 20.0, 1: 10.0, 3: -99.0})
    assert (difference.n, difference.mean) == (2, 2.0)  # the mean of 1 and 3
    half = 12.7062 * math.sqrt(2) / math.sqrt(2)
    assert difference.interval == pytest.approx((2 - half, 2 + half), rel=1e-5)


def test_pairing_sees_what_the_spread_of_the_arms_hides():
    baseline = {0: 10.0, 1: 20.0, 2: 30.0}
    better = {seed: value + gain for (seed, value), gain in zip(baseline.items(), (1.0, 1.1, 0.9))}
    assert paired_difference(better, baseline).excludes_zero
    assert summarize(better.values()).interval[0] < 20.0 < summarize(better.values()).interval[1]


def test_order_counts_pairs_and_names_the_reversed_ones():
    values = {"a": {0: 1.0, 1: 1.2}, "b": {0: 3.0, 1: 3.4}, "c": {0: 2.0, 1: 2.2}, "d": {0: 4.0, 1: 4.4}}
    agreement = compare_order(values, {"a": 10.0, "b": 20.0, "c": 30.0, "d": 40.0})
    assert agreement.arms == ("a", "b", "c", "d")
    assert agreement.tau == pytest.approx((5 - 1) / 6)  # 5 of 6 pairs agree
    (pair,) = [pair for pair in agreement.pairs if pair.is_reversed]
    assert (pair.first, pair.second, pair.paper) == ("c", "b", 10.0)
    assert pair.ours == pytest.approx(-1.1)  # differences -1.0 and -1.2: interval -1.1 ± 12.7 * 0.1 holds zero
    assert pair.paired.interval == pytest.approx((-1.1 - 1.27062, -1.1 + 1.27062), rel=1e-4)
    assert not pair.is_clear


def test_a_reversal_beyond_the_noise_is_clear():
    values = {"a": {0: 5.0, 1: 6.0, 2: 7.0}, "b": {0: 1.0, 1: 2.0, 2: 3.1}}
    (pair,) = compare_order(values, {"a": 1.0, "b": 2.0}).pairs
    assert pair.is_reversed and pair.is_clear and (pair.first, pair.second) == ("b", "a")


def test_ties_of_the_paper_are_no_reversals():
    values = {"a": {0: 1.0}, "b": {0: 2.0}, "c": {0: 3.0}}
    agreement = compare_order(values, {"a": 31.1, "b": 31.1, "c": 32.0})
    assert sum(pair.is_tied for pair in agreement.pairs) == 1
    assert not any(pair.is_reversed for pair in agreement.pairs)
    # tau-b: (2 - 0) / sqrt(3 pairs that differ here * 2 pairs that differ in the paper)
    assert agreement.tau == pytest.approx(2 / math.sqrt(3 * 2))


def test_arms_without_a_value_on_one_side_are_left_out():
    agreement = compare_order({"a": {0: 1.0}, "diverged": {}, "new": {0: 9.0}}, {"a": 1.0, "diverged": 2.0})
    assert agreement.arms == ("a",) and agreement.tau is None and agreement.pairs == ()

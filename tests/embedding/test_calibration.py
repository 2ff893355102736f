"""Calibration: the threshold meets the FAR, the interval covers it, and pairs that are too few are refused."""

import logging

import numpy as np
import pytest
from scipy.stats import binomtest

from retinanet_ext.embedding.calibration import Calibration, allowed_accepts, binomial_interval, calibrate, pairs_for


@pytest.fixture(autouse=True)
def shown_log(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    caplog.set_level(logging.WARNING)


def pairs(seed=0, same=400, different=4000):
    random = np.random.default_rng(seed)
    distances = np.concatenate([random.gamma(4, 0.1, same), random.gamma(20, 0.075, different)])
    return distances, np.repeat([True, False], [same, different])


def test_the_threshold_is_the_one_of_highest_val_that_meets_the_target():
    distances, same = pairs()
    found = calibrate(distances, same, 0.01)
    rates = [
        (np.mean(distances[same] <= d), np.mean(distances[~same] <= d)) for d in np.sort(distances) if d >= 0
    ]  # fmt: skip
    assert found.val == max(val for val, far in rates if far <= 0.01)
    assert found.far == np.mean(distances[~same] <= found.threshold) <= 0.01
    assert found.num_same == 400 and found.num_different == 4000
    low, high = found.far_interval
    assert low < found.far < high


def test_by_hand():
    # 10 different pairs, FAR 0.2: two may be accepted, so that the threshold lies between 0.3, the last distance below
    # the third different pair, and that pair at 0.4.
    different = [0.1, 0.2, 0.4, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5]
    found = calibrate([0.05, 0.15, 0.3, 0.5, *different], [1, 1, 1, 1] + [0] * 10, 0.2, miss=0.25)
    assert found.threshold == pytest.approx(0.35) and found.far == 0.2 and found.val == 0.75
    # One of four same pairs may be missed: above 0.3 lies one, so that 0.3 would do, but "same" reaches beyond it.
    assert found.unsure == (found.threshold, found.threshold)
    found = calibrate([0.05, 0.15, 0.3, 0.5, *different], [1, 1, 1, 1] + [0] * 10, 0.2, miss=0.1)
    assert found.unsure == (found.threshold, 0.5)
    assert [found.answer(d) for d in (0.35, 0.36, 0.5, 0.51)] == ["same", "unsure", "unsure", "different"]


@pytest.mark.parametrize(("accepted", "number"), [(0, 30), (1, 1000), (7, 50), (50, 50)])
def test_the_exact_interval_is_scipys(accepted, number):
    expected = binomtest(accepted, number).proportion_ci(0.95, "exact")
    assert binomial_interval(accepted, number) == pytest.approx((expected.low, expected.high))


def test_the_interval_covers_the_true_rate_although_the_threshold_was_selected_on_the_same_pairs():
    """Distances of different pairs are uniform, so the true FAR of a threshold is the threshold."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        distances = np.concatenate([[0.0, 0.5], random.random(400)])
        found = calibrate(distances, np.arange(402) < 2, 0.02, miss=0.5)
        covered += found.far_interval[0] <= found.threshold <= found.far_interval[1]
    assert covered >= 940


def test_the_upper_bound_is_below_the_target_if_asked_for():
    distances, same = pairs()
    point, upper = (calibrate(distances, same, 0.01, bound=bound) for bound in ("point", "upper"))
    assert point.far_interval_exact[1] > 0.01 >= upper.far_interval_exact[1]
    assert upper.threshold < point.threshold and upper.val < point.val
    # The next different pair would lead above it.
    accepted = round(upper.far * upper.num_different)
    assert binomial_interval(accepted + 1, upper.num_different)[1] > 0.01


def test_a_bootstrap_over_people_widens_the_interval_where_two_people_make_all_mistakes():
    """Of ten people, only 0 and 1 look alike. The exact interval takes their 40 mistakes for independent ones."""
    identities, distances = [], []
    for a in range(10):
        for b in range(a):
            identities += [(a, b)] * 40
            distances += [0.1 if (a, b) == (1, 0) else 1.0] * 40
    identities, distances = [*identities, (0, 0)], [*distances, 0.2]
    same = np.array([a == b for a, b in identities])
    found = calibrate(distances, same, 0.05, identities=np.array(identities), miss=0.5)
    assert found.far == 40 / 1800
    assert found.far_interval_exact == binomial_interval(40, 1800)
    # Person 0 or 1 is absent from about 58 % of the resamples; both twice and others absent is well above 5 %.
    assert found.far_interval[0] == 0.0 and found.far_interval[1] > 2 * found.far_interval_exact[1]
    again = calibrate(distances, same, 0.05, identities=np.array(identities), miss=0.5)
    assert again == found


def test_pairs_that_cannot_support_the_far_are_refused_and_few_are_warned_about(caplog):
    assert pairs_for(0.001) == 3000 and pairs_for(0.1) == 30
    with pytest.raises(ValueError, match="300 different pairs cannot support a FAR of 0.001.*at least 1000.*3000"):
        calibrate(*pairs(different=300), 0.001)
    # (1 - 0.001)^n <= 0.025 from n = 3688 on.
    with pytest.raises(ValueError, match="at least 3688"):
        allowed_accepts(0.001, 3687, "upper")
    assert allowed_accepts(0.001, 3688, "upper") == 0 and allowed_accepts(0.001, 3687) == 3
    calibrate(*pairs(different=4000), 0.001)
    assert not caplog.records
    calibrate(*pairs(different=2000), 0.001)
    assert "the rule of three asks for 3000" in caplog.text
    calibrate(*pairs(same=5), 0.01)
    assert "5 same pairs cannot measure a miss rate of 0.05" in caplog.text


def test_groups_get_their_own_numbers_and_a_warning(caplog):
    distances, same = pairs(same=400, different=8000)
    groups = np.where(np.arange(8400) % 4 == 0, "b", "a").astype(object)
    groups[:10] = ""
    distances = np.where((groups == "b") & ~same, distances * 0.6, distances)
    found = calibrate(distances, same, 0.01, groups=groups)
    assert set(found.groups) == {"a", "b"} and found.groups["a"]["num_different"] == 6000
    of_b = distances[(groups == "b") & ~same]
    assert found.groups["b"]["far"] == np.mean(of_b <= found.threshold) > 0.01 > found.groups["a"]["far"]
    assert found.groups["b"]["threshold"] < found.threshold < found.groups["a"]["threshold"]
    assert "Group 'b'" in caplog.text and "Group 'a'" not in caplog.text


def test_a_round_trip_through_plain_values():
    found = calibrate(*pairs(), 0.01, created_from="two folders")
    plain = found.to_dict()
    assert isinstance(plain["unsure"], list) and all(type(v) in (float, int, str, list, dict) for v in plain.values())
    assert Calibration.from_dict(plain) == found
    with pytest.raises(ValueError, match="lacks far_target"):
        Calibration.from_dict({key: value for key, value in plain.items() if key != "far_target"})
    with pytest.raises(ValueError, match="version 2"):
        Calibration.from_dict({**plain, "version": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1, 0.2], [1, 1], 0.5), "all 2 pairs are same pairs"),
        (([0.1, np.nan], [1, 0], 0.5), "pair 1 is nan"),
        (([0.1, 0.2], [1, 0], 0.0), "false-accept rate of 0.0"),
        (([0.1, 0.2], [1, 0], 1.5), "false-accept rate of 1.5"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        calibrate(*arguments)
    with pytest.raises(ValueError, match="miss rate of 2"):
        calibrate([0.1, 0.2], [1, 0], 0.5, miss=2)
    with pytest.raises(ValueError, match="bound is 'lower'"):
        calibrate([0.1, 0.2], [1, 0], 0.5, bound="lower")

"""Verification: against plain loops, hand arithmetic and scikit-learn; a fold's threshold never sees its own pairs."""

from types import SimpleNamespace

import numpy as np
import pytest

from retinanet_ext.embedding.roc import Roc
from retinanet_ext.embedding.verification import (
    evaluate,
    evaluate_reference,
    pair_distances,
    verify_embeddings,
    video_distance,
)


def random_pairs(seed, number=120, folds=6, ties=False):
    generator = np.random.default_rng(seed)
    same = generator.random(number) < 0.5
    distances = np.where(same, generator.gamma(4, 0.2, number), generator.gamma(9, 0.2, number))
    distances = np.round(distances * 5) / 5 if ties else distances
    return distances, same, generator.integers(0, folds, number)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_the_fast_form_equals_the_loop(seed, ties):
    distances, same, folds = random_pairs(seed, ties=ties)
    fars = (0.3, 0.1, 0.02, 0.001, 0.0)
    found = evaluate(distances, same, folds, fars)
    expected = evaluate_reference(distances.tolist(), same.tolist(), folds.tolist(), fars)
    np.testing.assert_allclose(found.accuracies, expected["accuracies"])
    np.testing.assert_allclose(found.thresholds, expected["thresholds"])
    for at in found.val_at_far:
        np.testing.assert_allclose(at.vals, expected[f"vals {at.target:g}"])
        np.testing.assert_allclose(at.fars, expected[f"fars {at.target:g}"])
        np.testing.assert_allclose(at.thresholds, expected[f"thresholds {at.target:g}"])


@pytest.mark.parametrize("ties", [False, True])
def test_roc_auc_and_eer_are_those_of_scikit_learn(ties):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed: pip install scikit-learn")
    from scipy.optimize import brentq

    for seed in range(5):
        distances, same, _ = random_pairs(seed, ties=ties)
        roc = Roc.of(distances, same)
        fpr, tpr, thresholds = metrics.roc_curve(same, -distances, drop_intermediate=False)
        np.testing.assert_allclose(roc.far, fpr)
        np.testing.assert_allclose(roc.val, tpr)
        np.testing.assert_allclose(roc.thresholds[1:], -thresholds[1:])
        assert roc.auc == pytest.approx(metrics.roc_auc_score(same, -distances))
        eer = brentq(lambda rate, fpr=fpr, tpr=tpr: 1 - rate - np.interp(rate, fpr, tpr), 0, 1)
        assert roc.eer == pytest.approx(eer, abs=1e-9)
        for far in (0.5, 0.1, 0.01):
            accepted, wrong = roc.accepted(roc.threshold_at_far(far))
            assert accepted / roc.num_same == pytest.approx(tpr[fpr <= far].max())
            assert wrong / roc.num_different <= far


def test_by_hand():
    # Equations 5 to 7 at d = 0.5: of three same pairs two are accepted (0.5 itself too), of two different pairs one.
    roc = Roc.of(np.array([0.2, 0.5, 0.9, 0.4, 1.5]), np.array([1, 1, 1, 0, 0], dtype=bool))
    assert roc.accepted(0.5) == (2, 1) and roc.accepted(0.499) == (1, 1) and roc.accepted(0.1) == (0, 0)
    # Of the six pairs of a same and a different pair, 0.5 and 0.9 against 0.4 are in the wrong order.
    assert roc.auc == pytest.approx(4 / 6)
    # All five right but 0.4: any threshold from 0.9 to below 1.5.
    assert roc.best_threshold() == pytest.approx(1.2)
    assert roc.threshold_at_far(0.0) == pytest.approx(0.3)
    assert roc.threshold_at_far(0.5) == pytest.approx(1.2)
    assert roc.threshold_at_far(0.99) == pytest.approx(1.2)
    assert roc.threshold_at_val(1.0) == 0.9 and roc.threshold_at_val(0.6) == 0.5 and roc.threshold_at_val(0.3) == 0.2


def test_accuracy_and_its_standard_error_by_hand():
    distances = [0.1, 1.0, 0.1, 1.0, 0.1, 1.0, 1.0, 0.1]
    same = [True, False, True, False, True, False, True, False]
    folds = [0, 0, 1, 1, 2, 2, 3, 3]
    found = evaluate(distances, same, folds)
    np.testing.assert_array_equal(found.accuracies, [1, 1, 1, 0])
    assert found.accuracy == 0.75
    # Deviations 1/4, 1/4, 1/4, -3/4: variance (3/16 + 9/16) / 3 = 1/4, and 0.5 / sqrt(4) is 1/4.
    assert found.accuracy_error == pytest.approx(0.25)
    assert found.thresholds[0] == pytest.approx(0.55)
    assert found.metrics()["accuracy"] == 75.0 and found.metrics()["num_same"] == 4


def test_the_threshold_of_a_fold_never_sees_its_own_pairs():
    """Fold 0 has other distances than the others: a threshold that knows it would answer all of its pairs right."""
    distances = [10, 20, 10.5, 21, 1, 2, 1.1, 2.1, 1.2, 2.2, 1.3, 2.3]
    same = [True, False] * 6
    folds = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    found = evaluate(distances, same, folds, fars=(0.0,))
    assert found.accuracies[0] == 0.5 and 1.3 < found.thresholds[0] < 2
    assert found.val_at_far[0].vals[0] == 0.0 and found.val_at_far[0].thresholds[0] < 2
    changed = evaluate([0.1, 0.2, 3, 4, *distances[4:]], [False, True, False, True, *same[4:]], folds, fars=(0.0,))
    assert changed.thresholds[0] == found.thresholds[0]
    assert changed.val_at_far[0].thresholds[0] == found.val_at_far[0].thresholds[0]


def test_the_middle_of_the_widest_of_tied_intervals():
    same = np.array([1, 0, 1, 0, 0], dtype=bool)
    # Right answers by threshold: below 1: 3; [1, 2): 4; [2, 3): 3; [3, 7): 4; [7, 8): 3; from 8: 2.
    assert Roc.of(np.array([1.0, 2, 3, 7, 8]), same).best_threshold() == 5.0
    assert Roc.of(np.array([1.0, 5, 6, 7, 8]), same).best_threshold() == 3.0
    # Of equally wide ones the lowest; neighbouring intervals count as one: at 2 a same and a different pair.
    assert Roc.of(np.array([1.0, 2, 3, 4, 8]), same).best_threshold() == 1.5
    both = np.array([1, 1, 0, 0], dtype=bool)
    assert Roc.of(np.array([1.0, 2, 2, 4]), both).best_threshold() == 2.5
    # The middle of two neighbouring numbers rounds to one of them, which must not be the upper one.
    low = np.nextafter(1.0, 2.0)
    for lower in (1.0, low):
        neighbours = np.array([lower, np.nextafter(lower, 2.0)])
        assert Roc.of(neighbours, np.array([True, False])).best_threshold() == lower


def test_folds_with_pairs_of_one_kind():
    distances = [0.1, 0.2, 1.0, 1.1, 0.3, 1.2]
    found = evaluate(distances, [1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 2, 2], fars=(0.5,))
    assert found.accuracy == 1.0
    np.testing.assert_array_equal(found.val_at_far[0].vals, [1, np.nan, 1])
    np.testing.assert_array_equal(found.val_at_far[0].fars, [np.nan, 0, 0])
    assert found.val_at_far[0].val == 1.0 and found.val_at_far[0].far == 0.0
    # The other fold has no different pair, so that no threshold can be selected for a FAR.
    found = evaluate([0.1, 0.2, 1.0, 1.1], [1, 1, 0, 0], [0, 0, 1, 1], fars=(0.5,))
    np.testing.assert_array_equal(found.val_at_far[0].thresholds, [found.val_at_far[0].thresholds[0], np.nan])
    # Each threshold is next to the pairs that it saw: all of the first fold lie below it, all of the second above.
    assert found.accuracies.tolist() == [1, 1]


def test_a_far_that_the_pairs_cannot_measure_is_named():
    distances, same, folds = random_pairs(0, number=600)
    at = evaluate(distances, same, folds, fars=(0.1, 0.001)).val_at_far
    assert at[0].problem == ""
    assert "cannot measure a FAR of 0.001" in at[1].problem and "at least 1000" in at[1].problem


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1, np.nan, 0.3], [1, 0, 1], [0, 1, 1]), "distance of pair 1 is nan"),
        (([0.1, 0.2, np.inf], [1, 0, 1], [0, 1, 1]), "distance of pair 2 is inf"),
        (([0.1, 0.2], [1, 1], [0, 1]), "all 2 pairs are same pairs"),
        (([0.1, 0.2], [0, 0], [0, 1]), "all 2 pairs are different pairs"),
        (([], [], []), "there are no pairs"),
        (([0.1, 0.2], [1, 0], [3, 3]), "in one fold"),
        (([0.1, 0.2], [1, 2], [0, 1]), "same must be bool"),
        (([0.1, 0.2], [1, 0, 1], [0, 1]), r"same \(3,\)"),
        (([0.1, 0.2], [1, 0], [0, 1], (1.0,)), "FAR of 1.0"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(*arguments)


def test_embeddings_of_anybody():
    embeddings = {"a/1": [1.0, 0.0], "a/2": [0.8, 0.6], "b/1": [0.0, 1.0], "b/2": [-0.6, 0.8]}
    pairs = SimpleNamespace(
        first=["a/1", "a/1", "b/1", "a/2"], second=["a/2", "b/1", "b/2", "b/2"],
        same=np.array([True, False, True, False]), fold=np.array([0, 0, 1, 1]),
    )  # fmt: skip
    found = verify_embeddings(embeddings, pairs)
    # Squared distances by hand: 0.2² + 0.6² = 0.4, 2, 0.6² + 0.2² = 0.4, 1.4² + 0.2² = 2.
    assert sorted({*found.roc.thresholds[1:].round(9).tolist()}) == [0.4, 2.0]
    assert found.accuracy == 1.0
    by_row = SimpleNamespace(first=[0, 0, 2, 1], second=[1, 2, 3, 3], same=pairs.same, fold=pairs.fold)
    rows = np.array([*embeddings.values()])
    np.testing.assert_array_equal(verify_embeddings(rows, by_row).thresholds, found.thresholds)
    np.testing.assert_allclose(pair_distances(rows, [[0, 1], [0, 2]]), [0.4, 2.0])
    with pytest.raises(KeyError, match="1 images of the pairs have no embedding, first 'b/2'"):
        verify_embeddings({key: value for key, value in embeddings.items() if key != "b/2"}, pairs)
    with pytest.raises(ValueError, match=r"that of 'b/2' \(3,\)"):
        verify_embeddings({**embeddings, "b/2": [1.0, 0.0, 0.0]}, pairs)


def test_videos_by_the_mean_over_all_pairs_of_frames():
    # |x - y|² of (0, 4), (0, 6), (2, 4), (2, 6) by hand: 16, 36, 4, 16.
    assert video_distance([[0.0], [2.0]], [[4.0], [6.0]]) == pytest.approx(18)
    assert video_distance([[0.0], [2.0], [100.0]], [[4.0], [6.0]], frames=2) == pytest.approx(18)
    random = np.random.default_rng(0)
    first, second = random.normal(size=(130, 8)), random.normal(size=(70, 8))
    loop = np.mean([np.square(a - b).sum() for a in first[:100] for b in second[:100]])
    assert video_distance(first, second) == pytest.approx(loop)
    with pytest.raises(ValueError, match="two videos of shapes"):
        video_distance(first, np.zeros((0, 8)))

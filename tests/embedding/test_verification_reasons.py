"""Metrics of verification that are undefined, and why."""

import math

import numpy as np

from retinanet_ext.embedding.verification import evaluate
from retinanet_ext.embedding.verification_reasons import undefined_reasons


def test_each_undefined_metric_has_a_reason_that_names_the_folds():
    # Fold 0 has only same pairs, fold 1 only different ones: held out, neither can give both rates.
    result = evaluate(np.array([0.1, 0.2, 1.0, 1.1]), np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 1]), fars=(0.1,))
    reasons = undefined_reasons(result)
    assert set(reasons) == {name for name, value in result.metrics().items() if math.isnan(value)}
    assert reasons["VAL@FAR=0.1_error"] == (
        "the error takes two folds with same pairs and a threshold; of 2 folds 1 has"
    )
    assert "none of 2 folds has a different pair and a threshold" in reasons["VAL@FAR=0.1_measured_FAR"]
    complete = evaluate(
        np.array([0.1, 1.0, 0.2, 1.1]), np.array([1, 0, 1, 0], bool), np.array([0, 0, 1, 1]), fars=(0.1,)
    )
    assert undefined_reasons(complete) == {}

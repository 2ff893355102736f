"""Why a metric of verification is undefined."""

import math

import numpy as np

from .verification import VerificationResult


def undefined_reasons(result: VerificationResult) -> dict[str, str]:
    """Metric of ``VerificationResult.metrics`` that is NaN -> the reason, as a sentence without a full stop."""
    undefined = [name for name, value in result.metrics().items() if math.isnan(value)]
    reasons = {}
    for name in undefined:
        at = next((at for at in result.val_at_far if name.startswith(f"VAL@FAR={at.target:g}")), None)
        reasons[name] = "an error takes two folds, and fewer have a value" if at is None else _reason(name, at)
    return reasons


def _reason(name, at) -> str:
    folds = len(at.vals)
    if np.isnan(at.thresholds).all():
        return f"no threshold can be selected: the other folds of each of {folds} folds have no different pair"
    with_same = int((~np.isnan(at.vals)).sum())
    if name.endswith("_measured_FAR"):
        return f"none of {folds} folds has a different pair and a threshold"
    if name.endswith("_error") and with_same:
        return f"the error takes two folds with same pairs and a threshold; of {folds} folds {with_same} has"
    return f"none of {folds} folds has a same pair and a threshold"

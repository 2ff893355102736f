"""The benchmark of mask evaluation times rows with equal metrics, and refuses to time others."""

import pytest

from benchmarks.mask_eval import build_evaluators, make_mask_data, measure
from benchmarks.measure import format_cases


@pytest.fixture
def rows(tmp_path):
    return build_evaluators(*make_mask_data(images=5, detections=30, classes=3), tmp_path)


def test_table_has_all_rows(rows):
    cases = measure(rows, repeats=1)
    assert [case.name for case in cases] == list(rows)
    assert all(len(case.seconds) == 1 and case.seconds[0] > 0 and case.difference <= 1e-9 for case in cases)
    assert all(name in format_cases(cases, cases[-1], "evaluate") for name in rows)


def test_other_metrics_are_not_timed(rows, tmp_path):
    evaluator, batches = rows["lite"]
    whole, _ = build_evaluators(*make_mask_data(images=5, detections=30, classes=3), tmp_path)["lite"]
    with pytest.raises(RuntimeError, match="metrics of part differ from those of whole"):
        measure({"part": (evaluator, batches[:3]), "whole": (whole, batches)}, repeats=1)

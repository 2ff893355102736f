"""The benchmark of COCO evaluation times rows with equal metrics, and refuses to time others."""

import pytest

from benchmarks.coco_eval import PARTS, build_evaluators, make_data, measure
from benchmarks.measure import format_cases


@pytest.fixture
def rows(tmp_path):
    return build_evaluators(*make_data(images=6, detections=30, classes=3), tmp_path)


def test_table_has_all_rows(rows):
    tables = measure(rows, repeats=1)
    assert tuple(tables) == PARTS
    for part, cases in tables.items():
        assert [case.name for case in cases] == list(rows)
        assert all(len(case.seconds) == 1 and case.seconds[0] > 0 and case.difference <= 1e-6 for case in cases)
        table = format_cases(cases, cases[-1], part)
        assert all(name in table for name in rows)


def test_other_metrics_are_not_timed(rows):
    evaluator, batches = rows["lite"]
    with pytest.raises(RuntimeError, match="metrics of lite differ from those of"):
        measure({**rows, "lite": (evaluator, batches[:3])}, repeats=1)

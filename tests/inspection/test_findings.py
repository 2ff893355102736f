"""Findings: from the problems of the checks before training, counted and ordered."""

import json

from retinanet_ext.data.doctor.record_checks import Problem
from retinanet_ext.inspection.datasets.findings import Finding, as_json, counts_by_kind, finding_of, worst_first


def finding(kind, severity, image_id=1):
    return Finding(kind, severity, "cells", "a.jpg", image_id, None, "x", "y")


def test_a_problem_becomes_a_finding_that_names_the_same_things():
    problem = Problem("box without area", "a.jpg", 7, "3 (id 12)", "[1, 1, 1, 4]", "x0 < x1 and y0 < y1")
    found = finding_of(problem, "cells", box=(1, 1, 1, 4))
    assert found.severity == "error" and found.box == (1, 1, 1, 4)
    assert str(found) == (
        "box without area: cells: a.jpg (image id 7), annotation 3 (id 12): found [1, 1, 1, 4]; right: x0 < x1 and "
        "y0 < y1"
    )


def test_errors_come_before_many_notes():
    findings = [finding("n", "note")] * 3 + [finding("w", "warning")] + [finding("e", "error"), finding("n", "note")]
    assert counts_by_kind(findings) == [("error", "e", 1), ("warning", "w", 1), ("note", "n", 4)]
    assert [f.kind for f in worst_first(findings)] == ["e", "w", "n", "n", "n", "n"]


def test_what_was_found_is_shortened():
    found = finding_of(Problem("kind", "a.jpg", 7, None, "9" * 10**6, "0 to 1"), "cells")
    assert found.found.startswith("999") and len(found.found) == 300


def test_json_keeps_image_ids_that_json_knows():
    rows = json.loads(json.dumps(as_json([finding("e", "error", 5), finding("e", "error", ("a", 1))])))
    assert [row["image_id"] for row in rows] == [5, "('a', 1)"]

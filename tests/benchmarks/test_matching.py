"""The matching benchmark times rows that give the same result, and refuses to time others."""

import pytest
import torch

from benchmarks.matching import check, has_detectron2, make_anchors, make_boxes, make_cases, measure, parse_arguments
from benchmarks.measure import Case, format_cases

TINY = ["--height=64", "--width=96", "--boxes=5", "--small-images=2", "--small-boxes=3", "--repeats=1", "--threads=1"]


def test_anchors_of_a_coco_image():
    anchors = make_anchors(800, 1333)
    assert len(anchors) == 9 * (100 * 168 + 50 * 84 + 25 * 42 + 13 * 21 + 7 * 11)
    areas = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
    assert areas.sqrt().min().item() == pytest.approx(32) and areas.max() > 800**2


def test_both_tables_have_all_rows():
    tables = dict(measure(parse_arguments(TINY)))
    names = ["this package", "plain form", "torchvision"] + ["Detectron2"] * has_detectron2()
    small = ["this package, batched"] + [f"{name}, image by image" for name in names]
    assert [[case.name for case in cases] for cases in tables.values()] == [names, small]
    for title, cases in tables.items():
        assert all(case.difference == 0 and len(case.seconds) == 1 for case in cases)
        assert all(case.name in format_cases(cases, cases[-1], title) for case in cases)


@pytest.mark.parametrize("what", ["state", "box"])
def test_a_wrong_case_is_not_timed(what, generator):
    anchors, images = make_anchors(64, 96), [make_boxes(5, 64, 96, generator)]
    cases = make_cases(anchors, images)
    matched, state = cases[0].run()
    index = torch.nonzero(state == 1)[0]
    (matched if what == "box" else state)[tuple(index)] += 1
    with pytest.raises(RuntimeError, match=r"wrong gives \d anchors another state and \d foreground anchors another"):
        check([Case("wrong", lambda: (matched, state)), *cases])

"""The drawings of a report, read back from their SVG."""

import re

from retinanet_ext.report.svg_plots import Row, draw_differences, draw_means, zoom_limits

LEARNED_BY_A_MINORITY = [34, 33.8, 34.2, 0.1, 0, 0.2, 0.3, 0.2, 0.4, 0, 0, 0]


def test_the_axis_shows_the_arms_that_learned_even_if_they_are_few():
    low, high = zoom_limits(LEARNED_BY_A_MINORITY)
    assert 32 < low < 33.8 and 34.2 < high < 36
    # The same arms beside a baseline of 0.2 and beside one of 34.
    low, high = zoom_limits([value - 0.2 for value in LEARNED_BY_A_MINORITY], nothing=-0.2)
    assert 32 < low < 33.6 and 34.0 < high < 36
    low, high = zoom_limits([value - 34 for value in LEARNED_BY_A_MINORITY], nothing=-34)
    assert -2 < low < -0.2 and 0.2 < high < 2


def test_the_axis_shows_all_arms_if_most_learned_less_than_a_few():
    low, high = zoom_limits([20, 21, 22, 20, 21, 44])
    assert low < 20 and high > 44


def strokes_through_labels(svg, labels):
    """(label, x) of the vertical lines that cross the text of a label."""
    lines = [
        (float(x), *sorted((float(top), float(bottom))))
        for x, top, bottom in re.findall(r'd="M (\S+) (\S+) \s*L \1 (\S+)', svg)
        if float(x)  # the shapes of tick marks begin at 0
    ]
    found = []
    for label in labels:
        x, y = map(float, re.search(rf"<!-- {label} -->\s*<g [^>]*translate\((\S+) (\S+)\)", svg).groups())
        # Text of 8.5 points: ascenders of 6.5 points, descenders of 2; a letter is at least 3 points wide.
        hits = [line for line in lines if line[1] < y + 1.5 and line[2] > y - 6 and x < line[0] < x + 3 * len(label)]
        found += [(label, line[0]) for line in hits]
    assert len(lines) >= len(labels)
    return found


def test_no_line_runs_through_a_label():
    names = ["ce-balanced-with-prior", "focal-star-gamma-four", "hinge-of-the-paper"]
    rows = [Row(name, 10.0 * i, (10.0 * i - 3, 10.0 * i + 3), [10.0 * i], 30.0 + i) for i, name in enumerate(names)]
    assert strokes_through_labels(draw_means(rows, "AP"), names) == []
    rows = [Row(name, -10.0 * i, (-10.0 * i - 3, -10.0 * i + 3), [], None) for i, name in enumerate(names)]
    assert strokes_through_labels(draw_differences(rows, "AP", "base"), names) == []
    # Zero lies at the left, where the labels are.
    rows = [Row(name, 10.0 * i, (10.0 * i - 3, 10.0 * i + 3), [], None) for i, name in enumerate(names)]
    assert strokes_through_labels(draw_differences(rows, "AP", "base"), names) == []


def test_no_line_runs_through_the_value_of_an_arm_beyond_the_axis():
    learned = [Row(f"a{i}", 44.0 + i, (43.0 + i, 45.0 + i), [], None) for i in range(4)]
    far = Row("far", 1.0, (-30.0, 46.0), [], None)
    svg = draw_means([*learned, far], "AP")
    x, y = map(float, re.search(r"<!-- 1.0 -->\s*<g [^>]*translate\((\S+) (\S+)\)", svg).groups())
    horizontal = re.findall(r'd="M (\S+) (\S+) \s*L (\S+) \2', svg)
    vertical = [(float(a), float(b), float(c)) for a, b, c in re.findall(r'd="M (\S+) (\S+) \s*L \1 (\S+)', svg)]
    assert not [h for h in horizontal if y - 6 < float(h[1]) < y + 1 and float(h[0]) < x + 10 < float(h[2])]
    assert not [v for v in vertical if x < v[0] < x + 10 and min(v[1:]) < y and max(v[1:]) > y - 6]

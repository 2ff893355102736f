"""The loss curves, against the paper's formulas and values computed without the project's code."""

import numpy as np
import pytest

from retinanet_ext.analysis.loss_curves import COMPARED_LOSSES, figure_1, figure_5, figure_6, loss_and_derivative

# By margin: cross entropy, FL at gamma 2, FL* at gamma 2 and beta 1, FL* at gamma 4 and beta 0; by hand.
LOSSES = {
    -5: (5.006715, 4.939921, 4.500062, 5.000000),
    -1: (1.313262, 0.701868, 0.656631, 1.004537),
    0: (0.693147, 0.173287, 0.156631, 0.173287),
    1: (0.313262, 0.022658, 0.024294, 0.004537),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("margin", LOSSES)
def test_figure_5_has_the_known_values(margin):
    _, columns = figure_5()
    assert list(columns) == ["x_t", *COMPARED_LOSSES] and len(COMPARED_LOSSES) == 4
    (row,) = np.flatnonzero(np.isclose(columns["x_t"], margin))
    assert [columns[name][row] for name in COMPARED_LOSSES] == pytest.approx(LOSSES[margin], abs=1e-6)


def test_figure_6_has_the_derivatives_of_appendix_b():
    _, columns = figure_6()
    x_t = columns["x_t"]
    p_t = sigmoid(x_t)
    expected = [
        p_t - 1,
        (1 - p_t) ** 2 * (2 * p_t * np.log(p_t) + p_t - 1),
        sigmoid(2 * x_t + 1) - 1,
        sigmoid(4 * x_t) - 1,
    ]
    for name, values in zip(COMPARED_LOSSES, expected):
        np.testing.assert_allclose(columns[name], values, atol=1e-12, err_msg=name)


def test_figure_1_is_the_focal_loss_by_p_t():
    _, columns = figure_1()
    p_t = columns["p_t"]
    assert len(columns) == 6
    for name, gamma in zip(list(columns)[1:], (0, 0.5, 1, 2, 5)):
        assert name == f"gamma = {gamma:g}"
        np.testing.assert_allclose(columns[name], -((1 - p_t) ** gamma) * np.log(p_t), rtol=1e-9)
    # Section 3.2: at gamma 2 an example with p_t = 0.9 has a hundredth of the loss of cross entropy.
    (row,) = np.flatnonzero(np.isclose(p_t, 0.9))
    assert columns["gamma = 0"][row] / columns["gamma = 2"][row] == pytest.approx(100)


def test_pictures_show_every_curve():
    for draw, count in ((figure_1, 5), (figure_5, 4), (figure_6, 4)):
        figure, columns = draw()
        (axis,) = figure.axes
        lines = [line for line in axis.lines if not line.get_label().startswith("_")]
        assert len(lines) == count == len(columns) - 1
        x, *curves = columns.values()
        for line, values in zip(lines, curves):
            np.testing.assert_array_equal(line.get_xydata(), np.stack([x, values], axis=1))


def test_the_derivative_is_that_of_the_loss():
    values, derivative = loss_and_derivative(lambda logits, targets: logits**2 * targets, np.array([-1.0, 3.0]))
    assert values.tolist() == [1, 9] and derivative.tolist() == [-2, 6]

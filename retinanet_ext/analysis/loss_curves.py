"""The loss curves of the Focal Loss paper (Figures 1, 5 and 6), drawn from the losses that models train with."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from retinanet_ext.losses import sigmoid_focal_loss, sigmoid_focal_star_loss

from .picture_style import COLORS, new_figure, ordered_colors

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (logits, targets) -> loss, all of one shape


def _focal(gamma: float) -> Loss:
    return partial(sigmoid_focal_loss, alpha=-1, gamma=gamma, reduction="none")


def _focal_star(gamma: float, beta: float) -> Loss:
    return partial(sigmoid_focal_star_loss, alpha=-1, gamma=gamma, beta=beta, reduction="none")


# Losses by column name; all without alpha, as in the paper's figures.
FOCAL_LOSSES: Mapping[str, Loss] = {f"gamma = {gamma:g}": _focal(gamma) for gamma in (0, 0.5, 1, 2, 5)}
COMPARED_LOSSES: Mapping[str, Loss] = {
    "CE": _focal(0),
    "FL, gamma = 2": _focal(2),
    "FL*, gamma = 2, beta = 1": _focal_star(2, 1),
    "FL*, gamma = 4, beta = 0": _focal_star(4, 0),
}
PROBABILITIES = np.arange(1, 1000) / 1000
MARGINS = np.linspace(-5, 5, 501)


def loss_and_derivative(loss: Loss, margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A loss and its derivative by the logit, for an example with target 1, whose logit is its margin ``x_t``.

    Args:
        loss: called as those in :data:`FOCAL_LOSSES`.
        margins: ``(M,)``.

    Returns:
        Two ``(M,)`` float64; the derivative by automatic differentiation.
    """
    x_t = torch.as_tensor(margins, dtype=torch.float64).requires_grad_()
    values = loss(x_t, torch.ones_like(x_t))
    values.sum().backward()
    return values.detach().numpy(), x_t.grad.numpy()


def figure_1() -> tuple[Figure, dict[str, np.ndarray]]:
    """Focal loss by ``p_t`` for several gammas; and the columns drawn, ``(M,)`` each: ``p_t``, then one per gamma."""
    margins = np.log(PROBABILITIES) - np.log1p(-PROBABILITIES)
    curves = {name: loss_and_derivative(loss, margins)[0] for name, loss in FOCAL_LOSSES.items()}
    figure, (axis,) = new_figure()
    axis.axvspan(0.5, 1.0, color="#e9f3ec", zorder=0)
    axis.text(0.75, 1.6, "well-classified\nexamples", ha="center", color="#3d7a52")
    for (name, values), color in zip(curves.items(), ordered_colors(len(curves))):
        axis.plot(PROBABILITIES, values, color=color, linewidth=2, label=_greek(name))
    axis.set(xlim=(0, 1), ylim=(0, 5), xlabel=r"probability of the true class, $p_t$", ylabel="loss")
    axis.set_title("Focal loss")
    axis.legend(loc="upper right", edgecolor="none")
    return figure, {"p_t": PROBABILITIES, **curves}


def figure_5() -> tuple[Figure, dict[str, np.ndarray]]:
    """Cross entropy, FL and FL* by ``x_t``; and the columns drawn, ``(M,)`` each: ``x_t``, then one per loss."""
    curves = {name: loss_and_derivative(loss, MARGINS)[0] for name, loss in COMPARED_LOSSES.items()}
    return _by_margin(curves, "Losses", "loss", (0, 5))


def figure_6() -> tuple[Figure, dict[str, np.ndarray]]:
    """The derivatives of Figure 5's losses by the logit; and the columns drawn, ``(M,)`` each, as for Figure 5."""
    curves = {name: loss_and_derivative(loss, MARGINS)[1] for name, loss in COMPARED_LOSSES.items()}
    return _by_margin(curves, "Derivatives", "derivative of the loss by the logit", None)


def _by_margin(curves, title, ylabel, ylim):
    figure, (axis,) = new_figure()
    axis.axvline(0, color="#b0b0b0", linewidth=1)
    for (name, values), color, style in zip(curves.items(), COLORS, ("-", "-", "--", "-.")):
        axis.plot(MARGINS, values, style, color=color, linewidth=2, label=_greek(name))
    axis.set(xlim=(MARGINS[0], MARGINS[-1]), ylim=ylim, xlabel=r"margin $x_t$ (correct if above 0)", ylabel=ylabel)
    axis.set_title(title)
    axis.legend(edgecolor="none")
    return figure, {"x_t": MARGINS, **curves}


def _greek(name):
    return name.replace("gamma", "γ").replace("beta", "β")

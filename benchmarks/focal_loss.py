"""The focal loss of RetinaNet, from logits and labels to loss and gradient, in the way of four packages.

The measured time includes the assembly of the targets, which each package does in its own way.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss_jit
from torchvision.ops import sigmoid_focal_loss as torchvision_loss

from benchmarks.measure import Case, format_cases, make_parser, now, print_header, time_in_turns, write_cases
from retinanet_ext.losses import dense_focal_loss
from retinanet_ext.losses.focal import dense_focal_reference

ALPHA = 0.25
FOREGROUND, IGNORED = 0.001, 0.003  # shares of the anchors
# Rounding of the logits' dtype: relative for the loss, absolute for the gradient, whose entries are at most 2.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}


def make_inputs(settings: Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(N, R, K)`` of a model in training, mostly near -4, and labels ``(N, R)``."""
    generator = torch.Generator().manual_seed(0)
    shape = (settings.images, settings.anchors, settings.classes)
    logits = torch.randn(shape, generator=generator) - 4
    chance = torch.rand(shape[:2], generator=generator)
    classes = torch.randint(settings.classes, shape[:2], generator=generator)
    labels = torch.where(chance < FOREGROUND, classes, settings.classes)
    labels[chance > 1 - IGNORED] = -1
    labels[:, 0], labels[:, 1] = 0, -1  # both kinds occur even among few anchors
    return logits.to(settings.device, getattr(torch, settings.dtype)).requires_grad_(), labels.to(settings.device)


def make_cases(logits: torch.Tensor, labels: torch.Tensor, gamma: float) -> list[Case]:
    """One case per implementation; the last is the reference of the ratios. Each returns the loss and its gradient."""
    num_classes = logits.shape[2]

    def plain():
        return dense_focal_reference(logits.float(), labels, ALPHA, gamma).sum()

    def like_torchvision():
        # As in its classification head: images one by one, a dense target, valid anchors cut out.
        total = 0
        for image_logits, label in zip(logits, labels):
            foreground = (label >= 0) & (label < num_classes)
            target = torch.zeros_like(image_logits)
            target[foreground, label[foreground]] = 1.0
            valid = label != -1
            total = total + torchvision_loss(image_logits[valid], target[valid], ALPHA, gamma, reduction="sum")
        return total

    def by_fvcore():
        # As Detectron2 calls it: int64 one-hot targets with K + 1 classes, without the last.
        valid = labels >= 0
        target = F.one_hot(labels[valid], num_classes=num_classes + 1)[:, :-1].to(logits.dtype)
        return sigmoid_focal_loss_jit(logits[valid], target, alpha=ALPHA, gamma=gamma, reduction="sum")

    functions = {
        "retinanet_ext": lambda: dense_focal_loss(logits, labels, ALPHA, gamma),
        "plain formula": plain,
        "torchvision": like_torchvision,
        "fvcore, as Detectron2 calls it": by_fvcore,
    }
    return [Case(name, lambda f=f: with_gradient(f, logits)) for name, f in functions.items()]


def with_gradient(function, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    loss = function()
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def check(cases: Sequence[Case], logits: torch.Tensor, labels: torch.Tensor, gamma: float, dtype: str) -> None:
    """Fill in the differences to the plain formula in float64.

    Raises:
        RuntimeError: a difference exceeds the tolerance.
    """
    exact = logits.detach().double().requires_grad_()
    expected = with_gradient(lambda: dense_focal_reference(exact, labels, ALPHA, gamma).sum(), exact)
    check_loss_and_gradient(cases, expected, TOLERANCES[dtype])


def check_loss_and_gradient(
    cases: Sequence[Case], expected: tuple[torch.Tensor, torch.Tensor], tolerance: float, subject: str = ""
) -> None:
    """Fill in the differences to a loss and its gradient in float64.

    Raises:
        RuntimeError: a difference exceeds the tolerance; the message names ``subject`` and the case.
    """
    for case in cases:
        loss, gradient = case.run()
        loss_error = abs(loss.double() / expected[0] - 1).item()
        gradient_error = (gradient.double() - expected[1]).abs().max().item()
        case.difference = float(np.max([loss_error, gradient_error]))  # NaN if one of them is NaN
        # This form also catches NaN, which compares as false.
        if not case.difference <= tolerance:
            raise RuntimeError(
                f"{subject}{case.name} differs from the plain formula in float64: loss by {loss_error:.1e} of it, "
                f"gradient by {gradient_error:.1e}; nothing was timed"
            )


def describe_floor(logits: torch.Tensor, best: Case, device: str, repeats: int) -> str:
    """The time to move the bytes that any implementation must move, at the rate of a copy on this machine."""
    source = logits.detach()
    target, seconds = torch.empty_like(source), []
    for _ in range(repeats + 1):
        start = now(device)
        target.copy_(source)
        seconds.append(now(device) - start)
    num_bytes = 2 * source.numel() * source.element_size()
    floor = float(np.median(seconds[1:]))
    return (
        f"floor: logits read once and gradient written once, {num_bytes / 2**20:.4g} MiB at the "
        f"{num_bytes / floor / 1e9:.3g} GB/s of a copy: {1000 * floor:.3g} ms; {best.name} takes "
        f"{np.median(best.seconds) / floor:.3g} times as long"
    )


def make_arguments() -> ArgumentParser:
    parser = make_parser("Focal loss, forward and backward")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--anchors", type=int, default=57600, help="per image; default: as for 480x640 pixels")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--gamma", type=float, default=2.0)
    parser.add_argument("--dtype", default="float32", choices=sorted(TOLERANCES))
    return parser


def main(words: Sequence[str] | None = None) -> None:
    settings = make_arguments().parse_args(words)
    torch.set_num_threads(settings.threads)
    logits, labels = make_inputs(settings)
    cases = make_cases(logits, labels, settings.gamma)
    header = print_header(settings, foreground=FOREGROUND, ignored=IGNORED)
    check(cases, logits, labels, settings.gamma, settings.dtype)
    time_in_turns(cases, settings.repeats, settings.device)
    print(format_cases(cases, reference=cases[-1]))
    print("\n" + describe_floor(logits, cases[0], settings.device, settings.repeats))
    write_cases(settings.json, header, {"focal_loss": cases})


if __name__ == "__main__":
    main()

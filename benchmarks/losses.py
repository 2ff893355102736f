"""Time and memory of every classification loss with its gradient: dense form against plain formula on one-hot targets.

The inputs are those of ``benchmarks.focal_loss``, which compares the focal loss with other projects'. For quality
focal and varifocal, the targets are IoUs: the dense form computes them, the plain form gets them precomputed.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks.focal_loss import (
    FOREGROUND,
    IGNORED,
    TOLERANCES,
    check_loss_and_gradient,
    make_inputs,
    with_gradient,
)
from benchmarks.measure import Case, format_cases, make_parser, print_header, time_in_turns, write_cases
from retinanet_ext.losses import (
    DenseFocalLoss,
    DenseFocalStarLoss,
    DenseHingeLoss,
    DensePredictions,
    DenseQualityFocalLoss,
    DenseTargets,
    DenseVarifocalLoss,
    quality_focal_loss,
    sigmoid_focal_loss,
    sigmoid_focal_star_loss,
    sigmoid_hinge_loss,
    varifocal_loss,
)
from retinanet_ext.ops import Box2BoxTransform, pairwise_iou

# Name in CLS_LOSS_REGISTRY -> (module, plain function), both with the same arguments of the formula.
ONE_HOT = {
    "focal": (DenseFocalLoss(), sigmoid_focal_loss),
    "cross_entropy": (DenseFocalLoss(alpha=-1, gamma=0), partial(sigmoid_focal_loss, alpha=-1, gamma=0)),
    "balanced_cross_entropy": (
        DenseFocalLoss(alpha=0.75, gamma=0), partial(sigmoid_focal_loss, alpha=0.75, gamma=0),
    ),
    "focal_star": (DenseFocalStarLoss(), sigmoid_focal_star_loss),
    "hinge": (DenseHingeLoss(), sigmoid_hinge_loss),
}  # fmt: skip
QUALITY = {
    "quality_focal": (DenseQualityFocalLoss(), quality_focal_loss),
    "varifocal": (DenseVarifocalLoss(), varifocal_loss),
}
LOSSES = {**ONE_HOT, **QUALITY}


def make_batch(logits: torch.Tensor, labels: torch.Tensor) -> tuple[DensePredictions, DenseTargets]:
    """Predictions with logits ``(N, R, K)`` and targets with labels ``(N, R)``; the IoU of their boxes is about 0.5."""
    generator, coding = torch.Generator().manual_seed(0), Box2BoxTransform()
    centers = torch.rand(labels.shape[1], 2, generator=generator) * 600
    sizes = 32 + torch.rand(labels.shape[1], 2, generator=generator) * 200
    anchors = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1).to(logits.device)
    deltas = (0.3 * torch.randn(*labels.shape, 4, generator=generator)).to(logits.device)
    image, anchor = ((labels >= 0) & (labels < logits.shape[2])).nonzero(as_tuple=True)
    predictions = DensePredictions(logits, deltas, anchors, coding.get_deltas, coding.apply_deltas)
    return predictions, DenseTargets(labels, image, anchor, gt_boxes=anchors[anchor])


def make_cases(name: str, predictions: DensePredictions, targets: DenseTargets) -> list[Case]:
    """The dense form, then the plain form. Each returns the loss and its gradient."""
    module, function = LOSSES[name]
    logits, entries = predictions.logits, foreground_targets(name, predictions, targets)

    def plain():
        return plain_form(function, logits, targets, entries)

    functions = {"dense": lambda: module(predictions, targets).sum(), "plain formula": plain}
    return [Case(row, lambda f=f: with_gradient(f, logits)) for row, f in functions.items()]


def foreground_targets(name: str, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
    """Targets ``(M,)`` of the foreground anchors for their classes: 1, or the IoU of their predicted boxes."""
    if name in ONE_HOT:
        return torch.ones_like(targets.gt_boxes[:, 0])
    deltas = predictions.deltas[targets.image_index, targets.anchor_index]
    boxes = predictions.decode(deltas, predictions.anchors[targets.anchor_index])
    return torch.cat([pairwise_iou(*pair)[0] for pair in zip(boxes.split(1), targets.gt_boxes.split(1))])


def plain_form(function: Callable, logits: torch.Tensor, targets: DenseTargets, entries: torch.Tensor) -> torch.Tensor:
    """Sum of an elementwise loss over the anchors that are not ignored, with a target for every entry ``(N, R, K)``."""
    entry_targets = torch.zeros_like(logits, dtype=torch.float32)
    image, anchor = targets.image_index, targets.anchor_index
    entry_targets[image, anchor, targets.labels[image, anchor]] = entries
    return function(logits, entry_targets).masked_fill((targets.labels < 0)[..., None], 0.0).sum()


def check(name: str, cases: Sequence[Case], predictions: DensePredictions, targets: DenseTargets, dtype: str) -> None:
    """Fill in the differences to the plain form in float64.

    Raises:
        RuntimeError: a difference exceeds the tolerance.
    """
    exact = predictions.logits.detach().double().requires_grad_()
    entries = foreground_targets(name, predictions, targets)
    expected = with_gradient(lambda: plain_form(LOSSES[name][1], exact, targets, entries), exact)
    check_loss_and_gradient(cases, expected, TOLERANCES[dtype], f"{name}, ")


def make_arguments() -> ArgumentParser:
    parser = make_parser("Classification losses, forward and backward")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--anchors", type=int, default=57600, help="per image; default: as for 480x640 pixels")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--dtype", default="float32", choices=sorted(TOLERANCES))
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES), metavar="NAME")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    settings = make_arguments().parse_args(words)
    torch.set_num_threads(settings.threads)
    predictions, targets = make_batch(*make_inputs(settings))
    header, tables = print_header(settings, foreground=FOREGROUND, ignored=IGNORED), {}
    for name in settings.losses:
        cases = tables[name] = make_cases(name, predictions, targets)
        check(name, cases, predictions, targets, settings.dtype)
        time_in_turns(cases, settings.repeats, settings.device)
        print(format_cases(cases, reference=cases[-1], title=name), end="\n\n", flush=True)
    write_cases(settings.json, header, tables)


if __name__ == "__main__":
    main()

"""Decoding: from the raw predictions of a dense detector to detections, ours beside others' on the same tensors.

The inputs are such that all rows must agree. All use the same box coding, because the weights are 1. Torchvision clips
boxes to the image before NMS, but the images lie in a frame so large that no box leaves it. Detectron2 gets memory for
the result of the sigmoid, because in its model the sigmoid overwrites the logits. Its head is not channels-last, so its
model must first bring the predictions into the order that the other rows start from. The row "from its head's layout"
includes this step: it is the real cost of decoding in Detectron2.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from statistics import NormalDist
from typing import NamedTuple

import torch
import torchvision
from torch import nn

from benchmarks.measure import Case, format_cases, has_detectron2, make_parser, print_header, time_in_turns, write_cases
from retinanet_ext.detection import Box2BoxTransform, decode_image
from retinanet_ext.detection.decoding import Detections, decode_batch

STRIDES = (8, 16, 32, 64, 128)
SCORE_THRESH, NMS_THRESH, MAX_DETECTIONS = 0.05, 0.5, 100
# MARGIN: pixels around the images that no box crosses. TOLERANCE: largest difference that counts as rounding, for
# scores and for coordinates divided by the longer side of the frame.
MARGIN, TOLERANCE = 1024, 1e-5


class Inputs(NamedTuple):
    """For each level: logits ``(N, R_l, K)``, deltas ``(N, R_l, 4)``, anchors ``(R_l, 4)`` (XYXY), (rows, columns).

    ``frame`` is the (height, width) in pixels of images that hold all boxes.
    """

    logits: list[torch.Tensor]
    deltas: list[torch.Tensor]
    anchors: list[torch.Tensor]
    grids: list[tuple[int, int]]
    frame: tuple[int, int]


def make_inputs(settings: argparse.Namespace, share: float) -> Inputs:
    """Random predictions for the anchors of RetinaNet; the fraction ``share`` of the scores passes the threshold."""
    generator = torch.Generator().manual_seed(0)
    # The logits are normal, shifted so that the threshold is the wanted quantile; a share of 0 or 1 shifts by 8 sigma.
    quantile = NormalDist().inv_cdf(min(max(1 - share, 1e-15), 1 - 1e-15))
    mean = torch.logit(torch.tensor(SCORE_THRESH)).item() - quantile
    grids = [(-(-settings.height // stride), -(-settings.width // stride)) for stride in STRIDES]
    logits, deltas, anchors = [], [], []
    for grid, stride in zip(grids, STRIDES):
        anchors.append(level_anchors(grid, stride) + MARGIN)
        shape = (settings.images, len(anchors[-1]))
        logits.append(torch.randn(*shape, settings.classes, generator=generator) + mean)
        deltas.append(torch.randn(*shape, 4, generator=generator) * 0.1)
    levels = [[level.to(settings.device) for level in parts] for parts in (logits, deltas, anchors)]
    return Inputs(*levels, grids, (settings.height + 2 * MARGIN, settings.width + 2 * MARGIN))


def level_anchors(grid: tuple[int, int], stride: int) -> torch.Tensor:
    """Anchors ``(rows * columns * 9, 4)``, XYXY: three sizes from 4 strides upwards, three shapes each."""
    sides = 4 * stride * 2 ** (torch.arange(3) / 3)
    ratios = torch.tensor([0.5, 1.0, 2.0]).sqrt()[:, None]
    half = torch.stack([sides / ratios, sides * ratios], dim=-1).reshape(9, 2) / 2
    rows, columns = (torch.arange(size) * float(stride) for size in grid)
    centers = torch.cartesian_prod(rows, columns).flip(1)[:, None]
    return torch.cat([centers - half, centers + half], dim=2).reshape(-1, 4)


def make_cases(inputs: Inputs, settings: argparse.Namespace) -> list[Case]:
    """Our batched form, our reference, and the others that are installed; each returns ``list[Detections]``."""
    cases = [
        Case("retinanet_ext, whole batch", partial(_ours, inputs, settings.topk)),
        Case("retinanet_ext, reference by image", partial(_by_image, inputs, settings.topk)),
        Case("torchvision", _torchvision(inputs, settings)),
    ]
    if has_detectron2():
        cases.append(Case("Detectron2, from its head's layout", _detectron2(inputs, settings, from_head=True)))
        cases.append(Case("Detectron2", _detectron2(inputs, settings, from_head=False)))
    return cases


def _limits(topk: int) -> dict:
    limits = {"score_thresh": SCORE_THRESH, "nms_thresh": NMS_THRESH, "max_detections": MAX_DETECTIONS}
    return {**limits, "topk": topk}


def _ours(inputs: Inputs, topk: int) -> list[Detections]:
    return decode_batch(*inputs[:3], Box2BoxTransform().apply_deltas, **_limits(topk))


def _by_image(inputs: Inputs, topk: int) -> list[Detections]:
    decode = Box2BoxTransform().apply_deltas
    return [
        decode_image(
            [x[i] for x in inputs.logits], [x[i] for x in inputs.deltas], inputs.anchors, decode, **_limits(topk)
        )
        for i in range(len(inputs.logits[0]))
    ]


def _torchvision(inputs: Inputs, settings: argparse.Namespace) -> Callable[[], list[Detections]]:
    backbone = nn.Identity()
    backbone.out_channels = 32  # the head is not used
    model = torchvision.models.detection.RetinaNet(
        backbone,
        settings.classes,
        score_thresh=SCORE_THRESH,
        nms_thresh=NMS_THRESH,
        detections_per_img=MAX_DETECTIONS,
        topk_candidates=settings.topk,
    )
    outputs = {"cls_logits": inputs.logits, "bbox_regression": inputs.deltas}
    anchors, frames = [inputs.anchors] * settings.images, [inputs.frame] * settings.images

    def run() -> list[Detections]:
        found = model.postprocess_detections(outputs, anchors, frames)
        return [Detections(x["boxes"], x["scores"], x["labels"]) for x in found]

    return run


def _detectron2(inputs: Inputs, settings: argparse.Namespace, from_head: bool) -> Callable[[], list[Detections]]:
    from detectron2.modeling.box_regression import Box2BoxTransform as Detectron2Transform
    from detectron2.modeling.meta_arch.retinanet import RetinaNet
    from detectron2.structures import Boxes

    names = ("backbone", "head", "anchor_generator")
    model = RetinaNet(
        **{name: nn.Identity() for name in names},
        head_in_features=[],
        box2box_transform=Detectron2Transform((1.0, 1.0, 1.0, 1.0)),
        anchor_matcher=None,
        num_classes=settings.classes,
        test_score_thresh=SCORE_THRESH,
        test_topk_candidates=settings.topk,
        test_nms_thresh=NMS_THRESH,
        max_detections_per_image=MAX_DETECTIONS,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    anchors = [Boxes(level) for level in inputs.anchors]
    predictions = [inputs.logits, inputs.deltas]
    if from_head:
        predictions = [[_as_from_head(*level) for level in zip(levels, inputs.grids)] for levels in predictions]
    scores = [torch.empty_like(level) for level in inputs.logits]

    def run() -> list[Detections]:
        logits, deltas = predictions
        if from_head:
            logits, deltas = model._transpose_dense_predictions(predictions, [settings.classes, 4])
        results = []
        for i in range(settings.images):
            image_scores = [torch.sigmoid(x[i], out=out[i]) for x, out in zip(logits, scores)]
            found = model.inference_single_image(anchors, image_scores, [x[i] for x in deltas], inputs.frame)
            results.append(Detections(found.pred_boxes.tensor, found.scores, found.pred_classes))
        return results

    return run


def _as_from_head(values: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """``(N, H * W * A, D)`` to contiguous ``(N, A * D, H, W)``."""
    return values.reshape(len(values), *grid, -1).permute(0, 3, 1, 2).contiguous()


def check(cases: Sequence[Case], reference: Case, frame: tuple[int, int]) -> None:
    """Fill in ``difference`` of all cases. ``frame``: see `Inputs`.

    Raises:
        RuntimeError: the detections of a case differ from the reference's by more than ``TOLERANCE``.
    """
    expected = reference.run()
    for case in cases:
        images = zip(case.run(), expected, strict=True)
        case.difference = max(max(_farthest(a, b, frame), _farthest(b, a, frame)) for a, b in images)
        if not case.difference <= TOLERANCE:  # this form also catches NaN
            raise RuntimeError(
                f"{case.name} differs from {reference.name} by {case.difference:.2g}, more than {TOLERANCE}; "
                "nothing was timed"
            )


def _farthest(detections: Detections, others: Detections, frame: tuple[int, int]) -> float:
    """Largest distance of a detection to the nearest of ``others`` of its class, in score and box / frame side.

    The nearest, not the one with the same index, because rounding may swap detections of almost equal scores.
    """
    rows, other_rows = (
        torch.cat([found.scores[:, None], found.boxes / max(frame)], dim=1) for found in (detections, others)
    )
    distances = (rows[:, None] - other_rows).abs().amax(dim=2)
    distances = distances.masked_fill(detections.classes[:, None] != others.classes, torch.inf)
    if not len(rows):
        return 0.0
    return distances.amin(dim=1).max().item() if len(other_rows) else torch.inf


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("From raw predictions to detections", repeats=20)
    parser.add_argument("--images", type=int, default=2, help="images per batch")
    parser.add_argument("--height", type=int, default=480, help="height of each image, pixels")
    parser.add_argument("--width", type=int, default=640, help="width of each image, pixels")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--share", type=float, nargs="+", default=[0.001], help="share of scores over the threshold")
    parser.add_argument("--topk", type=int, default=1000, help="candidates per level")
    return parser.parse_args(words)


@torch.no_grad()
def measure(settings: argparse.Namespace, share: float) -> list[Case]:
    """Check the cases and time them. Results are compared with our reference by image, times with the last case."""
    inputs = make_inputs(settings, share)
    cases = make_cases(inputs, settings)
    check(cases, cases[1], inputs.frame)
    time_in_turns(cases, settings.repeats, settings.device)
    return cases


def main() -> None:
    settings = parse_arguments()
    torch.set_num_threads(settings.threads)
    header = print_header(settings)
    tables = {}
    for share in settings.share:
        title = f"{share:g} of the scores pass"
        tables[title] = measure(settings, share)
        print(format_cases(tables[title], tables[title][-1], title), end="\n\n")
    write_cases(settings.json, header, tables)


if __name__ == "__main__":
    main()

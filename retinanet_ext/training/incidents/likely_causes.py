"""Ranks the likely causes of a loss or gradient that is not finite. Each cause states the numbers that speak for it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch

# Learning rates that are known to train with SGD: the papers' schedules for 16 images.
REFERENCE_LR = {"MaskRCNN": 0.02}
RETINANET_LR, REFERENCE_IMAGES = 0.01, 16


class Cause(NamedTuple):
    """``weight``: 0 to 1, how strongly the evidence speaks for it."""

    weight: float
    cause: str
    evidence: str
    remedy: str


class Circumstances(NamedTuple):
    """What is known of a failed step.

    Attributes:
        iteration, lr: of the step; the rate is the largest of all parameter groups.
        history: see :class:`TrainStep`.
        weights: see ``weights_summary``.
        ranks: for each process what ``StepAgain.examine`` found.
        images: for each image what :func:`image_facts` says, of all processes.
        loss_scale: of the gradient scaler; 1 without.
    """

    iteration: int
    lr: float
    history: Sequence[Sequence[float]]
    weights: Mapping[str, Any]
    ranks: Sequence[Mapping[str, Any]]
    images: Sequence[Mapping[str, Any]]
    loss_scale: float


def rank_causes(cfg: Any, known: Circumstances) -> list[Cause]:
    """All causes that anything speaks for, the likeliest first."""
    causes = [
        *_broken_images(known.images), *_bad_weights(known), *_overflow(cfg, known), *_learning_rate(cfg, known),
        *_growth(cfg, known), *_warm_up(cfg, known), *_loading(cfg, known), *_own_computation(known),
    ]  # fmt: skip
    return sorted(causes, reverse=True)


def image_facts(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """File, numbers that are not finite, range of the pixels, and boxes that no target can be made of."""
    facts: dict[str, Any] = {"file_name": str(inputs.get("file_name", "(no file name)"))}
    image = inputs.get("image")
    if isinstance(image, torch.Tensor) and image.numel():
        pixels = image.float()
        finite = pixels[pixels.isfinite()]
        facts |= {"nonfinite_pixels": pixels.numel() - finite.numel(), "pixels": pixels.numel()}
        facts["range"] = [float(finite.min()), float(finite.max())] if finite.numel() else None
    boxes = getattr(getattr(inputs.get("instances"), "gt_boxes", None), "tensor", None)
    if boxes is not None and len(boxes):
        finite = boxes.isfinite().all(dim=1)
        sides = (boxes[finite][:, 2:] - boxes[finite][:, :2]).amin(dim=1)
        facts |= {"boxes": len(boxes), "nonfinite_boxes": int((~finite).sum())}
        facts["smallest_side"] = float(sides.min()) if len(sides) else None
    return facts


def _broken_images(images: Sequence[Mapping[str, Any]]) -> Iterator[Cause]:
    for image in images:
        name, pixels = image["file_name"], image.get("range")
        if image.get("nonfinite_pixels"):
            evidence = f"{image['nonfinite_pixels']} of {image['pixels']} numbers of {name} are not finite"
            yield Cause(1.0, "an image is not finite", evidence, "look at the file and at what the mapper does with it")
        elif pixels and max(abs(bound) for bound in pixels) > 1e4:
            evidence = f"pixels of {name} reach from {pixels[0]:g} to {pixels[1]:g}, expected 0 to 255"
            yield Cause(0.7, "an image has values beyond pixels", evidence, "check the mapper's scale")
        elif pixels and pixels[0] == pixels[1]:
            evidence = f"every pixel of {name} is {pixels[0]:g}"
            yield Cause(0.15, "an image is constant", evidence, "look at the file; remove it if it is damaged")
        side = image.get("smallest_side")
        if image.get("nonfinite_boxes"):
            evidence = f"{image['nonfinite_boxes']} of {image['boxes']} boxes of {name} are not finite"
            yield Cause(1.0, "a box is not finite", evidence, "repair the annotation or the mapper")
        elif side is not None and side <= 0:
            evidence = f"a box of {name} has a side of {side:g} pixels"
            yield Cause(0.95, "a box has no area", evidence, "repair it, or DATASETS.ON_BAD_ANNOTATION drop")
        elif side is not None and side < 1:
            evidence = f"a box of {name} has a side of {side:.3g} pixels, so that its target deltas are large"
            yield Cause(0.3, "a box is smaller than a pixel", evidence, "remove such boxes, or enlarge the images")


def _bad_weights(known: Circumstances) -> Iterator[Cause]:
    weights = known.weights
    if weights["nonfinite_tensors"]:
        evidence = (
            f"{weights['nonfinite_numbers']} numbers in {weights['nonfinite_tensors']} tensors were not finite before "
            f"this step, first {weights['first_nonfinite']}"
        )
        remedy = "go back to an earlier checkpoint, with a lower SOLVER.BASE_LR" if known.iteration else (
            "the run began with them: check MODEL.WEIGHTS"
        )  # fmt: skip
        yield Cause(0.99, "the weights are not finite", evidence, remedy)
    if weights["largest"] > 1e3:
        evidence = f"the largest weight is {weights['largest']:.3g}, in {weights['largest_name']}"
        weight = min(0.9, 0.3 + 0.1 * math.log10(weights["largest"]))
        remedy = "lower SOLVER.BASE_LR, longer warm-up, clip gradients"
        yield Cause(weight, "the weights have diverged", evidence, remedy)


def _overflow(cfg: Any, known: Circumstances) -> Iterator[Cause]:
    for rank, facts in enumerate(known.ranks):
        exact = facts.get("losses_in_float32")
        if not exact or all(map(math.isfinite, facts["losses"].values())):
            continue
        if all(map(math.isfinite, exact.values())):
            values = ", ".join(f"{name} {value:.4g}" for name, value in exact.items())
            evidence = f"computed again in float32, the losses of rank {rank} are finite: {values}"
            yield Cause(0.97, "an overflow of mixed precision", evidence, "SOLVER.AMP.DTYPE bfloat16, or AMP off")
    if cfg.SOLVER.AMP.ENABLED and known.loss_scale > 2**24:
        yield Cause(0.2, "the loss scale is large", f"it is {known.loss_scale:g}", "SOLVER.AMP.DTYPE bfloat16")


def _learning_rate(cfg: Any, known: Circumstances) -> Iterator[Cause]:
    if cfg.SOLVER.get("OPTIMIZER", "SGD") != "SGD":
        return
    images = cfg.SOLVER.IMS_PER_BATCH
    per_batch = REFERENCE_LR.get(cfg.MODEL.META_ARCHITECTURE, RETINANET_LR)
    reference = per_batch * images / REFERENCE_IMAGES
    # The rate that brought the weights here, in warm-up a lower one than the next.
    ratio = max([known.lr, *(row[3] for row in known.history)]) / reference
    if ratio > 1.5:
        evidence = (
            f"{known.lr:.3g} at this step, {ratio:.3g} times the {reference:.3g} that {images} images suggest "
            f"({per_batch:g} for {REFERENCE_IMAGES})"
        )
        remedy = f"SOLVER.BASE_LR {reference:.3g}, or a larger batch with SOLVER.ACCUMULATE"
        yield Cause(min(0.96, 0.3 + 0.25 * math.log10(ratio)), "the learning rate is too high", evidence, remedy)


def _growth(cfg: Any, known: Circumstances) -> Iterator[Cause]:
    clipped = cfg.SOLVER.CLIP_GRADIENTS.ENABLED
    for column, what in ((2, "the gradient norm"), (1, "the loss")):
        values = [row[column] for row in known.history if math.isfinite(row[column])]
        if len(values) < 3 or median(values) <= 0:
            continue
        ratio = values[-1] / median(values)
        if ratio > 3:
            steps = len(values)
            evidence = f"{values[-1]:.3g} before this step, {ratio:.3g} times the median of the last {steps}"
            remedy = "a lower SOLVER.BASE_LR" if clipped else "SOLVER.CLIP_GRADIENTS.ENABLED True, a lower BASE_LR"
            cause = f"{what} grew" + ("" if clipped else ", and gradients are not clipped")
            yield Cause(min(0.9, 0.35 + 0.2 * math.log10(ratio)), cause, evidence, remedy)


def _warm_up(cfg: Any, known: Circumstances) -> Iterator[Cause]:
    length = cfg.SOLVER.WARMUP_ITERS
    if length == 0 and known.iteration < 1000:
        evidence = f"SOLVER.WARMUP_ITERS is 0, and this is iteration {known.iteration}"
        yield Cause(0.3, "there is no warm-up", evidence, "SOLVER.WARMUP_ITERS 1000")
    elif known.iteration < length:
        evidence = f"iteration {known.iteration} of the {length} of SOLVER.WARMUP_ITERS"
        yield Cause(0.2, "still in warm-up", evidence, "a longer warm-up or a lower SOLVER.WARMUP_FACTOR")


def _loading(cfg: Any, known: Circumstances) -> Iterator[Cause]:
    if cfg.MODEL.WEIGHTS or known.iteration > 5000:
        return
    frozen = "FrozenBN" in (cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM)
    evidence = "MODEL.WEIGHTS is empty" + (", and frozen batch norm has no statistics to freeze" if frozen else "")
    remedy = "name weights" + (", or use GN or BN as MODEL.RESNETS.NORM" if frozen else "")
    yield Cause(0.5 if frozen else 0.1, "the model began with random weights", evidence, remedy)


def _own_computation(known: Circumstances) -> Iterator[Cause]:
    """A module that made NaN from finite inputs and finite weights."""
    for first in _first_outputs(known.ranks):
        if first["input_is_finite"] and first["weights_are_finite"] and first["module"]:
            largest = first["largest_input"]
            evidence = (
                f"{first['module']} ({first['type']}) made {first['output']['nan']} NaN and "
                f"{first['output']['infinite']} infinite of {first['output']['numbers']} numbers from finite inputs"
                + (f" up to {largest:.3g}" if largest is not None else "")
            )
            # Large inputs explain it themselves; from small ones a right formula makes finite numbers.
            weight = 0.8 if largest is not None and largest < 1e4 else 0.4
            yield Cause(weight, "the computation of a module overflows or is wrong", evidence, "check that module")
    for facts in known.ranks:
        first = facts.get("first_gradient")
        if first:
            bad = [name for name, finite in facts.get("gradient_of_loss", {}).items() if not finite]
            evidence = f"{first['where']}; losses whose gradient alone is not finite: {', '.join(bad) or 'none'}"
            yield Cause(0.85, "a backward pass overflows or is wrong", evidence, "check that module and loss")


def _first_outputs(ranks: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    return (facts["first_output"] for facts in ranks if facts.get("first_output"))

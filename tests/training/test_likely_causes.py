"""Causes of a loss that is not finite, ranked by the numbers of hand-made circumstances."""

import math

import pytest
import torch

from retinanet_ext.training.incidents.likely_causes import Circumstances, image_facts, rank_causes
from tests.builders import ground_truth, small_config

FINE = {"nonfinite_tensors": 0, "nonfinite_numbers": 0, "first_nonfinite": None, "largest": 1.0, "largest_name": "w"}
QUIET = {"losses": {"loss_cls": math.nan}, "first_output": None, "losses_in_float32": None}


def known(**changes) -> Circumstances:
    """Iteration 6000 of a quiet run at the reference rate of 16 images."""
    values = {"iteration": 6000, "lr": 0.01, "history": [(i, 1.0, 2.0, 0.01) for i in range(5)], "weights": FINE}
    values |= {"ranks": [QUIET], "images": [], "loss_scale": 1.0}
    return Circumstances(**{**values, **changes})


def causes(cfg=None, **changes):
    return rank_causes(cfg or small_config(), known(**changes))


def test_nothing_speaks_for_a_cause_in_a_quiet_run():
    assert causes() == []


def test_the_rate_is_compared_with_that_of_the_batch():
    (cause,) = causes(small_config("SOLVER.IMS_PER_BATCH", "2"), lr=0.01)
    assert cause.cause == "the learning rate is too high"
    # 0.01 for 16 images is 0.00125 for 2.
    assert "8 times the 0.00125 that 2 images suggest" in cause.evidence
    assert cause.remedy.startswith("SOLVER.BASE_LR 0.00125")
    worse = causes(small_config("SOLVER.IMS_PER_BATCH", "2"), lr=10.0)[0]
    assert worse.weight > cause.weight
    assert causes(small_config("SOLVER.OPTIMIZER", "AdamW"), lr=10.0) == []  # the reference is SGD's


def test_a_broken_image_comes_before_a_high_rate_and_a_high_rate_before_a_missing_warm_up():
    image = {"file_name": "a.png", "nonfinite_pixels": 3, "pixels": 12, "range": [0.0, 1.0]}
    cfg = small_config("SOLVER.WARMUP_ITERS", "0", "MODEL.WEIGHTS", "x.pth")
    found = causes(cfg, iteration=7, lr=1.0, images=[image])
    assert [cause.cause for cause in found] == [
        "an image is not finite", "the learning rate is too high", "there is no warm-up",
    ]  # fmt: skip
    assert found[0].evidence == "3 of 12 numbers of a.png are not finite"
    assert "iteration 7" in found[2].evidence


def test_the_growth_of_the_gradient_is_a_ratio_to_the_median_and_names_missing_clipping():
    history = [(i, 1.0, norm, 0.01) for i, norm in enumerate([2.0, 2.0, 2.0, 2.0, 200.0])]
    (cause,) = causes(small_config("SOLVER.CLIP_GRADIENTS.ENABLED", "False"), history=history)
    assert cause.cause == "the gradient norm grew, and gradients are not clipped"
    assert cause.evidence == "200 before this step, 100 times the median of the last 5"
    (cause,) = causes(small_config("SOLVER.CLIP_GRADIENTS.ENABLED", "True"), history=history)
    assert cause.cause == "the gradient norm grew" and cause.remedy == "a lower SOLVER.BASE_LR"


def test_an_overflow_is_one_only_if_float32_is_finite():
    ranks = [{**QUIET, "losses_in_float32": {"loss_cls": 1.5}}]
    (cause,) = causes(ranks=ranks)
    assert cause.cause == "an overflow of mixed precision" and "loss_cls 1.5" in cause.evidence
    assert causes(ranks=[{**QUIET, "losses_in_float32": {"loss_cls": math.nan}}]) == []


def test_weights_that_are_not_finite_are_said_with_their_number():
    weights = {**FINE, "nonfinite_tensors": 2, "nonfinite_numbers": 7, "first_nonfinite": "head.a"}
    (cause,) = causes(weights=weights)
    assert cause.weight == 0.99 and "7 numbers in 2 tensors" in cause.evidence and "head.a" in cause.evidence
    assert causes(weights={**FINE, "largest": 1e6})[0].cause == "the weights have diverged"


@pytest.mark.parametrize(
    ("boxes", "cause"),
    [
        ([[1, 1, 1, 9]], "a box has no area"),
        ([[1, 1, 1.5, 9]], "a box is smaller than a pixel"),
        ([[1, 1, math.nan, 9]], "a box is not finite"),
        ([[1, 1, 9, 9]], None),
    ],
)
def test_boxes_of_the_batch(boxes, cause):
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    facts = image_facts({"file_name": "a.png", "image": image, "instances": ground_truth(16, 16, boxes, [0])})
    found = causes(images=[facts])
    assert [entry.cause for entry in found] == ([cause] if cause else [])


def test_pixels_of_the_batch():
    image = torch.zeros(3, 4, 4)
    image[0, 0, 0] = math.inf
    assert image_facts({"image": image}) == {
        "file_name": "(no file name)", "nonfinite_pixels": 1, "pixels": 48, "range": [0.0, 0.0],
    }  # fmt: skip
    assert causes(images=[image_facts({"image": torch.full((3, 4, 4), 7)})])[0].cause == "an image is constant"

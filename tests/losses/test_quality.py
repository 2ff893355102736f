import math

import pytest
import torch
import torch.nn.functional as F

from retinanet_ext.losses import quality_focal_loss, sigmoid_focal_loss, varifocal_loss

LOSSES = [quality_focal_loss, varifocal_loss]
GAMMAS = [0.0, 0.5, 1.0, 2.0, 5.0]


@pytest.fixture
def example(generator):
    """Float64 logits that require a gradient, and targets: two in ten are 0, two in ten are 1, the rest lie between."""
    logits = (torch.randn(100, generator=generator, dtype=torch.float64) * 2).requires_grad_()
    targets = (torch.rand(100, generator=generator, dtype=torch.float64) * 1.6 - 0.3).clamp(0, 1)
    assert {0.0, 1.0} < set(targets.tolist())
    return logits, targets


def test_quality_focal_by_hand():
    # p = 0.75: |0.5 - 0.75|^2 (0.5 log 4 + 0.5 log 4/3); |0 - 0.75| log 4.
    logits = torch.full((2,), math.log(3), dtype=torch.float64)
    actual = [quality_focal_loss(logits, torch.tensor([0.5, 0.0]), gamma) for gamma in (2, 1)]
    cross_entropy = 0.5 * math.log(4) + 0.5 * math.log(4 / 3)
    assert actual[0].tolist() == pytest.approx([cross_entropy / 16, 9 / 16 * math.log(4)])
    assert actual[1].tolist() == pytest.approx([cross_entropy / 4, 3 / 4 * math.log(4)])


def test_varifocal_by_hand():
    logits = torch.full((3,), math.log(3), dtype=torch.float64)
    actual = varifocal_loss(logits, torch.tensor([0.5, 0.0, 1.0]), alpha=0.75, gamma=2)
    expected = [0.25 * math.log(4) + 0.25 * math.log(4 / 3), 0.75 * 9 / 16 * math.log(4), math.log(4 / 3)]
    assert actual.tolist() == pytest.approx(expected)
    assert varifocal_loss(logits[:1], torch.zeros(1), alpha=2.0, gamma=1).item() == pytest.approx(1.5 * math.log(4))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_quality_focal_of_targets_0_and_1_is_the_focal_loss(gamma, generator):
    logits = (torch.randn(200, generator=generator) * 8).requires_grad_()
    targets = (torch.rand(200, generator=generator) < 0.5).float()
    losses = [quality_focal_loss(logits, targets, gamma), sigmoid_focal_loss(logits, targets, -1, gamma)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), logits)[0] for loss in losses), rtol=1e-4, atol=1e-30)


def test_limits(example):
    logits, targets = example
    soft = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(quality_focal_loss(logits, targets, gamma=0), soft)
    at_target = quality_focal_loss(torch.logit(torch.tensor([0.3, 0.9])), torch.tensor([0.3, 0.9]))
    assert (at_target < 1e-12).all()
    weights = torch.where(targets > 0, targets, 1.0)
    torch.testing.assert_close(varifocal_loss(logits, targets, alpha=1, gamma=0), weights * soft)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradcheck(gamma, example):
    logits, targets = example
    assert torch.autograd.gradcheck(lambda x: quality_focal_loss(x, targets, gamma), logits)
    assert torch.autograd.gradcheck(lambda x: varifocal_loss(x, targets, 0.75, gamma), logits)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_finite_at_extreme_logits_and_at_the_target(loss, gamma):
    targets = torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(7)
    logits = torch.tensor([1e4, -1e4, 100.0, -100.0, 20.0, -20.0, 0.0]).repeat(3).requires_grad_()
    values = loss(logits, targets, gamma=gamma)
    values.sum().backward()
    assert torch.isfinite(values).all() and torch.isfinite(logits.grad).all()
    assert values[1].item() == 0 and values[14].item() == 0  # confidently right
    # At a target of a half and p = 1, the distance is a half and the cross entropy 1e4 / 2.
    assert values[7].item() == pytest.approx(5e3 * (0.5**gamma if loss is quality_focal_loss else 0.5))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype, example):
    logits, targets = example[0].detach().to(dtype), example[1]
    actual = loss(logits, targets, reduction="mean")
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, loss(logits.float(), targets, reduction="mean"))


@pytest.mark.parametrize("loss", LOSSES)
def test_bad_arguments(loss):
    logits = torch.zeros(3)
    with pytest.raises(ValueError, match="gamma is -1"):
        loss(logits, logits, gamma=-1)
    with pytest.raises(ValueError, match="must agree"):
        loss(logits, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="legal values: none, mean, sum"):
        loss(logits, logits, reduction="avg")


@pytest.mark.parametrize("alpha", [-0.5, math.inf])
def test_varifocal_refuses_alpha(alpha):
    with pytest.raises(ValueError, match="alpha is .* finite alpha >= 0"):
        varifocal_loss(torch.zeros(3), torch.zeros(3), alpha=alpha)

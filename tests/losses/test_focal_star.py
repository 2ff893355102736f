import pytest
import torch
import torch.nn.functional as F

from retinanet_ext.losses import sigmoid_focal_star_loss


@pytest.fixture
def example(generator):
    """Float64 logits that require a gradient, and targets."""
    logits = (torch.randn(100, generator=generator, dtype=torch.float64) * 3).requires_grad_()
    return logits, (torch.rand(100, generator=generator) < 0.5).double()


@pytest.mark.parametrize(
    "x_t, narrow, steep",
    [(-5, 4.500062, 5.0), (-1, 0.656631, 1.004537), (0, 0.156631, 0.173287), (1, 0.024294, 0.004537)],
)
def test_values_by_hand(x_t, narrow, steep):
    # The settings of figures 5 and 6: gamma 2 with beta 1, and gamma 4 with beta 0.
    for target in (1.0, 0.0):  # a background example with logit -x_t has the same margin
        logits = torch.tensor([x_t if target else -x_t], dtype=torch.float64)
        targets = torch.tensor([target], dtype=torch.float64)
        assert sigmoid_focal_star_loss(logits, targets, -1, 2, 1).item() == pytest.approx(narrow, abs=1e-6)
        assert sigmoid_focal_star_loss(logits, targets, -1, 4, 0).item() == pytest.approx(steep, abs=1e-6)


@pytest.mark.parametrize("alpha", [-1.0, 0.25, 1.0])
def test_gamma_one_and_beta_zero_is_weighted_cross_entropy(alpha, example):
    logits, targets = example
    weight = torch.where(targets == 1, alpha, 1 - alpha) if alpha >= 0 else torch.ones_like(targets)
    expected = F.binary_cross_entropy_with_logits(logits, targets, weight=weight, reduction="none")
    torch.testing.assert_close(sigmoid_focal_star_loss(logits, targets, alpha, gamma=1, beta=0), expected)


def test_a_large_gamma_is_the_hinge_on_the_logit(example):
    logits, targets = example
    expected = F.relu(-logits * (2 * targets - 1))
    # log(1 + exp(-|v|)) / gamma is at most log(2) / gamma.
    torch.testing.assert_close(sigmoid_focal_star_loss(logits, targets, -1, 1e4, 0.0), expected, rtol=0, atol=7e-5)


@pytest.mark.parametrize("gamma, beta", [(2.0, 1.0), (4.0, 0.0), (0.5, -2.0)])
def test_derivative_is_that_of_appendix_b(gamma, beta, example):
    # dFL*/dx = y (p*_t - 1), eq. 11; with gamma 1 and beta 0 this is that of cross entropy, eq. 9.
    logits, targets = example
    sigmoid_focal_star_loss(logits, targets, -1, gamma, beta, reduction="sum").backward()
    y = 2 * targets - 1
    expected = y * (torch.sigmoid(gamma * y * logits.detach() + beta) - 1)
    torch.testing.assert_close(logits.grad, expected)
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal_star_loss(x, targets, 0.3, gamma, beta), logits)


def test_finite_at_extreme_logits():
    logits = torch.tensor([1e4, -1e4, 100.0, -100.0]).repeat(2).requires_grad_()
    loss = sigmoid_focal_star_loss(logits, torch.tensor([1.0] * 4 + [0.0] * 4), gamma=4.0)
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert loss[0].item() == 0 and loss[5].item() == 0  # confidently right
    # Confidently wrong: -(gamma x_t + beta) / gamma, times alpha_t.
    assert loss[1].item() == pytest.approx(0.25 * (1e4 - 0.25)) and loss[4].item() == pytest.approx(0.75 * (1e4 - 0.25))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, example):
    logits, targets = example[0].detach().to(dtype), example[1]
    loss = sigmoid_focal_star_loss(logits, targets, reduction="mean")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, sigmoid_focal_star_loss(logits.float(), targets, reduction="mean"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"targets": torch.zeros(4)}, r"targets have shape \(4,\), logits \(3,\)"),
        ({"gamma": 0.0}, "gamma is 0.0; .* needs gamma > 0"),
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"reduction": "avg"}, "legal values: none, mean, sum"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        sigmoid_focal_star_loss(**{"logits": torch.zeros(3), "targets": torch.zeros(3), **change})

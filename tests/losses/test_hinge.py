import pytest
import torch

from retinanet_ext.losses import sigmoid_hinge_loss

THIRD = -0.6931471805599453  # the logit of probability 1/3


def test_values_by_hand():
    logits = torch.tensor([THIRD, -THIRD, 0.0, THIRD], dtype=torch.float64)
    targets = torch.tensor([1.0, 0.0, 1.0, 0.0])  # p_t 1/3, 1/3, 1/2, 2/3
    assert sigmoid_hinge_loss(logits, targets, 0.5).tolist() == pytest.approx([1 / 6, 1 / 6, 0, 0])
    assert sigmoid_hinge_loss(logits, targets, 0.75).tolist() == pytest.approx([5 / 12, 5 / 12, 1 / 4, 1 / 12])
    assert sigmoid_hinge_loss(logits, targets, 1.0, "sum").item() == pytest.approx(2 / 3 + 2 / 3 + 1 / 2 + 1 / 3)


@pytest.mark.parametrize("margin", [0.2, 0.5, 0.9])
def test_nothing_above_the_margin_and_the_closed_form_below(margin, generator):
    logits = (torch.randn(100, generator=generator, dtype=torch.float64) * 2).requires_grad_()
    targets = (torch.rand(100, generator=generator) < 0.5).double()
    loss = sigmoid_hinge_loss(logits, targets, margin)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    y = 2 * targets - 1
    p_t = torch.sigmoid(y * logits.detach())
    above = p_t > margin
    assert 10 < above.sum() < 90 and (loss[above] == 0).all() and (gradient[above] == 0).all()
    torch.testing.assert_close(loss[~above], margin - p_t[~above])
    torch.testing.assert_close(gradient[~above], -(y * p_t * (1 - p_t))[~above])
    assert torch.autograd.gradcheck(lambda x: sigmoid_hinge_loss(x, targets, margin), logits)


def test_bounded_and_finite_at_extreme_logits():
    logits = torch.tensor([1e4, -1e4, 100.0, -100.0]).repeat(2).requires_grad_()
    loss = sigmoid_hinge_loss(logits, torch.tensor([1.0] * 4 + [0.0] * 4), margin=0.8)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0, 0.8, 0, 0.8, 0.8, 0, 0.8, 0]) and (logits.grad.abs() < 1e-6).all()


def test_a_small_error_keeps_its_precision():
    loss = sigmoid_hinge_loss(torch.tensor([20.0]), torch.ones(1), margin=1.0)
    assert loss.item() == pytest.approx(2.0611536e-9, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, generator):
    logits, targets = torch.randn(100, generator=generator).to(dtype), torch.ones(100)
    loss = sigmoid_hinge_loss(logits, targets, reduction="mean")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, sigmoid_hinge_loss(logits.float(), targets, reduction="mean"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"targets": torch.zeros(4)}, "must agree"),
        ({"margin": 0.0}, r"margin is 0.0; .* \(0, 1\]"),
        ({"margin": 1.01}, "margin is 1.01"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"reduction": "avg"}, "legal values: none, mean, sum"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        sigmoid_hinge_loss(**{"logits": torch.zeros(3), "targets": torch.zeros(3), **change})

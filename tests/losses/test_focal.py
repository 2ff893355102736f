import math

import pytest
import torch
import torch.nn.functional as F

from retinanet_ext.losses import DenseFocalLoss, DensePredictions, DenseTargets, sigmoid_focal_loss


def test_check_values_of_the_paper():
    # Section 3.2: at gamma 2, an example with p_t = 0.9 weighs 100 times less than under cross entropy, one with
    # p_t = 0.968 about 1000 times less, and one with p_t <= 0.5 at most 4 times less.
    p_t = torch.tensor([0.9, 0.968, 0.5, 0.1], dtype=torch.float64)
    logits = torch.log(p_t / (1 - p_t))
    ratio = -torch.log(p_t) / sigmoid_focal_loss(logits, torch.ones_like(logits), alpha=-1, gamma=2)
    assert ratio[0].item() == pytest.approx(100)
    assert ratio[1].item() == pytest.approx(1000, rel=0.03)
    assert ratio[2].item() == pytest.approx(4)
    assert ratio[3].item() < 4


@pytest.mark.parametrize(
    "x_t, cross_entropy, focal",
    [(-5, 5.006715, 4.939921), (-1, 1.313262, 0.701868), (0, 0.693147, 0.173287), (1, 0.313262, 0.022658)],
)
def test_values_by_hand(x_t, cross_entropy, focal):
    for target in (1.0, 0.0):  # a background example with logit -x_t has the same p_t
        logits = torch.tensor([x_t if target else -x_t], dtype=torch.float64)
        targets = torch.tensor([target], dtype=torch.float64)
        assert sigmoid_focal_loss(logits, targets, alpha=-1, gamma=0).item() == pytest.approx(cross_entropy, abs=1e-6)
        assert sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2).item() == pytest.approx(focal, abs=1e-6)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.25, 0.75, 1.0])
def test_gamma_zero_is_weighted_cross_entropy_with_its_gradient(alpha, generator):
    logits = (torch.randn(50, 7, generator=generator) * 4).requires_grad_()
    targets = (torch.rand(50, 7, generator=generator) < 0.3).float()
    weight = torch.where(targets == 1, alpha, 1 - alpha) if alpha >= 0 else torch.ones_like(targets)
    expected = F.binary_cross_entropy_with_logits(logits, targets, weight=weight, reduction="sum")
    actual = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=0.0, reduction="sum")
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (actual, expected)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_derivative_is_that_of_appendix_b(gamma, generator):
    # dFL/dx = y (1 - p_t)^gamma (gamma p_t log(p_t) + p_t - 1), eq. 10.
    x = (torch.randn(100, generator=generator, dtype=torch.float64) * 3).requires_grad_()
    targets = (torch.rand(100, generator=generator) < 0.5).double()
    sigmoid_focal_loss(x, targets, alpha=-1, gamma=gamma, reduction="sum").backward()
    y = 2 * targets - 1
    p_t = torch.sigmoid(y * x.detach())
    expected = y * (1 - p_t) ** gamma * (gamma * p_t * torch.log(p_t) + p_t - 1)
    torch.testing.assert_close(x.grad, expected)


def test_gradcheck(generator):
    x = torch.randn(20, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(20, generator=generator) < 0.5).double()
    assert torch.autograd.gradcheck(lambda v: sigmoid_focal_loss(v, targets, 0.25, 1.7), x)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 2.0, 5.0])
def test_finite_at_extreme_logits(gamma):
    x = torch.tensor([1e4, -1e4, 100.0, -100.0, 0.0]).repeat(2).requires_grad_()
    targets = torch.tensor([1.0] * 5 + [0.0] * 5)
    loss = sigmoid_focal_loss(x, targets, gamma=gamma)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(x.grad).all()
    assert loss[0].item() == 0.0 and loss[6].item() == 0.0  # confidently right
    assert loss[1].item() == pytest.approx(0.25e4) and loss[5].item() == pytest.approx(0.75e4)  # confidently wrong


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, generator):
    logits = torch.randn(100, generator=generator).to(dtype)
    targets = (torch.rand(100, generator=generator) < 0.5).float()
    loss = sigmoid_focal_loss(logits, targets, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits.float(), targets, reduction="sum"))


def test_float32_under_autocast(generator):
    logits = torch.randn(100, generator=generator)
    targets = (torch.rand(100, generator=generator) < 0.5).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sigmoid_focal_loss(logits, targets, reduction="sum")
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits, targets, reduction="sum"), atol=0, rtol=0)


def test_alpha_weights_the_two_sides():
    logits, targets = torch.zeros(2), torch.tensor([1.0, 0.0])
    # p_t = 0.5 for both: 0.25 log 2 before weighting.
    expected = [0.2 * 0.25 * math.log(2), 0.8 * 0.25 * math.log(2)]
    assert sigmoid_focal_loss(logits, targets, alpha=0.2).tolist() == pytest.approx(expected)


def test_matches_fvcore(generator):
    fvcore_loss = pytest.importorskip("fvcore.nn.focal_loss").sigmoid_focal_loss
    logits = torch.randn(200, generator=generator) * 5
    targets = (torch.rand(200, generator=generator) < 0.2).float()
    for alpha, gamma in [(0.25, 2.0), (-1, 0.5), (0.9, 5.0)]:
        torch.testing.assert_close(
            sigmoid_focal_loss(logits, targets, alpha, gamma), fvcore_loss(logits, targets, alpha, gamma)
        )


def test_empty_input_has_zero_loss_and_a_graph():
    logits = torch.zeros(0, 3, requires_grad=True)
    for reduction in ("mean", "sum"):
        loss = sigmoid_focal_loss(logits, torch.zeros(0, 3), reduction=reduction)
        loss.backward()
        assert loss.item() == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"targets": torch.zeros(4)}, r"targets have shape \(4,\), logits \(3,\)"),
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"reduction": "avg"}, "'avg'; legal values: none, mean, sum"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"logits": torch.zeros(3), "targets": torch.zeros(3), **change}
    with pytest.raises(ValueError, match=message):
        sigmoid_focal_loss(**arguments)


def dense_loss(logits, labels, **kwargs):
    predictions = DensePredictions(logits=logits, deltas=None, anchors=None, encode=None, decode=None)
    targets = DenseTargets(labels=labels, image_index=None, anchor_index=None, gt_boxes=None)
    return DenseFocalLoss(**kwargs)(predictions, targets)


def test_dense_loss_weighs_each_class_by_its_alpha(generator, device):
    logits = torch.randn(2, 20, 3, generator=generator).to(device)
    labels = torch.randint(0, 3, (2, 20), generator=generator).to(device)
    targets = torch.nn.functional.one_hot(labels, 3)
    alpha = (0.1, 0.5, 1.0)
    expected = sum(
        sigmoid_focal_loss(logits[:, :, k], targets[:, :, k], alpha=alpha[k]).sum(dim=1) for k in range(len(alpha))
    )
    torch.testing.assert_close(dense_loss(logits, labels, alpha=alpha), expected)
    torch.testing.assert_close(dense_loss(logits, labels, alpha=[0.3] * 3), dense_loss(logits, labels, alpha=0.3))


def test_alpha_of_each_class_is_not_part_of_a_checkpoint():
    loss = DenseFocalLoss(alpha=[0.1, 0.9])
    assert not loss.state_dict() and loss.to("meta").alpha.device.type == "meta"


@pytest.mark.parametrize("alpha", [1.5, [0.5, -0.5]])
def test_dense_loss_refuses_alpha(alpha):
    with pytest.raises(ValueError, match="alpha .*[1-]"):
        DenseFocalLoss(alpha=alpha)

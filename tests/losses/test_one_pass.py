"""FL*, the hinge loss, and the background's focal loss with separate entries. What all dense losses share is
tested with the focal loss."""

import pytest
import torch

from retinanet_ext.losses import (
    dense_focal_loss,
    dense_focal_star_loss,
    dense_hinge_loss,
    one_pass,
    sigmoid_focal_star_loss,
    sigmoid_hinge_loss,
)
from retinanet_ext.losses.one_pass import MARGIN_LOSSES
from retinanet_ext.losses.quality import dense_background_focal_loss
from tests.losses.dense_inputs import loss_and_gradient, random_input, sum_over_one_hot_targets

PER_CLASS = [0.0, 0.2, 0.5, 1.0]
STAR = [(0.25, 2.0, 1.0), (-1, 4.0, 0.0), (1.0, 0.5, -3.0), (0.7, 1.0, 0.0)]
HINGE = [(0.5,), (1.0,), (0.01,), (0.9,)]
CASES = [(dense_focal_star_loss, sigmoid_focal_star_loss, loss_args) for loss_args in STAR]
CASES += [(dense_hinge_loss, sigmoid_hinge_loss, loss_args) for loss_args in HINGE]
all_cases = pytest.mark.parametrize("dense, plain, loss_args", CASES)


def per_image(dense):
    return lambda *args: dense(*args, reduction="per_image")


def exact_loss_and_gradient(plain, logits, labels, *loss_args):
    exact = logits.detach().double().requires_grad_()
    return loss_and_gradient(lambda *args: sum_over_one_hot_targets(plain, *args), exact, labels, *loss_args)


@all_cases
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_equals_the_sum_over_one_hot_targets(dense, plain, loss_args, scale, small_blocks, generator, device):
    logits, labels = random_input((2, 30, 4), generator, device, scale)
    actual = loss_and_gradient(per_image(dense), logits, labels, *loss_args)
    assert [x.dtype for x in actual] == [torch.float32] * 2 and all(torch.isfinite(x).all() for x in actual)
    expected = exact_loss_and_gradient(plain, logits, labels, *loss_args)
    torch.testing.assert_close([x.double() for x in actual], list(expected), rtol=1e-5, atol=1e-6)


@all_cases
def test_float64_and_gradcheck(dense, plain, loss_args, generator, device):
    logits, labels = random_input((2, 6, 3), generator, device, dtype=torch.float64)
    actual = loss_and_gradient(per_image(dense), logits, labels, *loss_args)
    torch.testing.assert_close(actual, exact_loss_and_gradient(plain, logits, labels, *loss_args))
    assert torch.autograd.gradcheck(lambda x: per_image(dense)(x, labels, *loss_args), logits)


@all_cases
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dense, plain, loss_args, dtype, small_blocks, generator, device):
    logits, labels = random_input((2, 30, 4), generator, device, 4.0, dtype)
    loss, gradient = loss_and_gradient(per_image(dense), logits, labels, *loss_args)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    expected_loss, expected_gradient = exact_loss_and_gradient(plain, logits, labels, *loss_args)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=1e-6)
    rounding = 1.01 * torch.finfo(dtype).eps  # rounded before and after the multiplication by the image's weight
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=rounding, atol=1e-6)


@all_cases
@pytest.mark.parametrize("shape, label", [((0, 10, 3), 0), ((2, 0, 3), 0), ((2, 10, 3), -1)])
def test_empty_or_all_ignored(dense, plain, loss_args, shape, label, device):
    logits = torch.full(shape, 2.0, device=device, requires_grad=True)
    loss = dense(logits, torch.full(shape[:2], label, device=device), *loss_args)
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


def test_focal_star_with_alpha_of_each_class(small_blocks, generator, device):
    logits, labels = random_input((2, 30, 4), generator, device, dtype=torch.float64)
    actual = loss_and_gradient(per_image(dense_focal_star_loss), logits, labels, PER_CLASS, 3.0, 0.5)

    def by_class(logits, labels):
        # For each class: its column of the logits, and labels as if it were the only class.
        class_labels = [torch.where(labels < 0, -1, (labels != k).long()) for k in range(4)]
        sums = [sum_over_one_hot_targets(plain_star, logits[..., k : k + 1], class_labels[k], k) for k in range(4)]
        return torch.stack(sums).sum(dim=0)

    def plain_star(logits, targets, k):
        return sigmoid_focal_star_loss(logits, targets, PER_CLASS[k], 3.0, 0.5)

    torch.testing.assert_close(actual, loss_and_gradient(by_class, logits, labels))


def test_small_losses_of_focal_star_keep_their_precision(generator, device):
    logits, labels = random_input((2, 200, 5), generator, device)
    with torch.no_grad():
        logits -= 12
    labels[:] = 5
    actual = loss_and_gradient(per_image(dense_focal_star_loss), logits, labels, 0.25, 2.0, 1.0)
    expected = exact_loss_and_gradient(sigmoid_focal_star_loss, logits, labels, 0.25, 2.0, 1.0)
    torch.testing.assert_close([x.double() for x in actual], list(expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "dense, kwargs, message",
    [
        (dense_focal_star_loss, {"gamma": 0}, "gamma is 0; FL.* needs gamma > 0"),
        (dense_focal_star_loss, {"gamma": -1.0}, "gamma is -1.0"),
        (dense_focal_star_loss, {"beta": float("inf")}, "beta is inf"),
        (dense_focal_star_loss, {"alpha": 2.0}, "alpha is 2.0"),
        (dense_focal_star_loss, {"alpha": [0.5]}, r"alpha has shape \(1,\), and the logits have 3 classes"),
        (dense_hinge_loss, {"margin": 0.0}, r"margin is 0.0; .* \(0, 1\]"),
        (dense_hinge_loss, {"margin": 1.5}, "margin is 1.5"),
        (dense_hinge_loss, {"reduction": "mean"}, "legal values: sum, per_image"),
    ],
)
def test_bad_arguments(dense, kwargs, message):
    with pytest.raises(ValueError, match=message):
        dense(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64), **kwargs)


@pytest.mark.parametrize("name, formula_args", [("focal", [0.5]), ("focal_star", [3.0, 0.5]), ("hinge", [0.9])])
def test_a_formula_weighs_loss_and_derivative_and_has_neither_at_infinity(name, formula_args, generator):
    u = torch.randn(50, 4, generator=generator)
    u[0] = -torch.inf
    weights, scratch = torch.tensor(PER_CLASS), torch.full((4, 50, 4), torch.nan)
    plain = [x.clone() for x in MARGIN_LOSSES[name](u.clone(), None, list(scratch), *formula_args)]
    weighted = MARGIN_LOSSES[name](u, weights, list(scratch), *formula_args)
    assert all((x[0] == 0).all() and (x > 0).any() for x in plain)
    torch.testing.assert_close(list(weighted), [x * weights for x in plain])


def test_only_the_focal_loss_asks_for_the_triton_kernel(monkeypatch):
    calls = []

    def kernel(logits, labels, alpha, gamma, want_gradient, scale):
        calls.append(gamma)
        return logits.new_zeros(len(logits)), None

    monkeypatch.setattr(one_pass, "_triton_kernel", lambda device, dtype: kernel)
    logits, labels = torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64)
    assert dense_focal_star_loss(logits, labels, gamma=3.0) > 0 and dense_hinge_loss(logits, labels, 0.9) > 0
    assert dense_focal_loss(logits, labels, gamma=1.5) == 0 and calls == [1.5]


def background_input(generator, device, dtype=torch.float64):
    logits, labels = random_input((3, 20, 4), generator, device, dtype=dtype)
    return logits, labels, ((labels >= 0) & (labels < 4)).nonzero(as_tuple=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_background_and_entries_share_a_gradient(dtype, generator, device):
    logits, labels, (image, anchor) = background_input(generator, device, dtype)
    weights = torch.linspace(-1, 1, len(image), device=device, dtype=dtype)
    background, entries = dense_background_focal_loss(logits, labels, image, anchor, 1.5)
    labelled_logits = logits[image, anchor, labels[image, anchor]]
    assert torch.equal(entries, labelled_logits) and len(image) > 20
    assert torch.equal(background, dense_focal_loss(logits, labels, 0.0, 1.5, "per_image"))
    (actual,) = torch.autograd.grad(3 * background.sum() + (entries * weights).sum(), logits)
    apart = 3 * dense_focal_loss(logits, labels, 0.0, 1.5) + (labelled_logits * weights).sum()
    torch.testing.assert_close(actual, torch.autograd.grad(apart, logits)[0])


def test_background_and_entries_backward_twice_and_each_alone(generator, device):
    logits, labels, index = background_input(generator, device)
    background, entries = dense_background_focal_loss(logits, labels, *index)
    (background_gradient,) = torch.autograd.grad(background.sum(), logits, retain_graph=True)
    (entries_gradient,) = torch.autograd.grad(entries.sum(), logits, retain_graph=True)
    (joint_gradient,) = torch.autograd.grad(background.sum() + entries.sum(), logits)
    torch.testing.assert_close(background_gradient + entries_gradient, joint_gradient)
    is_entry = torch.zeros_like(logits)
    is_entry[(*index, labels[index])] = 1.0
    assert torch.equal(entries_gradient, is_entry)
    assert torch.autograd.gradcheck(lambda x: dense_background_focal_loss(x, labels, *index, 0.5), logits)


def test_an_entry_that_is_named_twice_counts_twice(generator, device):
    logits, labels, index = background_input(generator, device)
    twice = [torch.cat([part, part[:1]]) for part in index]
    background, entries = dense_background_focal_loss(logits, labels, *twice)
    (gradient,) = torch.autograd.grad(background.sum() * 0 + entries.sum(), logits)
    first = tuple(part[0] for part in (*index, labels[index]))
    assert gradient[first].item() == 2 and gradient.sum().item() == len(entries)


def test_background_without_entries_and_without_gradient(generator, device):
    logits, labels, index = background_input(generator, device)
    expected = dense_background_focal_loss(logits, labels, *index)
    for result in (
        dense_background_focal_loss(logits.detach(), labels, *index),
        torch.no_grad()(dense_background_focal_loss)(logits, labels, *index),
    ):
        assert all(torch.equal(*pair) and not pair[0].requires_grad for pair in zip(result, expected))
    labels[:] = 4
    none = torch.zeros(0, dtype=torch.int64, device=device)
    background, entries = dense_background_focal_loss(logits, labels, none, none)
    (background.sum() + entries.sum()).backward()
    torch.testing.assert_close(background, dense_focal_loss(logits, labels, -1, reduction="per_image"))
    assert entries.shape == (0,) and (logits.grad != 0).all()


def test_background_under_torch_compile(generator, device):
    logits, labels, index = background_input(generator, device)

    def function(logits, labels):
        background, entries = dense_background_focal_loss(logits, labels, *index)
        return background.index_add(0, index[0], entries)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    actual = loss_and_gradient(compiled, logits, labels)
    torch.testing.assert_close(actual, loss_and_gradient(function, logits, labels))

import math
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from retinanet_ext.losses import dense_focal_loss, one_pass, sigmoid_focal_loss
from retinanet_ext.losses.focal import dense_focal_reference, focal_and_derivative
from tests.losses.dense_inputs import loss_and_gradient, random_input, sum_over_one_hot_targets

PER_CLASS = [0.0, 0.2, 0.5, 1.0]  # for four classes
ALPHAS = [-1, 0.0, 0.25, 1.0, PER_CLASS]
GAMMAS = [0, 0.5, 1, 2, 5]


def ours(*args):
    return dense_focal_loss(*args, reduction="per_image")


def by_one_hot(*args):
    return sum_over_one_hot_targets(sigmoid_focal_loss, *args)


@pytest.mark.parametrize("function", [ours, dense_focal_reference])
@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (-1, 0.0), (0.75, 0.5), (1.0, 5.0), (0.3, 1.0)])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_equals_the_sum_over_one_hot_targets(function, alpha, gamma, scale, generator, device):
    logits, labels = random_input((3, 40, 5), generator, device, scale, torch.float64)
    actual = loss_and_gradient(function, logits, labels, alpha, gamma)
    torch.testing.assert_close(actual, loss_and_gradient(by_one_hot, logits, labels, alpha, gamma))


@pytest.mark.parametrize("alpha", ALPHAS, ids=str)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_equals_the_reference(alpha, gamma, scale, small_blocks, generator, device):
    logits, labels = random_input((2, 30, 4), generator, device, scale)
    actual = loss_and_gradient(ours, logits, labels, alpha, gamma)
    expected = loss_and_gradient(dense_focal_reference, logits, labels, alpha, gamma)
    assert all(torch.isfinite(x).all() for x in (*actual, *expected))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [ours, dense_focal_reference])
def test_alpha_of_each_class_by_hand(function, device):
    logits, labels = torch.zeros(2, 2, 2, device=device), torch.tensor([[0, 2], [-1, 1]], device=device)
    # p_t = 0.5 everywhere: 0.25 log 2 before weighting. First image: class 0, then background.
    weights = [0.1 + (1 - 0.7) + (1 - 0.1) + (1 - 0.7), (1 - 0.1) + 0.7]
    expected = torch.tensor(weights, device=device) * 0.25 * math.log(2)
    for alpha in ([0.1, 0.7], torch.tensor([0.1, 0.7], device=device)):
        torch.testing.assert_close(function(logits, labels, alpha, 2.0), expected)


# Blocks of less than an anchor; of a part of an image; of whole images, with a remainder; of everything.
@pytest.mark.parametrize("block", [1, 20, 90, 10**6])
@pytest.mark.parametrize("shape", [(5, 7, 4), (3, 11, 1)])
def test_blocks_of_any_size(block, shape, generator, monkeypatch, device):
    monkeypatch.setattr(one_pass, "CPU_BLOCK", block)
    monkeypatch.setattr(one_pass, "GPU_BLOCK", block)
    logits, labels = random_input(shape, generator, device, dtype=torch.float64)
    actual = loss_and_gradient(ours, logits, labels, 0.3, 2.0)
    torch.testing.assert_close(actual, loss_and_gradient(dense_focal_reference, logits, labels, 0.3, 2.0))


@pytest.mark.parametrize("num_classes", [1, 20])
def test_small_losses_keep_their_precision(num_classes, generator, device):
    logits, labels = random_input((2, 500, num_classes), generator, device)
    with torch.no_grad():
        logits -= 12  # background with p = 6e-6: log(1 - p) of a rounded 1 - p would be wrong in the second digit
    labels[:] = num_classes
    actual = loss_and_gradient(ours, logits, labels, 0.25, 0.5)
    exact = logits.detach().double().requires_grad_()
    expected = loss_and_gradient(dense_focal_reference, exact, labels, 0.25, 0.5)
    torch.testing.assert_close(actual[0].double(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(actual[1].double(), expected[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alpha", [0.25, PER_CLASS], ids=str)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_half_precision_is_summed_in_float32(dtype, alpha, gamma, small_blocks, generator, device):
    logits, labels = random_input((2, 30, 4), generator, device, 4.0, dtype)
    loss, gradient = loss_and_gradient(ours, logits, labels, alpha, gamma)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    exact = logits.detach().double().requires_grad_()
    expected_loss, expected_gradient = loss_and_gradient(dense_focal_reference, exact, labels, alpha, gamma)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=1e-6)
    # The gradient is rounded twice: before and after the multiplication by the image's weight.
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1.01 * rounding, atol=1e-7)


def test_gradients_too_small_for_float16_survive_a_loss_scaler(device):
    logits = torch.full((1, 4, 3), -8.0, device=device, dtype=torch.float16, requires_grad=True)
    labels = torch.full((1, 4), 3, device=device)
    (dense_focal_loss(logits, labels) * 2**16).backward()
    p = 1 / (1 + math.exp(8))
    unscaled = 0.75 * p**2 * (p - 2 * (1 - p) * math.log(1 - p))
    assert 0 < unscaled < 2**-25  # float16 would round it to 0
    expected = torch.full((1, 4, 3), 2**16 * unscaled, device=device)
    torch.testing.assert_close(logits.grad.float(), expected, rtol=0.04, atol=0)  # only 11 steps of float16


def test_half_precision_is_never_copied_whole(generator, monkeypatch):
    logits, labels = random_input((2, 5000, 100), generator, "cpu", dtype=torch.bfloat16)
    monkeypatch.setattr(one_pass, "CPU_BLOCK", 2**12)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                largest = max(largest, result.numel())
            return result

    with Watch(), torch.no_grad():
        one_pass.in_blocks(logits, labels, None, focal_and_derivative, [1.7], True, 1.0)
    assert 2**12 - 100 < largest <= 5 * 2**12  # the buffers


def test_float32_under_autocast(generator, device):
    logits, labels = random_input((2, 30, 4), generator, device)
    with torch.autocast(device.type, torch.bfloat16):
        actual = dense_focal_loss(logits, labels)
    assert torch.equal(actual, dense_focal_loss(logits, labels))


def test_logits_of_any_strides(small_blocks, generator, device):
    channels_first = torch.randn(2, 4, 30, generator=generator).to(device).requires_grad_()
    labels = torch.randint(-1, 5, (30, 2), generator=generator).to(device).T
    actual = loss_and_gradient(lambda x, _: ours(x.transpose(1, 2), labels), channels_first, None)
    expected = loss_and_gradient(lambda x, _: ours(x.transpose(1, 2).contiguous(), labels), channels_first, None)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_twice(dtype, generator, device):
    logits, labels = random_input((2, 30, 4), generator, device, dtype=dtype)
    (expected,) = torch.autograd.grad(dense_focal_loss(logits, labels) * 3, logits)
    loss = dense_focal_loss(logits, labels) * 3
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, logits)
    assert torch.equal(first, kept) and torch.equal(first, expected) and torch.equal(second, expected)


def test_second_derivatives_are_refused(generator, device):
    logits, labels = random_input((2, 30, 4), generator, device)
    (gradient,) = torch.autograd.grad(dense_focal_loss(logits, labels) ** 2, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("alpha", [0.3, -1, PER_CLASS[:3]], ids=str)
@pytest.mark.parametrize("gamma", [0, 1, 1.7, 2])
def test_gradcheck(alpha, gamma, generator, device):
    logits, labels = random_input((2, 6, 3), generator, device, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ours(x, labels, alpha, gamma), logits)


def test_without_gradient(generator, device):
    logits, labels = random_input((2, 30, 4), generator, device)
    expected = dense_focal_loss(logits, labels)
    for loss in (dense_focal_loss(logits.detach(), labels), torch.no_grad()(dense_focal_loss)(logits, labels)):
        assert not loss.requires_grad and torch.equal(loss, expected)
    _, gradient = one_pass.in_blocks(logits.detach(), labels, None, focal_and_derivative, [2.0], False, 1.0)
    assert gradient is None


def test_the_logits_are_left_alone(generator, device):
    logits, labels = random_input((1, 8, 3), generator, device)
    before = logits.detach().clone()
    dense_focal_loss(logits, labels).backward()
    assert torch.equal(logits, before)


@pytest.mark.parametrize("label", [-1, 3])
def test_all_ignored_or_all_background(label, generator, device):
    logits, _ = random_input((2, 10, 3), generator, device)
    loss = dense_focal_loss(logits, torch.full((2, 10), label, device=device))
    loss.backward()
    if label == -1:
        assert loss.item() == 0 and (logits.grad == 0).all()
    else:
        expected = sigmoid_focal_loss(logits.detach(), torch.zeros_like(logits), reduction="sum")
        torch.testing.assert_close(loss.detach(), expected)


@pytest.mark.parametrize("shape", [(0, 10, 3), (2, 0, 3)])
def test_empty(shape, device):
    logits = torch.zeros(shape, device=device, requires_grad=True)
    for alpha in (0.25, [0.1, 0.2, 0.3]):
        loss = ours(logits, torch.zeros(shape[:2], dtype=torch.int64, device=device), alpha)
        loss.sum().backward()
        assert loss.tolist() == [0.0] * shape[0]


def test_under_torch_compile(generator, device):
    logits, labels = random_input((2, 30, 4), generator, device)
    alpha = torch.tensor(PER_CLASS, device=device)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    actual = loss_and_gradient(compiled, logits, labels, alpha, 2.0)
    torch.testing.assert_close(actual, loss_and_gradient(ours, logits, labels, alpha, 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("want_gradient", [True, False])
def test_the_operator_keeps_its_promises(dtype, want_gradient, generator, device):
    logits, labels = random_input((2, 30, 4), generator, device, dtype=dtype)
    torch.library.opcheck(
        one_pass._margin_loss_operator,
        (logits.detach(), labels, torch.tensor([0.25], device=device), "focal", [2.0], want_gradient),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_without_triton_blocks_are_used_and_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "retinanet_ext.losses.focal_triton", None)  # makes its import fail
    monkeypatch.delattr("retinanet_ext.losses.focal_triton", raising=False)
    triton_kernel = one_pass._triton_kernel.__wrapped__
    with pytest.warns(UserWarning, match="without its Triton kernel"):
        assert triton_kernel(torch.device("cuda"), torch.float32) is None
    assert triton_kernel(torch.device("cuda"), torch.float64) is None
    assert triton_kernel(torch.device("cpu"), torch.float32) is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": torch.zeros(2, dtype=torch.int64)}, r"got \(1, 2, 3\) and \(2,\)"),
        ({"labels": torch.zeros(1, 2)}, "labels in int64 expected, got torch.float32 and torch.float32"),
        ({"logits": torch.zeros(1, 2, 3).long()}, "logits of a float dtype .* got torch.int64"),
        ({"reduction": "mean"}, "legal values: sum, per_image"),
        ({"gamma": -0.5}, "gamma is -0.5; .* >= 0"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"alpha": [0.5, 1.5, -1]}, r"alpha holds \[1.5, -1\]; .* must lie in \[0, 1\]"),
        ({"alpha": [0.5, 0.5]}, r"alpha has shape \(2,\), and the logits have 3 classes"),
        ({"alpha": torch.full((4,), 0.5)}, r"alpha has shape \(4,\), and the logits have 3 classes"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"logits": torch.zeros(1, 2, 3), "labels": torch.zeros(1, 2, dtype=torch.int64), **change}
    with pytest.raises(ValueError, match=message):
        dense_focal_loss(**arguments)

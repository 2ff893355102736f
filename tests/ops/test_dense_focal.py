import pytest
import torch
import torch.nn.functional as F

from retinanet_ext.losses import sigmoid_focal_loss
from retinanet_ext.ops import dense_focal_loss
from retinanet_ext.ops.dense_focal import dense_focal_reference


def by_one_hot(logits, labels, alpha, gamma):
    """The definition, written out: one-hot targets, ignored rows left out."""
    num_classes = logits.shape[2]
    targets = F.one_hot(labels.clamp(min=0), num_classes + 1)[..., :num_classes].to(logits.dtype)
    loss = sigmoid_focal_loss(logits, targets, alpha, gamma)
    return (loss * (labels >= 0)[..., None]).sum(dim=(1, 2))


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (-1, 0.0), (0.75, 0.5), (1.0, 5.0)])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_equals_the_sum_over_one_hot_targets(alpha, gamma, scale, generator):
    logits = (torch.randn(3, 40, 5, generator=generator, dtype=torch.float64) * scale).requires_grad_()
    labels = torch.randint(-1, 6, (3, 40), generator=generator)
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    gradients = []
    for per_image in (
        dense_focal_loss(logits, labels, alpha, gamma, reduction="per_image"),
        by_one_hot(logits, labels, alpha, gamma),
    ):
        gradients.append((per_image.detach(), torch.autograd.grad((per_image * weights).sum(), logits)[0]))
    for ours, expected in zip(*gradients):
        torch.testing.assert_close(ours, expected)
    total = dense_focal_loss(logits, labels, alpha, gamma)
    torch.testing.assert_close(total.detach(), gradients[0][0].sum())


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (-1, 0.0), (0.75, 0.5), (1.0, 5.0), (0.0, 1.0)])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_fast_form_equals_the_reference(alpha, gamma, scale, generator):
    logits = (torch.randn(2, 30, 4, generator=generator) * scale).requires_grad_()
    labels = torch.randint(-1, 5, (2, 30), generator=generator)
    results = []
    for per_image in (
        dense_focal_loss(logits, labels, alpha, gamma, reduction="per_image"),
        dense_focal_reference(logits, labels, alpha, gamma),
    ):
        results.append((per_image.detach(), torch.autograd.grad(per_image.sum(), logits)[0]))
        assert torch.isfinite(results[-1][0]).all() and torch.isfinite(results[-1][1]).all()
    for fast, reference in zip(*results):
        torch.testing.assert_close(fast, reference, rtol=1e-5, atol=1e-6)


def test_gradcheck(generator):
    logits = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(-1, 4, (2, 6), generator=generator)
    assert torch.autograd.gradcheck(lambda x: dense_focal_loss(x, labels, 0.3, 1.7, reduction="per_image"), logits)


def test_the_logits_are_left_alone(generator):
    logits = torch.randn(1, 8, 3, generator=generator)
    before = logits.clone()
    dense_focal_loss(logits, torch.randint(-1, 4, (1, 8), generator=generator))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("label", [-1, 3])
def test_all_ignored_or_all_background(label, generator):
    logits = torch.randn(2, 10, 3, generator=generator, requires_grad=True)
    loss = dense_focal_loss(logits, torch.full((2, 10), label))
    loss.backward()
    if label == -1:
        assert loss.item() == 0 and (logits.grad == 0).all()
    else:
        expected = sigmoid_focal_loss(logits.detach(), torch.zeros_like(logits), reduction="sum")
        torch.testing.assert_close(loss.detach(), expected)


@pytest.mark.parametrize("shape", [(0, 10, 3), (2, 0, 3)])
def test_empty(shape):
    logits = torch.zeros(shape, requires_grad=True)
    loss = dense_focal_loss(logits, torch.zeros(shape[:2], dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0


def test_bfloat16_logits_are_summed_in_float32(generator):
    logits = torch.randn(1, 50, 3, generator=generator).bfloat16()
    labels = torch.randint(0, 4, (1, 50), generator=generator)
    loss = dense_focal_loss(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, dense_focal_loss(logits.float(), labels))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2,\)"):
        dense_focal_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="legal values: sum, per_image"):
        dense_focal_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64), reduction="mean")

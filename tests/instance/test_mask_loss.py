import math

import pytest
import torch

from retinanet_ext.instance.mask_loss import (
    mask_loss,
    mask_loss_reference,
    mask_targets,
    softmax_mask_loss,
    softmax_mask_loss_reference,
)
from tests.instance.rois import random_rois


def mask_loss_of_classes(logits, classes, targets):
    """`mask_loss` as the heads call it: with the logits of the ground truth classes."""
    return mask_loss(logits[torch.arange(len(logits)), classes], targets)


@pytest.fixture
def batch(generator):
    logits = torch.randn(7, 4, 6, 6, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, 3, (7,), generator=generator)
    return logits, classes, torch.rand(7, 6, 6, generator=generator) < 0.5


def test_by_hand():
    """Object at the left. Its class has logits ln 3, 0 / 0, -ln 3: probabilities 3/4, 1/2 / 1/2, 1/4."""
    log3 = math.log(3)
    logits = torch.full((1, 2, 2, 2), 7.0)  # class 0, whose logits must not matter
    logits[0, 1] = torch.tensor([[log3, 0.0], [0.0, -log3]])
    target = torch.tensor([[[True, False], [True, False]]])
    expected = -math.log(3 / 4) - math.log(1 / 2) - math.log(1 / 2) - math.log(3 / 4)
    assert mask_loss_reference(logits, torch.tensor([1]), target).item() == pytest.approx(expected, rel=1e-6)
    assert mask_loss(logits[:, 1], target).item() == pytest.approx(expected, rel=1e-6)
    # One mask for all classes.
    assert mask_loss_reference(logits[:, 1:], torch.tensor([1]), target).item() == pytest.approx(expected, rel=1e-6)


def test_classes_compete_in_a_softmax_only():
    """2x2 pixels, 2 classes, all logits 0, the object at the left."""
    target = torch.tensor([[[True, False], [True, False]]])
    zeros = torch.zeros(1, 3, 2, 2)
    one = torch.tensor([0])
    # A sigmoid of 0 is 1/2 for each of 4 pixels; a softmax shares 1 between 2 classes and background.
    assert mask_loss(zeros[:, 0], target).item() == pytest.approx(4 * math.log(2), rel=1e-6)
    assert softmax_mask_loss(zeros, one, target).item() == pytest.approx(4 * math.log(3), rel=1e-6)
    # The other class becomes 3 times as likely: nothing for the sigmoid, shares of 1/5 instead of 1/3 for the softmax.
    other = zeros.clone()
    other[:, 1] = math.log(3)
    assert mask_loss(other[:, 0], target).item() == pytest.approx(4 * math.log(2), rel=1e-6)
    assert softmax_mask_loss(other, one, target).item() == pytest.approx(4 * math.log(5), rel=1e-6)


@pytest.mark.parametrize(
    ("fast", "reference"),
    [(mask_loss_of_classes, mask_loss_reference), (softmax_mask_loss, softmax_mask_loss_reference)],
)
def test_the_fast_form_equals_the_reference(batch, fast, reference):
    logits, classes, targets = batch
    gradients = []
    for form in (fast, reference):
        values = logits.clone().requires_grad_()
        loss = form(values, classes, targets)
        assert loss.dtype == torch.float32
        gradients.append(torch.autograd.grad(loss, values)[0])
    torch.testing.assert_close(fast(logits, classes, targets), reference(logits, classes, targets))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    if fast is mask_loss_of_classes:
        for row, label in zip(gradients[0], classes, strict=True):
            assert row.flatten(1).any(dim=1).nonzero().flatten().tolist() == [label]


@pytest.mark.parametrize("loss", [mask_loss_of_classes, softmax_mask_loss])
def test_gradient_by_differences(loss, generator):
    """A step along the gradient changes the loss by its squared length."""
    logits = torch.randn(3, 4, 5, 5, generator=generator).requires_grad_()
    classes, targets = torch.tensor([2, 0, 1]), torch.rand(3, 5, 5, generator=generator) < 0.5
    gradient = torch.autograd.grad(loss(logits, classes, targets), logits)[0]
    with torch.no_grad():
        above, below = (loss(logits + step * gradient, classes, targets).item() for step in (1e-2, -1e-2))
    assert (above - below) / 2e-2 == pytest.approx(gradient.square().sum().item(), rel=1e-3)


@pytest.mark.parametrize("loss", [mask_loss_of_classes, softmax_mask_loss])
def test_losses_are_float32_whatever_the_logits(loss, batch):
    logits, classes, targets = batch
    low = logits.bfloat16()
    assert loss(low, classes, targets).dtype == torch.float32
    torch.testing.assert_close(loss(low, classes, targets), loss(low.float(), classes, targets))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(low, classes, targets).dtype == torch.float32


def test_images_without_rois_need_no_masks(generator):
    rois = random_rois([2, 0, 3], generator, mask_size=6)
    rois[1].remove("gt_masks")
    classes, targets = mask_targets(rois, 6, torch.device("cpu"))
    assert classes.equal(torch.cat([rois[0].gt_classes, rois[2].gt_classes])) and targets.shape == (5, 6, 6)
    assert targets[2:].equal(rois[2].gt_masks.targets)
    classes, targets = mask_targets([rois[1]], 6, torch.device("cpu"))
    assert classes.shape == (0,) and targets.shape == (0, 6, 6)

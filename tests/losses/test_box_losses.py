import math

import pytest
import torch

from retinanet_ext.losses import ciou_loss, diou_loss, giou_loss, l1_loss, smooth_l1_loss

OVERLAP_LOSSES = [giou_loss, diou_loss, ciou_loss]

# A 2x2 box and the same box shifted by (1, 1): intersection 1, union 7, hull 3x3 = 9 with diagonal^2 18, squared
# distance of the centres 2. Same shape, so CIoU adds nothing.
BOX = torch.tensor([[0.0, 0.0, 2.0, 2.0]], dtype=torch.float64)
SHIFTED = torch.tensor([[1.0, 1.0, 3.0, 3.0]], dtype=torch.float64)
# A 4x1 box inside a 4x4 one: IoU 1/4, hull the large box (16, diagonal^2 32), centre distance^2 1.5^2.
WIDE = torch.tensor([[0.0, 0.0, 4.0, 1.0]], dtype=torch.float64)
SQUARE = torch.tensor([[0.0, 0.0, 4.0, 4.0]], dtype=torch.float64)


def test_giou_by_hand():
    assert giou_loss(BOX, SHIFTED).item() == pytest.approx(1 - 1 / 7 + 2 / 9, abs=1e-6)
    assert giou_loss(WIDE, SQUARE).item() == pytest.approx(1 - 1 / 4, abs=1e-6)


def test_diou_by_hand():
    assert diou_loss(BOX, SHIFTED).item() == pytest.approx(1 - 1 / 7 + 2 / 18, abs=1e-6)
    assert diou_loss(WIDE, SQUARE).item() == pytest.approx(1 - 1 / 4 + 2.25 / 32, abs=1e-6)


def test_ciou_by_hand():
    assert ciou_loss(BOX, SHIFTED).item() == pytest.approx(1 - 1 / 7 + 2 / 18, abs=1e-6)
    v = 4 / math.pi**2 * (math.atan(4 / 4) - math.atan(4 / 1)) ** 2
    expected = 1 - 1 / 4 + 2.25 / 32 + v / (1 - 1 / 4 + v) * v
    assert ciou_loss(WIDE, SQUARE).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", OVERLAP_LOSSES)
def test_equal_boxes_have_no_loss_and_far_ones_a_bounded_one(loss):
    assert loss(SQUARE, SQUARE).item() == pytest.approx(0, abs=1e-6)
    far = SQUARE + 1e4
    assert 1.9 < loss(SQUARE, far).item() < 2.0


@pytest.mark.parametrize("loss", OVERLAP_LOSSES)
def test_gradient(loss, generator):
    corner = torch.rand(6, 2, generator=generator, dtype=torch.float64) * 5
    size = 1 + torch.rand(6, 2, generator=generator, dtype=torch.float64) * 5
    boxes = torch.cat([corner, corner + size], dim=1)
    moved = (boxes + torch.rand(6, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    if loss is ciou_loss:  # its weight is a constant by definition, so the numerical gradient differs
        loss(moved, boxes).sum().backward()
        assert torch.isfinite(moved.grad).all() and (moved.grad != 0).all()
    else:
        assert torch.autograd.gradcheck(lambda b: loss(b, boxes), moved)


@pytest.mark.parametrize("loss", OVERLAP_LOSSES)
def test_boxes_without_area_and_no_boxes(loss):
    point = torch.tensor([[1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    value = loss(point, point.detach() + 1)
    value.sum().backward()
    assert torch.isfinite(value).all()
    empty = torch.zeros(0, 4, requires_grad=True)
    total = loss(empty, torch.zeros(0, 4), reduction="mean")
    total.backward()
    assert total.item() == 0


@pytest.mark.parametrize("loss", OVERLAP_LOSSES)
def test_shapes_must_agree(loss):
    with pytest.raises(ValueError, match=r"\(M, 4\) expected, got \(2, 4\) and \(3, 4\)"):
        loss(torch.zeros(2, 4), torch.zeros(3, 4))


def test_smooth_l1_by_hand():
    inputs, targets = torch.tensor([0.05, 0.1, 2.0]), torch.zeros(3)
    # Below beta: 0.5 * 0.05^2 / 0.1; at and above: d - 0.05.
    assert smooth_l1_loss(inputs, targets, beta=0.1).tolist() == pytest.approx([0.0125, 0.05, 1.95])
    assert smooth_l1_loss(inputs, targets, beta=0.0).tolist() == pytest.approx([0.05, 0.1, 2.0])
    assert l1_loss(inputs, targets, reduction="sum").item() == pytest.approx(2.15)


def test_smooth_l1_matches_torch(generator):
    inputs, targets = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    expected = torch.nn.functional.smooth_l1_loss(inputs, targets, beta=0.7, reduction="none")
    torch.testing.assert_close(smooth_l1_loss(inputs, targets, beta=0.7), expected)


def test_smooth_l1_refuses_bad_arguments():
    with pytest.raises(ValueError, match="beta is -1"):
        smooth_l1_loss(torch.zeros(1), torch.zeros(1), beta=-1)
    with pytest.raises(ValueError, match="must agree"):
        smooth_l1_loss(torch.zeros(1), torch.zeros(2))


@pytest.mark.parametrize("name", ["diou", "ciou", "giou"])
def test_matches_detectron2(name, generator):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.layers import ciou_loss as d2_ciou
    from detectron2.layers import diou_loss as d2_diou
    from fvcore.nn import giou_loss as fvcore_giou

    ours, theirs = {"diou": (diou_loss, d2_diou), "ciou": (ciou_loss, d2_ciou), "giou": (giou_loss, fvcore_giou)}[name]
    corner = torch.rand(2, 50, 2, generator=generator) * 20
    boxes, others = torch.cat([corner, corner + 1 + torch.rand(2, 50, 2, generator=generator) * 20], dim=2)
    gradients = []
    for loss in (ours, theirs):
        leaf = boxes.clone().requires_grad_()
        value = loss(leaf, others)
        value.sum().backward()
        gradients.append((value.detach(), leaf.grad))
    for ours_value, their_value in zip(*gradients):
        torch.testing.assert_close(ours_value, their_value)

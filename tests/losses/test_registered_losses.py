"""The dense classification losses as the config names them: against the plain formulas, and key by key."""

import math
from types import SimpleNamespace

import pytest
import torch

from retinanet_ext.losses import (
    CLS_LOSS_REGISTRY,
    DensePredictions,
    DenseTargets,
    quality_focal_loss,
    sigmoid_focal_loss,
    sigmoid_focal_star_loss,
    sigmoid_hinge_loss,
    varifocal_loss,
)
from retinanet_ext.ops import Box2BoxTransform, pairwise_iou

# Every key that each loss reads, with its default; a slash leads into a node.
ALPHA = {"FOCAL_LOSS_ALPHA": 0.25, "CLS_LOSS/CLASS_ALPHAS": []}
GAMMA = {"FOCAL_LOSS_GAMMA": 2.0}
KEYS = {
    "focal": {**ALPHA, **GAMMA},
    "focal_star": {**ALPHA, **GAMMA, "CLS_LOSS/FOCAL_STAR/BETA": 1.0},
    "cross_entropy": {},
    "balanced_cross_entropy": ALPHA,
    "hinge": {"CLS_LOSS/HINGE/MARGIN": 0.5},
    "quality_focal": GAMMA,
    "varifocal": {**GAMMA, "CLS_LOSS/VARIFOCAL/ALPHA": 0.75},
}
PLAIN = {
    "focal": lambda x, y: sigmoid_focal_loss(x, y, 0.25, 2.0),
    "focal_star": lambda x, y: sigmoid_focal_star_loss(x, y, 0.25, 2.0, 1.0),
    "cross_entropy": lambda x, y: sigmoid_focal_loss(x, y, -1, 0.0),
    "balanced_cross_entropy": lambda x, y: sigmoid_focal_loss(x, y, 0.25, 0.0),
    "hinge": lambda x, y: sigmoid_hinge_loss(x, y, 0.5),
    "quality_focal": lambda x, y: quality_focal_loss(x, y, 2.0),
    "varifocal": lambda x, y: varifocal_loss(x, y, 0.75, 2.0),
}
QUALITY_LOSSES = ("quality_focal", "varifocal")


def build(name: str, num_classes: int | None = None, **changes):
    """Build the loss from a config with only the keys that it may read; ``changes`` by the last part of a key."""
    retinanet = SimpleNamespace(CLS_LOSS=SimpleNamespace())
    if num_classes is not None:
        retinanet.NUM_CLASSES = num_classes
    for key, value in KEYS[name].items():
        *nodes, last = key.split("/")
        node = retinanet
        for part in nodes:
            if not hasattr(node, part):
                setattr(node, part, SimpleNamespace())
            node = getattr(node, part)
        setattr(node, last, changes.pop(last, value))
    assert not changes
    return CLS_LOSS_REGISTRY.get(name)(SimpleNamespace(MODEL=SimpleNamespace(RETINANET=retinanet)))


def make_batch(logits, labels, generator):
    """Predictions with these logits, and random boxes of any IoU with their ground truth."""
    device, coding = logits.device, Box2BoxTransform()
    anchors = torch.rand(labels.shape[1], 4, generator=generator).cumsum(dim=1).to(device) * 50
    deltas = torch.randn(*labels.shape, 4, generator=generator).to(device) / 2
    image, anchor = ((labels >= 0) & (labels < logits.shape[2])).nonzero(as_tuple=True)
    gt_boxes = anchors[anchor] + torch.rand(len(anchor), 4, generator=generator).to(device)
    predictions = DensePredictions(logits, deltas, anchors, coding.get_deltas, coding.apply_deltas)
    return predictions, DenseTargets(labels, image, anchor, gt_boxes)


def by_plain_formula(name, predictions, targets):
    """Losses of the images and their gradient in float64, from a target for every entry."""
    logits = predictions.logits.detach().double().requires_grad_()
    entries, image, anchor = torch.zeros_like(logits), targets.image_index, targets.anchor_index
    deltas = predictions.deltas[image, anchor]
    iou = pairwise_iou(predictions.decode(deltas, predictions.anchors[anchor]), targets.gt_boxes).diagonal()
    assert len(iou) == 0 or 0.2 < iou.mean() < 0.8
    entries[image, anchor, targets.labels[image, anchor]] = iou.double() if name in QUALITY_LOSSES else 1.0
    loss = PLAIN[name](logits, entries.detach()).masked_fill((targets.labels < 0)[..., None], 0.0)
    return loss.sum(dim=(1, 2)).detach(), torch.autograd.grad(loss.sum(), logits)[0]


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scale", [2.0, 1e4])
def test_equals_the_plain_formula_on_one_hot_targets(name, dtype, scale, generator, device):
    logits = (torch.randn(3, 40, 4, generator=generator) * scale).to(device, dtype).requires_grad_()
    labels = torch.randint(-1, 5, (3, 40), generator=generator).to(device)
    predictions, targets = make_batch(logits, labels, generator)
    loss = build(name)(predictions, targets)
    assert loss.shape == (3,) and loss.dtype == torch.promote_types(dtype, torch.float32)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    expected, expected_gradient = by_plain_formula(name, predictions, targets)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    rounding = max(torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1.01 * rounding, atol=1e-6)


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("shape, label", [((0, 10, 3), 0), ((2, 0, 3), 0), ((2, 10, 3), -1), ((2, 10, 3), 3)])
def test_no_anchors_all_ignored_or_all_background(name, shape, label, generator, device):
    logits = torch.full(shape, 2.0, device=device, requires_grad=True)
    predictions, targets = make_batch(logits, torch.full(shape[:2], label, device=device), generator)
    loss = build(name)(predictions, targets)
    loss.sum().backward()
    expected, expected_gradient = by_plain_formula(name, predictions, targets)
    torch.testing.assert_close((loss.double(), logits.grad.double()), (expected, expected_gradient), rtol=1e-6, atol=0)
    assert label == 3 or (loss == 0).all()


# One anchor of class 0 with the logits 1 and -1, and one of background with -1 and 1: margins 1, 1, 1 and -1. The
# first predicts a box whose left half is its ground truth box: an IoU of 0.5.
CE = {1: 0.313262, -1: 1.313262}
FL = {1: 0.022658, -1: 0.701868}  # gamma 2
FL_STAR = {1: 0.024294, -1: 0.656631}  # gamma 2, beta 1
P = 0.731059  # sigmoid(1)
SOFT = (CE[1] + CE[-1]) / 2  # cross entropy of x = 1 to a target of 0.5


def by_alpha(loss, alpha, alpha_of_class_1=None):
    """Loss of the entries of class 0 (margins 1 and 1) and of class 1 (1 and -1)."""
    alpha_of_class_1 = alpha if alpha_of_class_1 is None else alpha_of_class_1
    return alpha * loss[1] + (1 - alpha) * loss[1] + (1 - alpha_of_class_1) * (loss[1] + loss[-1])


@pytest.mark.parametrize(
    "name, changes, expected",
    [
        ("focal", {}, by_alpha(FL, 0.25)),
        ("focal", {"FOCAL_LOSS_ALPHA": 0.75}, by_alpha(FL, 0.75)),
        ("focal", {"FOCAL_LOSS_ALPHA": -1}, 3 * FL[1] + FL[-1]),
        ("focal", {"FOCAL_LOSS_GAMMA": 0.0}, by_alpha(CE, 0.25)),
        ("focal", {"FOCAL_LOSS_GAMMA": 1.0}, by_alpha({1: (1 - P) * CE[1], -1: P * CE[-1]}, 0.25)),
        ("focal", {"CLASS_ALPHAS": [0.5, 0.9]}, by_alpha(FL, 0.5, 0.9)),
        ("focal_star", {}, by_alpha(FL_STAR, 0.25)),
        ("focal_star", {"FOCAL_LOSS_ALPHA": 0.6}, by_alpha(FL_STAR, 0.6)),
        ("focal_star", {"CLASS_ALPHAS": [0.1, 0.3]}, by_alpha(FL_STAR, 0.1, 0.3)),
        ("focal_star", {"FOCAL_LOSS_GAMMA": 4.0, "BETA": 0.0}, by_alpha({1: 0.004537, -1: 1.004537}, 0.25)),
        ("focal_star", {"BETA": 0.0}, by_alpha({1: 0.126928 / 2, -1: 2.126928 / 2}, 0.25)),  # log(1 + exp(-2))
        ("cross_entropy", {}, 3 * CE[1] + CE[-1]),
        ("balanced_cross_entropy", {}, by_alpha(CE, 0.25)),
        ("balanced_cross_entropy", {"FOCAL_LOSS_ALPHA": 0.75}, by_alpha(CE, 0.75)),
        ("balanced_cross_entropy", {"CLASS_ALPHAS": [0.75, 0.5]}, by_alpha(CE, 0.75, 0.5)),
        ("hinge", {}, 0.5 - (1 - P)),
        ("hinge", {"MARGIN": 0.9}, 3 * (0.9 - P) + (0.9 - (1 - P))),
        ("quality_focal", {}, (P - 0.5) ** 2 * SOFT + 2 * FL[1] + FL[-1]),
        ("quality_focal", {"FOCAL_LOSS_GAMMA": 1.0}, (P - 0.5) * SOFT + 2 * (1 - P) * CE[1] + P * CE[-1]),
        ("varifocal", {}, 0.5 * SOFT + 0.75 * (2 * FL[1] + FL[-1])),
        ("varifocal", {"ALPHA": 0.5}, 0.5 * SOFT + 0.5 * (2 * FL[1] + FL[-1])),
        ("varifocal", {"FOCAL_LOSS_GAMMA": 0.0}, 0.5 * SOFT + 0.75 * (2 * CE[1] + CE[-1])),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value) if isinstance(value, dict) else "",
)
def test_every_key_by_hand(name, changes, expected, device):
    logits = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]], device=device)
    anchors, first = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]], device=device), torch.tensor([0], device=device)
    coding = Box2BoxTransform()
    predictions = DensePredictions(
        logits, torch.zeros(1, 2, 4, device=device), anchors, coding.get_deltas, coding.apply_deltas
    )
    gt_boxes = torch.tensor([[0.0, 0, 5, 10]], device=device)
    targets = DenseTargets(torch.tensor([[0, 2]], device=device), first, first, gt_boxes)
    num_classes = 2 if "CLASS_ALPHAS" in changes else None  # read only with CLASS_ALPHAS
    assert build(name, num_classes, **changes)(predictions, targets).item() == pytest.approx(expected, abs=4e-6)


@pytest.mark.parametrize("name", QUALITY_LOSSES)
def test_the_quality_is_a_constant(name, generator, device):
    logits = torch.randn(2, 10, 3, generator=generator).to(device).requires_grad_()
    predictions, targets = make_batch(logits, torch.zeros(2, 10, dtype=torch.int64, device=device), generator)
    predictions.deltas.requires_grad_()
    build(name)(predictions, targets).sum().backward()
    assert predictions.deltas.grad is None and (logits.grad != 0).all()


@pytest.mark.parametrize("name", QUALITY_LOSSES)
def test_a_foreground_anchor_whose_box_misses_is_like_background(name, generator, device):
    logits = torch.randn(1, 4, 1, generator=generator).to(device)
    predictions, targets = make_batch(logits, torch.zeros(1, 4, dtype=torch.int64, device=device), generator)
    targets.gt_boxes.add_(1e4)
    background = make_batch(logits, torch.ones(1, 4, dtype=torch.int64, device=device), generator)
    torch.testing.assert_close(build(name)(predictions, targets), build(name)(*background))


@pytest.mark.parametrize("name", KEYS)
def test_gradcheck(name, generator, device):
    logits = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64).to(device).requires_grad_()
    predictions, targets = make_batch(logits, torch.arange(12, device=device).view(2, 6) % 5 - 1, generator)

    def function(x):
        batch = DensePredictions(x, predictions.deltas, predictions.anchors, predictions.encode, predictions.decode)
        return build(name)(batch, targets)

    assert torch.autograd.gradcheck(function, logits)


@pytest.mark.parametrize("name", ["focal", "focal_star", "balanced_cross_entropy"])
def test_alphas_of_the_classes(name):
    loss = build(name, 3, CLASS_ALPHAS=[0.1, 0.5, 0.9])
    assert loss.alpha.tolist() == pytest.approx([0.1, 0.5, 0.9]) and not loss.state_dict()
    with pytest.raises(ValueError, match=r"CLASS_ALPHAS has 2 values, and MODEL.RETINANET.NUM_CLASSES is 3"):
        build(name, 3, CLASS_ALPHAS=[0.1, 0.5])
    with pytest.raises(ValueError, match=r"alpha holds \[1.5\]"):
        build(name, 3, CLASS_ALPHAS=[0.1, 0.5, 1.5])


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("focal", {"FOCAL_LOSS_GAMMA": -1.0}, "gamma is -1.0"),
        ("focal_star", {"FOCAL_LOSS_GAMMA": 0.0}, "gamma is 0.0; .* gamma > 0"),
        ("focal_star", {"BETA": math.inf}, "beta is inf"),
        ("balanced_cross_entropy", {"FOCAL_LOSS_ALPHA": 1.5}, "alpha is 1.5"),
        ("hinge", {"MARGIN": 0.0}, "margin is 0.0"),
        ("quality_focal", {"FOCAL_LOSS_GAMMA": -1.0}, "gamma is -1.0"),
        ("varifocal", {"ALPHA": -0.1}, "alpha is -0.1"),
        ("varifocal", {"FOCAL_LOSS_GAMMA": math.nan}, "gamma is nan"),
    ],
)
def test_values_out_of_range_are_refused_when_the_loss_is_built(name, changes, message):
    with pytest.raises(ValueError, match=message):
        build(name, **changes)

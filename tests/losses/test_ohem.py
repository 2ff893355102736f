import pytest
import torch
import torch.nn.functional as F

from retinanet_ext.losses import CLS_LOSS_REGISTRY, DensePredictions, DenseTargets, OHEMLoss
from retinanet_ext.ops import pairwise_iou
from tests.builders import small_config


def dense(logits, labels, anchors):
    predictions = DensePredictions(logits, logits.new_zeros(*labels.shape, 4), anchors, encode=None, decode=None)
    image, anchor = torch.nonzero((labels >= 0) & (labels < logits.shape[2]), as_tuple=True)
    return predictions, DenseTargets(labels, image, anchor, gt_boxes=anchors[anchor])


def anchor_losses(logits, labels):
    """Cross entropy of every anchor, summed over one-hot classes: (R,)."""
    target = F.one_hot(labels.clamp(min=0), logits.shape[1] + 1)[:, :-1].to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=1)


def kept_by_definition(logits, labels, anchors, batch, nms_thresh, ratio):
    """Greedy NMS by a loop over all anchors; then the hardest anchors, or the hardest of each kind."""
    loss = anchor_losses(logits, labels)
    iou = pairwise_iou(anchors, anchors)
    survivors = []
    for anchor in loss.argsort(descending=True).tolist():
        if labels[anchor] >= 0 and all(iou[anchor, other] <= nms_thresh for other in survivors):
            survivors.append(anchor)
    if not ratio:
        return survivors[:batch]
    positives = [anchor for anchor in survivors if labels[anchor] < logits.shape[1]][: batch // (1 + ratio)]
    negatives = [anchor for anchor in survivors if labels[anchor] == logits.shape[1]]
    return positives + negatives[: ratio * max(1, len(positives))]


def random_image(generator, num_anchors=900, num_classes=3, foreground=40):
    corner = torch.rand(num_anchors, 2, generator=generator) * 80
    anchors = torch.cat([corner, corner + 4 + torch.rand(num_anchors, 2, generator=generator) * 30], dim=1)
    labels = torch.full((num_anchors,), num_classes)
    labels[torch.randperm(num_anchors, generator=generator)[: 3 * foreground]] = -1
    labels[torch.randperm(num_anchors, generator=generator)[:foreground]] = 1
    return torch.randn(num_anchors, num_classes, generator=generator) * 3 - 2, labels, anchors


@pytest.mark.parametrize("ratio", [0, 3])
@pytest.mark.parametrize("nms_thresh", [0.3, 0.7])
@pytest.mark.parametrize(("batch", "foreground"), [(4, 40), (16, 40), (16, 1), (16, 0), (512, 40)])
def test_the_anchors_kept_are_those_of_the_definition(generator, ratio, nms_thresh, batch, foreground):
    logits, labels, anchors = random_image(generator, foreground=foreground)
    if batch == 16:  # make foreground anchors the easiest: all background comes before them
        logits[labels == 1] = torch.tensor([-9.0, 9.0, -9.0]) + torch.rand((labels == 1).sum(), 3, generator=generator)
    expected = kept_by_definition(logits, labels, anchors, batch, nms_thresh, ratio)
    loss = OHEMLoss(batch=batch, nms_thresh=nms_thresh, negatives_per_positive=ratio)
    assert sorted(loss.hard_anchors(logits, labels, anchors).tolist()) == sorted(expected)

    logits.requires_grad_()
    per_image = loss(*dense(logits[None], labels[None], anchors))
    by_hand = anchor_losses(logits, labels)[expected].sum()
    torch.testing.assert_close(per_image, by_hand[None], rtol=1e-5, atol=1e-5)
    (gradient,), (gradient_by_hand,) = (
        torch.autograd.grad(per_image.sum(), logits),
        torch.autograd.grad(by_hand, logits),
    )
    torch.testing.assert_close(gradient, gradient_by_hand, rtol=1e-4, atol=1e-6)


@pytest.fixture
def three_anchors():
    """Two anchors with IoU 0.6 and one apart; the losses fall from the first to the last."""
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 6.0], [50.0, 0.0, 60.0, 10.0]])
    return dense(torch.tensor([[[3.0], [2.0], [1.0]]]), torch.full((1, 3), 1), anchors)


# Background with logit x has the cross entropy log(1 + e^x): 3.048587, 2.126928 and 1.313262.
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("BATCH", 1, 3.048587),
        ("BATCH", 2, 3.048587 + 1.313262),  # the second lies too close to the first
        ("NMS_THRESH", 0.7, 3.048587 + 2.126928 + 1.313262),
        ("NEGATIVES_PER_POSITIVE", 1, 3.048587),
    ],
)
def test_each_key_changes_the_loss_as_by_hand(three_anchors, key, value, expected):
    cfg = small_config("MODEL.RETINANET.CLS_LOSS.NAME", "ohem", f"MODEL.RETINANET.CLS_LOSS.OHEM.{key}", str(value))
    loss = CLS_LOSS_REGISTRY.get("ohem")(cfg)
    assert loss(*three_anchors).item() == pytest.approx(expected, abs=1e-5)


def test_nothing_to_learn_from_is_a_loss_of_zero(generator):
    logits, labels, anchors = random_image(generator)
    logits.requires_grad_()
    loss = OHEMLoss()(*dense(logits[None], torch.full_like(labels, -1)[None], anchors))
    loss.sum().backward()
    assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "OHEM.BATCH is 0"),
        ({"batch": 3, "negatives_per_positive": 3}, "OHEM.BATCH is 3; it must hold at least 4"),
        ({"nms_thresh": 1.5}, "NMS_THRESH is 1.5"),
        ({"negatives_per_positive": -1}, "NEGATIVES_PER_POSITIVE is -1"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        OHEMLoss(**arguments)

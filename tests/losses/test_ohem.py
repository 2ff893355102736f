import pytest
import torch
import torch.nn.functional as F
import torchvision

from retinanet_ext.losses import CLS_LOSS_REGISTRY, DensePredictions, DenseTargets, OHEMLoss
from retinanet_ext.ops import nms, pairwise_iou
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


def grid_of_anchors(height, width):
    """9 anchors at every position of strides 8 to 128."""
    levels = []
    for stride in (8, 16, 32, 64, 128):
        y, x = torch.meshgrid(torch.arange(0, height, stride), torch.arange(0, width, stride), indexing="ij")
        scales, ratios = 4 * stride * 2 ** (torch.arange(3) / 3), torch.tensor([0.7, 1.0, 1.4])
        sides = torch.stack([torch.outer(scales, ratios), torch.outer(scales, 1 / ratios)], dim=2).view(9, 2)
        centers = torch.stack([x, y], dim=2).view(-1, 1, 2)
        levels.append(torch.cat([centers - sides / 2, centers + sides / 2], dim=2).view(-1, 4))
    return torch.cat(levels)


@pytest.mark.parametrize("background", ["random", "equal", "rising from left to right"])
def test_easy_foreground_gets_the_definition_with_bounded_work(generator, background, monkeypatch):
    """Foreground that is easier than all background is reached by NMS only after all anchors."""
    anchors = grid_of_anchors(200, 320)
    labels = torch.full((len(anchors),), 2)
    foreground = torch.randperm(len(anchors), generator=generator)[:300]
    labels[foreground] = 0
    logits = torch.full((len(anchors), 2), -3.0)
    if background == "random":
        logits += torch.randn(logits.shape, generator=generator)
    elif background == "rising from left to right":
        logits += anchors[:, :1] / 200
    logits[foreground] = torch.tensor([12.0, -12.0])

    # The definition: NMS by another library over all anchors at once, in the order of their losses.
    order = anchor_losses(logits, labels).argsort(descending=True, stable=True)
    ranks = torch.arange(len(order), 0, -1).double()
    survivors = order[torchvision.ops.nms(anchors[order].double(), ranks, 0.5)]
    positives = survivors[labels[survivors] == 0][:32]
    expected = torch.cat([positives, survivors[labels[survivors] == 2][: 3 * max(1, len(positives))]])

    monkeypatch.setattr(nms, "LARGEST_BLOCK", 4096)
    nms_of_a_block, iou_of_columns, calls, ious = nms._nms, nms.iou_of_columns, [], []

    def count_anchors(boxes, *rest):
        calls.append(len(boxes))
        return nms_of_a_block(boxes, *rest)

    def count_ious(*columns):
        ious.append(iou_of_columns(*columns).numel())
        return iou_of_columns(*columns)

    monkeypatch.setattr(nms, "_nms", count_anchors)
    monkeypatch.setattr(nms, "iou_of_columns", count_ious)
    hard = OHEMLoss(negatives_per_positive=3).hard_anchors(logits, labels, anchors)
    assert sorted(hard.tolist()) == sorted(expected.tolist())
    # NMS gets no anchor twice, and never all of them; few of all IoUs are computed between the steps.
    assert sum(calls) <= len(anchors) and max(calls) <= 4096 < len(anchors) / 2
    assert sum(ious) < 0.05 * len(anchors) ** 2


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

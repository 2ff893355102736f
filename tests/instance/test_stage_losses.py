"""Losses of the two stages: by hand, against the formulas, and which keys they read."""

import math

import pytest
import torch
import torch.nn.functional as F

from retinanet_ext import add_retinanet_ext_config
from retinanet_ext.d2 import get_cfg
from retinanet_ext.instance.stage_losses import RoIBoxes, build_box_stage_losses, build_rpn_losses
from retinanet_ext.losses import CLS_LOSS_REGISTRY, DensePredictions, DenseTargets, sigmoid_focal_loss
from retinanet_ext.ops import Box2BoxTransform

TRANSFORM = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))


def config(*overrides):
    cfg = get_cfg()
    add_retinanet_ext_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.merge_from_list(list(overrides))
    return cfg


def rois(generator, counts=(5, 4), num_classes=3):
    """Logits (M, K + 1), classes (M,) and boxes of RoIs; about half are background."""
    total = sum(counts)
    corner = torch.rand(total, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 10 + torch.rand(total, 2, generator=generator) * 30], dim=1)
    classes = torch.randint(num_classes + 1, (total,), generator=generator)
    classes[0], classes[1] = 0, num_classes
    foreground = (classes < num_classes).nonzero().squeeze(1)
    deltas = torch.randn(len(foreground), 4, generator=generator).requires_grad_()
    gt_boxes = boxes[foreground] + torch.rand(len(foreground), 4, generator=generator)
    logits = torch.randn(total, num_classes + 1, generator=generator).requires_grad_()
    return logits, classes, RoIBoxes(counts, boxes, foreground, deltas, gt_boxes, TRANSFORM)


def test_softmax_by_hand():
    cls_loss, _ = build_box_stage_losses(config())
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, math.log(5.0)], [9.0, 0.0, 0.0, 0.0]])
    # Probabilities 1/4 and 5/8; the third one is ignored.
    loss = cls_loss(logits, torch.tensor([2, 3, -1]), None)
    assert loss.item() == pytest.approx(math.log(4) + math.log(8 / 5), rel=1e-6)
    assert cls_loss.scores(logits)[1].tolist() == pytest.approx([1 / 8] * 3)


def test_sigmoid_focal_loss_is_the_formula_on_the_first_k_logits(generator):
    cfg = config("MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", "focal", "MODEL.ROI_BOX_HEAD.CLS_LOSS.ALPHA", 0.4)
    logits, classes, boxes = rois(generator)
    cls_loss, _ = build_box_stage_losses(cfg)
    targets = F.one_hot(classes, 4)[:, :3].float()
    expected = sigmoid_focal_loss(logits[:, :3], targets, alpha=0.4, gamma=2.0, reduction="sum")
    torch.testing.assert_close(cls_loss(logits, classes, boxes), expected)
    torch.testing.assert_close(cls_loss.scores(logits), logits[:, :3].sigmoid())


def test_class_alphas_of_the_box_head(generator):
    name = "MODEL.ROI_BOX_HEAD.CLS_LOSS"
    cfg = config(f"{name}.NAME", "balanced_cross_entropy", f"{name}.CLASS_ALPHAS", [0.1, 0.5, 0.9])
    logits, classes, boxes = rois(generator)
    cls_loss, _ = build_box_stage_losses(cfg)
    targets, alphas = F.one_hot(classes, 4)[:, :3].float(), torch.tensor([0.1, 0.5, 0.9])
    weights = alphas * targets + (1 - alphas) * (1 - targets)
    expected = F.binary_cross_entropy_with_logits(logits[:, :3], targets, weights, reduction="sum")
    torch.testing.assert_close(cls_loss(logits, classes, boxes), expected)
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.CLASS_ALPHAS = [0.1]
    with pytest.raises(ValueError, match="MODEL.ROI_BOX_HEAD.CLS_LOSS"):
        build_box_stage_losses(cfg)


def test_use_sigmoid_ce_is_binary_cross_entropy(generator):
    logits, classes, boxes = rois(generator)
    cls_loss, _ = build_box_stage_losses(config("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True))
    targets = F.one_hot(classes, 4)[:, :3].float()
    expected = F.binary_cross_entropy_with_logits(logits[:, :3], targets, reduction="sum")
    torch.testing.assert_close(cls_loss(logits, classes, boxes), expected)
    with pytest.raises(ValueError, match="USE_SIGMOID_CE is True and CLS_LOSS.NAME is 'focal'"):
        build_box_stage_losses(
            config("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", "focal")
        )


@pytest.mark.parametrize("name", sorted(name for name, _ in CLS_LOSS_REGISTRY))
def test_every_registered_loss_serves_both_stages(name, generator):
    cfg = config("MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", name, "MODEL.RPN.CLS_LOSS.NAME", name)
    logits, classes, boxes = rois(generator)
    cls_loss, _ = build_box_stage_losses(cfg)
    loss = cls_loss(logits, classes, boxes)
    loss.backward()
    assert loss > 0 and logits.grad[:, :3].abs().sum() > 0 and logits.grad[:, 3].abs().sum() == 0
    # Images are independent of each other: their losses add up.
    logits, per_image = logits.detach(), []
    is_first = boxes.foreground < 5
    for first, last, own in ((0, 5, is_first), (5, 9, ~is_first)):
        part = RoIBoxes(
            [last - first], boxes.rois[first:last], boxes.foreground[own] - first,
            boxes.deltas[own].detach(), boxes.gt_boxes[own], TRANSFORM,
        )  # fmt: skip
        per_image.append(cls_loss(logits[first:last], classes[first:last], part))
    torch.testing.assert_close(sum(per_image), loss.detach())
    rpn_loss, _ = build_rpn_losses(cfg)
    assert rpn_loss(*dense(boxes)).shape == (2,)


def dense(boxes):
    """Predictions and targets of two images with the same nine anchors; the first one has a foreground anchor."""
    logits = torch.zeros(2, 9, 1)
    labels = torch.ones(2, 9, dtype=torch.int64)
    labels[0, 3] = 0
    predictions = DensePredictions(
        logits, torch.zeros(2, 9, 4), boxes.rois, TRANSFORM.get_deltas, TRANSFORM.apply_deltas
    )
    index = torch.tensor([3])
    return predictions, DenseTargets(labels, torch.zeros_like(index), index, boxes.rois[index] + 1)


def test_losses_of_proposals_by_hand(generator):
    boxes = rois(generator)[2]
    cls_loss, box_loss = build_rpn_losses(config("MODEL.RPN.SMOOTH_L1_BETA", 0.0))
    predictions, targets = dense(boxes)
    # Every logit is 0, so that every anchor costs log 2.
    torch.testing.assert_close(cls_loss(predictions, targets), torch.full((2,), 9 * math.log(2)))
    width, height = (boxes.rois[3, 2:] - boxes.rois[3, :2]).tolist()
    expected = 10 * (1 / width + 1 / height)  # moved by a pixel in both directions, of the same size
    assert box_loss(predictions, targets).tolist() == pytest.approx([expected, 0.0], rel=1e-5)


@pytest.mark.parametrize("key", ["BBOX_REG_LOSS_TYPE", "BOX_LOSS.NAME"])
def test_box_losses_by_config(key, generator):
    boxes = rois(generator)[2]
    matching = (boxes.rois[boxes.foreground], boxes.gt_boxes)
    for name, least in (("smooth_l1", 0.0), ("giou", 0.0), ("ciou", 0.0)):
        _, box_loss = build_box_stage_losses(config(f"MODEL.ROI_BOX_HEAD.{key}", name))
        exact = TRANSFORM.get_deltas(*matching)
        assert box_loss(exact, *matching, TRANSFORM).item() == pytest.approx(least, abs=1e-3)
        assert box_loss(boxes.deltas, *matching, TRANSFORM) > 0.1
    with pytest.raises(KeyError, match=f"MODEL.ROI_BOX_HEAD.{key} is 'gioo', which is not registered; .*: giou"):
        build_box_stage_losses(config(f"MODEL.ROI_BOX_HEAD.{key}", "gioo"))


def test_contradicting_keys_are_refused():
    with pytest.raises(ValueError, match="MODEL.RPN.BOX_LOSS.NAME is 'giou' and BBOX_REG_LOSS_TYPE is 'ciou'"):
        build_rpn_losses(config("MODEL.RPN.BOX_LOSS.NAME", "giou", "MODEL.RPN.BBOX_REG_LOSS_TYPE", "ciou"))
    with pytest.raises(ValueError, match="PRIOR_PROB is 0.01, but CLS_LOSS.NAME is 'softmax'"):
        build_box_stage_losses(config("MODEL.ROI_BOX_HEAD.CLS_LOSS.PRIOR_PROB", 0.01))
    with pytest.raises(ValueError, match=r"MODEL.RPN.CLS_LOSS.PRIOR_PROB is 1.0; .* \[0, 1\)"):
        build_rpn_losses(config("MODEL.RPN.CLS_LOSS.PRIOR_PROB", 1.0))


@pytest.mark.parametrize("name", ["softmax", "focal", "quality_focal"])
@pytest.mark.parametrize("counts", [(), (0, 0)])
def test_no_rois_give_zero_with_a_graph(name, counts):
    cls_loss, box_loss = build_box_stage_losses(config("MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", name))
    logits, deltas = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    nothing = torch.zeros(0, 4)
    boxes = RoIBoxes(counts, nothing, torch.zeros(0, dtype=torch.int64), deltas, nothing, TRANSFORM)
    losses = [cls_loss(logits, torch.zeros(0, dtype=torch.int64), boxes), box_loss(deltas, nothing, nothing, TRANSFORM)]
    assert [loss.item() for loss in losses] == [0.0, 0.0]
    sum(losses).backward()
    assert logits.grad is not None and deltas.grad is not None


def test_half_precision_is_raised(generator):
    logits, classes, boxes = rois(generator)
    for name in ("softmax", "focal"):
        cls_loss, box_loss = build_box_stage_losses(config("MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", name))
        assert cls_loss(logits.bfloat16(), classes, boxes).dtype == torch.float32
        assert cls_loss.scores(logits.bfloat16()).dtype == torch.float32
    assert box_loss(boxes.deltas.bfloat16(), boxes.gt_boxes, boxes.gt_boxes, TRANSFORM).dtype == torch.float32


def test_only_the_keys_of_the_chosen_loss_are_read():
    from retinanet_ext.config.key_reads import _RecordingNode

    read = set()
    build_rpn_losses(_RecordingNode(config(), read))
    unread = {"MODEL.RPN.CLS_LOSS.ALPHA", "MODEL.RPN.CLS_LOSS.GAMMA", "MODEL.RETINANET.FOCAL_LOSS_GAMMA"}
    assert read.isdisjoint(unread)  # cross entropy has neither
    build_rpn_losses(_RecordingNode(config("MODEL.RPN.CLS_LOSS.NAME", "focal"), read))
    assert {"MODEL.RPN.CLS_LOSS.ALPHA", "MODEL.RPN.CLS_LOSS.GAMMA", "MODEL.RPN.SMOOTH_L1_BETA"} <= read
    assert "MODEL.RETINANET.FOCAL_LOSS_GAMMA" not in read


def test_the_list_of_class_losses_of_the_box_head_has_its_default():
    cfg = get_cfg()
    add_retinanet_ext_config(cfg)
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME = "sofmax"
    with pytest.raises(KeyError, match="ROI_BOX_HEAD.CLS_LOSS.NAME is 'sofmax', .*softmax"):
        build_box_stage_losses(cfg)

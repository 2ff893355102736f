"""The region proposal network where Detectron2's does not help: its loss by hand, losses by config, empty batches."""

import math

import pytest
import torch
from torch import nn

from retinanet_ext import add_retinanet_ext_config
from retinanet_ext.d2 import Boxes, ImageList, Instances, ShapeSpec, get_cfg
from retinanet_ext.instance.rpn import RPN
from retinanet_ext.losses import sigmoid_focal_loss
from retinanet_ext.losses.focal import DenseFocalLoss

STRIDE, SIZE = 16, (96, 128)


def build(*overrides):
    cfg = get_cfg()
    add_retinanet_ext_config(cfg)
    cfg.merge_from_list(["MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64]], *overrides])
    torch.manual_seed(0)
    return RPN(cfg, {"res4": ShapeSpec(channels=4, stride=STRIDE)})


def batch(generator, *boxes, device="cpu"):
    """Images of 96 x 128 pixels, random feature maps, and ground truth."""
    maps = torch.randn(len(boxes), 4, SIZE[0] // STRIDE, SIZE[1] // STRIDE, generator=generator)
    targets = [Instances(SIZE, gt_boxes=Boxes(torch.tensor(image).reshape(-1, 4))) for image in boxes]
    images = ImageList(torch.zeros(len(boxes), 3, *SIZE), [SIZE] * len(boxes))
    return images, {"res4": maps.requires_grad_()}, targets


BOX = [[20.0, 20.0, 60.0, 70.0]]


def test_losses_by_hand(generator):
    model = build("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 32)
    with torch.no_grad():  # every logit and delta is 0
        model.rpn_head.objectness_logits.weight.zero_()
        model.rpn_head.anchor_deltas.weight.zero_()
    images, features, targets = batch(generator, BOX, [])
    _, losses = model(images, features, targets)
    # 6 x 8 x 6 anchors: both samples are full, and each of their 64 anchors costs log 2.
    assert losses["loss_rpn_cls"].item() == pytest.approx(math.log(2), rel=1e-5)
    anchors = [level.tensor for level in model.anchor_generator([features["res4"]])]
    torch.manual_seed(1)
    sample = model.label_and_sample(anchors, images.image_sizes, targets)
    assert (sample.labels >= 0).sum(dim=1).tolist() == [32, 32]
    assert (sample.labels[1] == 0).sum() == 0  # no foreground without ground truth
    assert torch.equal((sample.labels == 0).nonzero(), torch.stack([sample.image_index, sample.anchor_index], dim=1))
    expected = model.box2box_transform.get_deltas(anchors[0][sample.anchor_index], sample.gt_boxes).abs().sum() / 64
    assert losses["loss_rpn_loc"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_all_anchors_with_a_focal_loss(generator):
    name = "MODEL.RPN.CLS_LOSS"
    model = build("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 0, f"{name}.NAME", "focal", f"{name}.PRIOR_PROB", 0.01)
    assert isinstance(model.cls_loss, DenseFocalLoss)
    images, features, targets = batch(generator, BOX, [], [[0.0, 0.0, 30.0, 30.0], [70.0, 40.0, 120.0, 90.0]])
    with torch.no_grad():
        logits, deltas = model.dense_outputs(features)
        assert logits[0].sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)
        anchors = [level.tensor for level in model.anchor_generator([features["res4"]])]
        labels = model.label_and_sample(anchors, images.image_sizes, targets).labels
        _, losses = model(images, features, targets)
    is_sampled = labels >= 0
    assert is_sampled.sum() > 3 * 200
    loss = sigmoid_focal_loss(logits[0], (labels == 0).float(), alpha=0.25, gamma=2.0)[is_sampled].sum()
    assert losses["loss_rpn_cls"].item() == pytest.approx((loss / (labels == 0).sum()).item(), rel=1e-5)


@pytest.mark.parametrize("overrides", [[], ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 0]])
@pytest.mark.parametrize("name", ["cross_entropy", "focal", "ohem", "quality_focal"])
@pytest.mark.parametrize("boxes", [[], [[], []]])
def test_without_images_or_objects(boxes, name, overrides, generator):
    model = build("MODEL.RPN.CLS_LOSS.NAME", name, *overrides)
    images, features, targets = batch(generator, *boxes)
    proposals, losses = model(images, features, targets)
    assert len(proposals) == len(boxes)
    assert losses["loss_rpn_loc"] == 0 and losses["loss_rpn_cls"].isfinite()
    assert boxes or losses["loss_rpn_cls"] == 0
    sum(losses.values()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    assert features["res4"].grad is not None


def test_only_sampled_anchors_have_gradients(generator):
    model = build("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 8)
    images, features, targets = batch(generator, BOX)
    logits, deltas = (levels[0].detach().requires_grad_() for levels in model.dense_outputs(features))
    anchors = [level.tensor for level in model.anchor_generator([features["res4"]])]
    losses = model.losses([logits], [deltas], anchors, images.image_sizes, targets)
    sum(losses.values()).backward()
    assert (logits.grad != 0).sum() == 8
    assert 1 <= (deltas.grad != 0).any(dim=2).sum() <= 4


def test_diverged_training_has_no_proposals_and_losses_that_the_step_refuses(generator):
    model = build()
    images, features, targets = batch(generator, BOX)
    nn.init.constant_(model.rpn_head.objectness_logits.bias, float("nan"))
    found, losses = model(images, features, targets)
    assert [len(image) for image in found] == [0] and all(loss.isnan() for loss in losses.values())
    found, _ = model.eval()(images, features)
    assert [len(image) for image in found] == [0]


def test_bfloat16(generator):
    model = build()
    images, features, targets = batch(generator, BOX)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        proposals, losses = model(images, features, targets)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert proposals[0].proposal_boxes.tensor.dtype == torch.float32


@pytest.mark.parametrize(
    "overrides, error, message",
    [
        (["MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"], ValueError, "GENERATOR.NAME is 'RRPN'; legal value: 'RPN'"),
        (["MODEL.RPN.IN_FEATURES", []], ValueError, "MODEL.RPN.IN_FEATURES is empty; name .* maps res4"),
        (["MODEL.RPN.IN_FEATURES", ["p2"]], ValueError, r"IN_FEATURES names \['p2'\].* maps res4"),
        (["MODEL.RPN.HEAD_NAME", "Standard"], KeyError, "MODEL.RPN.HEAD_NAME is 'Standard'.*StandardRPNHead"),
        (["MODEL.RPN.CLS_LOSS.NAME", "focale"], KeyError, "MODEL.RPN.CLS_LOSS.NAME is 'focale'.*focal"),
        (["MODEL.RPN.IOU_LABELS", [0, 1]], ValueError, "MODEL.RPN: IOU_LABELS needs 3 entries"),
        (["MODEL.RPN.CONV_DIMS", [0]], ValueError, r"MODEL.RPN.CONV_DIMS is \[0\]"),
    ],
)
def test_bad_configs_are_refused(overrides, error, message):
    with pytest.raises(error, match=message):
        build(*overrides)


def test_training_needs_ground_truth(generator):
    images, features, _ = batch(generator, BOX)
    with pytest.raises(ValueError, match="needs gt_instances"):
        build()(images, features)

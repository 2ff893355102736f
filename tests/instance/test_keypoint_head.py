import math

import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.config.keys import add_retinanet_ext_config
from retinanet_ext.d2 import ROI_KEYPOINT_HEAD_REGISTRY, Keypoints, ShapeSpec, get_cfg
from retinanet_ext.instance.keypoint_head import (
    FCNKeypointHead,
    build_keypoint_head,
    keypoint_loss,
    keypoint_loss_reference,
)
from tests.instance.rois import random_rois

SHAPE = ShapeSpec(channels=8, height=7, width=7)
SMALL = ["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 5, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (16, 12)]


def make_head(name="FCNKeypointHead", *overrides):
    cfg = get_cfg()
    add_retinanet_ext_config(cfg)
    cfg.merge_from_list([*SMALL, "MODEL.ROI_KEYPOINT_HEAD.NAME", name, *overrides])
    torch.manual_seed(0)
    return build_keypoint_head(cfg, SHAPE)


def test_loss_by_hand():
    """Uniform over 2x2 cells but for one, three times as likely as each of the others: shares 1/6 and 3/6."""
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 0, 1, 0] = math.log(3)
    valid = torch.tensor([[True, True, False]])
    # The cell of row 1, column 0 has index 2. The third keypoint is not visible.
    loss = keypoint_loss(logits, torch.tensor([[2, 3, 1]]), valid)
    assert loss.item() == pytest.approx(math.log(2) + math.log(4), rel=1e-6)
    assert keypoint_loss(logits, torch.tensor([[1, 3, 1]]), valid).item() == pytest.approx(math.log(24), rel=1e-6)


def test_the_fast_form_equals_the_reference(generator):
    logits = torch.randn(4, 5, 8, 8, generator=generator).requires_grad_()
    index = torch.randint(0, 64, (4, 5), generator=generator)
    valid = torch.rand(4, 5, generator=generator) < 0.6
    losses = [form(logits, index, valid) for form in (keypoint_loss, keypoint_loss_reference)]
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)
    assert gradients[0].flatten(2).any(dim=2).equal(valid)


def test_training_and_inference(generator):
    head = make_head()
    rois = random_rois([3, 0, 2], generator, num_keypoints=5)
    x = torch.randn(5, 8, 7, 7, generator=generator)
    losses = head(x, rois)
    assert list(losses) == ["loss_keypoint"] and losses["loss_keypoint"].dtype == torch.float32
    # Untrained, each of 28x28 cells is about as likely.
    assert losses["loss_keypoint"].item() == pytest.approx(math.log(28 * 28), rel=0.5)
    losses["loss_keypoint"].backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())
    found = head.eval()(x, rois)
    assert found is rois and [tuple(image.pred_keypoints.shape) for image in found] == [(3, 5, 3), (0, 5, 3), (2, 5, 3)]
    for image in found:
        points, boxes = image.pred_keypoints, image.pred_boxes.tensor[:, None]
        assert ((points[..., :2] >= boxes[..., :2]) & (points[..., :2] <= boxes[..., 2:])).all()
        assert ((points[..., 2] > 0) & (points[..., 2] <= 1)).all()


@pytest.mark.parametrize("counts", [[], [0, 0], [2]])
@pytest.mark.parametrize("by_visible", [True, False])
def test_without_visible_keypoints_every_parameter_is_in_the_graph(counts, by_visible, generator):
    head = make_head("FCNKeypointHead", "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS", by_visible)
    rois = random_rois(counts, generator)  # without gt_keypoints
    for image in rois:
        if len(image):
            image.gt_keypoints = Keypoints(torch.zeros(len(image), 5, 3))
    x = torch.zeros(sum(counts), 8, 7, 7, requires_grad=True)
    loss = head(x, rois)["loss_keypoint"]
    loss.backward()
    assert loss == 0 and x.grad is not None
    for parameter in head.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    assert [len(image.pred_keypoints) for image in head.eval()(x, rois)] == counts


def test_divisors(generator):
    """By visible keypoints, or by 5 keypoints of 512 * 0.25 RoIs in each of 2 images."""
    rois = random_rois([12, 9], generator, num_keypoints=5)
    x = torch.randn(21, 8, 7, 7, generator=generator)
    key = "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS"
    by_visible = make_head("FCNKeypointHead", key, True)(x, rois)["loss_keypoint"]
    constant = make_head("FCNKeypointHead", key, False)(x, rois)["loss_keypoint"]
    doubled = make_head("FCNKeypointHead", key, False, "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT", 2.0)(x, rois)
    torch.testing.assert_close(doubled["loss_keypoint"], 2 * constant)
    visible = 0
    for image in rois:
        points, boxes = image.gt_keypoints.tensor, image.proposal_boxes.tensor[:, None]
        inside = ((points[..., :2] >= boxes[..., :2]) & (points[..., :2] <= boxes[..., 2:])).all(dim=2)
        visible += int((inside & (points[..., 2] > 0)).sum())
    assert visible > 5
    torch.testing.assert_close(by_visible * visible, constant * (2 * 5 * 512 * 0.25))


def test_losses_under_autocast_are_float32(generator):
    head, rois = make_head(), random_rois([4], generator, num_keypoints=5)
    x = torch.randn(4, 8, 7, 7, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(x, rois)["loss_keypoint"]
        assert loss.dtype == head.eval()(x, rois)[0].pred_keypoints.dtype == torch.float32
    torch.testing.assert_close(loss, head.train()(x, rois)["loss_keypoint"], rtol=0.05, atol=0.05)


def test_names():
    assert isinstance(make_head("KRCNNConvDeconvUpsampleHead"), FCNKeypointHead)
    assert ROI_KEYPOINT_HEAD_REGISTRY.get("FCNKeypointHead") is FCNKeypointHead
    with pytest.raises(KeyError, match=r"MODEL\.ROI_KEYPOINT_HEAD\.NAME is 'KeypointHead', .*FCNKeypointHead"):
        make_head("KeypointHead")


def test_another_number_of_keypoints_is_named(generator):
    rois = random_rois([2], generator, num_keypoints=4)
    with pytest.raises(ValueError, match="4 keypoints, but MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is 5"):
        make_head()(torch.zeros(2, 8, 7, 7), rois)


@pytest.mark.parametrize("by_visible", [True, False])
def test_equals_detectron2(by_visible, generator):
    theirs = pytest.importorskip("detectron2.modeling.roi_heads.keypoint_head")
    from detectron2.config import get_cfg as detectron2_cfg
    from detectron2.structures import Keypoints as Detectron2Keypoints
    from detectron2.utils.events import EventStorage

    overrides = ["MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS", by_visible]
    cfg = detectron2_cfg()
    cfg.merge_from_list([*SMALL, *overrides])
    torch.manual_seed(1)
    expected = theirs.KRCNNConvDeconvUpsampleHead(cfg, SHAPE)
    actual = make_head("FCNKeypointHead", *overrides)
    shapes = [{name: value.shape for name, value in head.state_dict().items()} for head in (actual, expected)]
    assert shapes[0] == shapes[1]
    actual.load_state_dict(expected.state_dict())
    rois = random_rois([4, 3], generator, num_keypoints=5)
    for image in rois:
        image.gt_keypoints = Detectron2Keypoints(image.gt_keypoints.tensor)
    x = torch.randn(7, 8, 7, 7, generator=generator).requires_grad_()
    losses, gradients, keypoints = [], [], []
    for head in (expected, actual):
        with EventStorage():
            losses.append(head(x, rois)["loss_keypoint"])
        gradients.append(torch.autograd.grad(losses[-1], [x, *head.parameters()]))
        keypoints.append(torch.cat([image.pred_keypoints for image in head.eval()(x, rois)]))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(*keypoints, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(d2.ENGINE != "detectron2", reason="Detectron2's own model with our head")
def test_detectron2_trains_and_predicts_with_our_head():
    from detectron2 import model_zoo
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    cfg = model_zoo.get_config("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
    cfg.merge_from_list(["MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 16, *SMALL])
    cfg.merge_from_list(["MODEL.ROI_KEYPOINT_HEAD.NAME", "FCNKeypointHead", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    model = build_model(cfg)
    truth = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[10.0, 10, 50, 50]])), gt_classes=torch.tensor([0]))
    truth.gt_keypoints = Keypoints(torch.tensor([[[20.0 + 3 * j, 30.0, 2.0] for j in range(5)]]))
    inputs = [{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "instances": truth, "height": 64, "width": 64}]
    with EventStorage():
        losses = model(inputs)
    assert losses["loss_keypoint"] > 0
    sum(losses.values()).backward()
    assert model.roi_heads.keypoint_head.score_lowres.weight.grad.any()
    found = model.eval()(inputs)[0]["instances"]
    assert len(found) > 0 and found.pred_keypoints.shape == (len(found), 5, 3)

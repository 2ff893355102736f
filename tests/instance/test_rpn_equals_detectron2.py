"""The region proposal network computes what Detectron2's computes, on either engine."""

import pytest
import torch

pytest.importorskip("detectron2", reason="compares with Detectron2, which is not installed")

from detectron2 import model_zoo
from detectron2.config import get_cfg as d2_get_cfg
from detectron2.layers import ShapeSpec as D2ShapeSpec
from detectron2.modeling.proposal_generator import RPN as D2RPN
from detectron2.structures import Boxes as D2Boxes
from detectron2.structures import ImageList as D2ImageList
from detectron2.structures import Instances as D2Instances
from detectron2.utils.events import EventStorage

from retinanet_ext import add_retinanet_ext_config
from retinanet_ext.d2 import Boxes, ImageList, Instances, ShapeSpec, get_cfg
from retinanet_ext.instance.rpn import RPN

SIZES = [(120, 160), (128, 100), (90, 128)]
PADDED = (128, 160)
BOXES = [
    [[10.0, 12.0, 60.0, 80.0], [50.0, 40.0, 150.0, 110.0], [100.0, 5.0, 118.0, 30.0]],
    [],
    [[0.0, 0.0, 127.0, 89.0]],
]
FILES = {"FPN": "Base-RCNN-FPN.yaml", "C4": "Base-RCNN-C4.yaml"}
CHANNELS = 8


def pair(kind, *overrides):
    """Our RPN and Detectron2's with the same weights, and feature maps for both."""
    strides = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64} if kind == "FPN" else {"res4": 16}
    models = []
    for make, model, shape in ((get_cfg, RPN, ShapeSpec), (d2_get_cfg, D2RPN, D2ShapeSpec)):
        cfg = make()
        if model is RPN:
            add_retinanet_ext_config(cfg)
        cfg.merge_from_file(model_zoo.get_config_file(FILES[kind]))
        cfg.merge_from_list(["MODEL.RPN.PRE_NMS_TOPK_TRAIN", 200, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 100, *overrides])
        torch.manual_seed(3)
        models.append(model(cfg, {name: shape(channels=CHANNELS, stride=stride) for name, stride in strides.items()}))
    ours, theirs = models
    assert {n: v.shape for n, v in ours.state_dict().items()} == {n: v.shape for n, v in theirs.state_dict().items()}
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        assert torch.equal(a, b), name  # equal seeds give equal weights
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # untrained weights are so small that all boxes would be anchors
        for parameter in theirs.parameters():
            parameter.normal_(std=0.15, generator=generator)
    ours.load_state_dict(theirs.state_dict())
    maps = {
        name: torch.randn(len(SIZES), CHANNELS, PADDED[0] // stride, -(-PADDED[1] // stride), generator=generator)
        for name, stride in strides.items()
    }
    return ours, theirs, maps


def inputs(maps, boxes, images, instances, box_list=BOXES, sizes=SIZES):
    """Images, feature maps that take gradients, and ground truth, in the classes of one engine."""
    features = {name: value.clone().requires_grad_() for name, value in maps.items()}
    targets = [
        instances(size, gt_boxes=boxes(torch.tensor(image).reshape(-1, 4))) for size, image in zip(sizes, box_list)
    ]
    return images(torch.zeros(len(sizes), 3, *PADDED), sizes), features, targets


def run_both(kind, *overrides, training=True):
    ours, theirs, maps = pair(kind, *overrides)
    results = []
    for model, classes in ((ours, (Boxes, ImageList, Instances)), (theirs, (D2Boxes, D2ImageList, D2Instances))):
        model.train(training)
        images, features, targets = inputs(maps, *classes)
        torch.manual_seed(7)  # the draw of the samples
        with EventStorage(0):
            results.append((*model(images, features, targets if training else None), features))
    return ours, theirs, results


def assert_same_proposals(actual, expected, least):
    for ours, theirs in zip(actual, expected, strict=True):
        assert len(ours) == len(theirs) >= least and ours.image_size == theirs.image_size
        assert set(ours.get_fields()) == set(theirs.get_fields()) == {"proposal_boxes", "objectness_logits"}
        assert not ours.objectness_logits.requires_grad and not ours.proposal_boxes.tensor.requires_grad
        torch.testing.assert_close(ours.objectness_logits, theirs.objectness_logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.proposal_boxes.tensor, theirs.proposal_boxes.tensor, rtol=1e-4, atol=1e-3)


VARIANTS = [
    [],
    ["MODEL.RPN.LOSS_WEIGHT", 0.7, "MODEL.RPN.BBOX_REG_LOSS_WEIGHT", 3.0, "MODEL.RPN.SMOOTH_L1_BETA", 0.2],
    ["MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou", "MODEL.RPN.BBOX_REG_WEIGHTS", (2.0, 2.0, 1.0, 1.0)],
    ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 12, "MODEL.RPN.POSITIVE_FRACTION", 0.25, "MODEL.RPN.NMS_THRESH", 0.5],
    ["MODEL.RPN.BOUNDARY_THRESH", 0, "MODEL.RPN.IOU_THRESHOLDS", [0.2, 0.5], "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 20],
    ["MODEL.RPN.CONV_DIMS", [-1, 12, 6]],
    ["MODEL.ANCHOR_GENERATOR.OFFSET", 0.5],
]


@pytest.mark.parametrize("overrides", VARIANTS, ids=lambda o: o[0].split(".")[-1] if o else "default")
@pytest.mark.parametrize("kind", ["FPN", "C4"])
def test_training(kind, overrides):
    ours, theirs, ((proposals, losses, maps), (d2_proposals, d2_losses, d2_maps)) = run_both(kind, *overrides)
    assert_same_proposals(proposals, d2_proposals, least=20)
    assert set(losses) == set(d2_losses) == {"loss_rpn_cls", "loss_rpn_loc"}
    for name, expected in d2_losses.items():
        assert expected > 0.001
        torch.testing.assert_close(losses[name], expected, rtol=1e-4, atol=1e-6)
    sum(losses.values()).backward()
    sum(d2_losses.values()).backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        assert b.grad.abs().max() > 0
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4 * b.grad.abs().max().item(), msg=name)
    for name, value in d2_maps.items():
        torch.testing.assert_close(maps[name].grad, value.grad, rtol=1e-4, atol=1e-4 * value.grad.abs().max().item())


@pytest.mark.parametrize("kind", ["FPN", "C4"])
def test_inference(kind):
    _, _, ((proposals, losses, _), (d2_proposals, d2_losses, _)) = run_both(kind, training=False)
    assert losses == d2_losses == {}
    assert_same_proposals(proposals, d2_proposals, least=50)

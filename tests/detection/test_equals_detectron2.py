"""FocalRetinaNet computes what Detectron2's RetinaNet computes, and can take its place."""

import pytest
import torch

from retinanet_ext import d2
from tests.builders import batch

if d2.ENGINE != "detectron2":
    pytest.skip("needs the engine detectron2", allow_module_level=True)

from detectron2 import model_zoo
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from retinanet_ext import add_retinanet_ext_config
from retinanet_ext.detection import FocalRetinaNet


def detectron2_default_config(meta_architecture: str, *opts):
    cfg = get_cfg()
    add_retinanet_ext_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.META_ARCHITECTURE", meta_architecture, *opts]
    )
    return cfg


@torch.no_grad()
def tame(model):
    """Scale the last layers so that an untrained model has scores on both sides of the threshold, and sane boxes."""
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1)) * 60
    features = model.backbone(pixels)
    logits, deltas = model.head([features[name] for name in model.head_in_features])
    model.head.cls_score.weight.mul_(1.5 / (logits[0] - logits[0].mean()).std())
    model.head.bbox_pred.weight.mul_(0.1 / deltas[0].std())


def pair(*opts):
    """Detectron2's model and ours with the same weights."""
    torch.manual_seed(0)
    theirs = build_model(detectron2_default_config("RetinaNet", *opts))
    tame(theirs)
    ours = build_model(detectron2_default_config("FocalRetinaNet", *opts))
    result = ours.load_state_dict(theirs.state_dict())
    assert result.missing_keys == [] and result.unexpected_keys == []
    return ours, theirs


def test_parameters_are_exactly_detectron2s():
    ours, theirs = (build_model(detectron2_default_config(name)) for name in ("FocalRetinaNet", "RetinaNet"))
    shapes = {name: tuple(value.shape) for name, value in ours.state_dict().items()}
    assert shapes.pop("loss_normalizer.average") == ()
    assert shapes == {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


@pytest.mark.parametrize("norm", ["", "BN", "SyncBN", "GN", "FrozenBN"])
def test_parameters_of_normed_heads(norm):
    opts = ["MODEL.RETINANET.NORM", norm]
    ours, theirs = (
        build_model(detectron2_default_config(name, *opts)).head for name in ("FocalRetinaNet", "RetinaNet")
    )
    assert {n: tuple(v.shape) for n, v in ours.state_dict().items()} == {
        n: tuple(v.shape) for n, v in theirs.state_dict().items()
    }


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN", "FrozenBN"])
def test_outputs_and_statistics_of_normed_heads(norm, generator):
    opts = ["MODEL.RETINANET.NORM", norm, "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.FPN.OUT_CHANNELS", "32"]
    ours, theirs = (
        build_model(detectron2_default_config(name, *opts)).head for name in ("FocalRetinaNet", "RetinaNet")
    )
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    ours.load_state_dict(theirs.state_dict())
    ours.train(norm != "SyncBN"), theirs.train(norm != "SyncBN")  # SyncBN trains in a process group only
    for _ in range(2):
        features = [torch.randn(2, 32, size, size, generator=generator) for size in (16, 8, 4, 2, 1)]
        for actual, expected in zip(ours(features), theirs(features)):
            torch.testing.assert_close(actual, expected)
    for (name, actual), expected in zip(ours.state_dict().items(), theirs.state_dict().values()):
        torch.testing.assert_close(actual, expected, msg=name)


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou", "diou", "ciou"])
def test_same_losses_step_after_step(box_loss, generator):
    ours, theirs = pair("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", box_loss)
    batches = [
        batch(generator, (128, 160), (160, 128), num_objects=3, num_classes=80),
        batch(generator, (128, 128), num_objects=0),
        batch(generator, (96, 128), (128, 128), num_objects=1, num_classes=80),
    ]
    with EventStorage(0):  # the moving average of the normaliser makes each step depend on those before
        for inputs in batches:
            expected, actual = theirs(inputs), ours(inputs)
            assert list(actual) == list(expected)
            for name, loss in expected.items():
                torch.testing.assert_close(actual[name], loss, rtol=1e-5, atol=1e-8)


def test_same_gradients(generator):
    ours, theirs = pair()
    inputs = batch(generator, (128, 160), num_objects=3, num_classes=80)
    with EventStorage(0):
        for model in (ours, theirs):
            sum(model(inputs).values()).backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4 * b.grad.abs().max().item(), msg=name)


@pytest.mark.parametrize("with_ground_truth", [True, False])
def test_same_detections(with_ground_truth, generator):
    ours, theirs = (model.eval() for model in pair())
    inputs = batch(generator, (128, 160), (160, 128), num_classes=80)
    for image in inputs:
        image["height"], image["width"] = 2 * image["image"].shape[1], 2 * image["image"].shape[2]
        if not with_ground_truth:
            del image["instances"]
    with torch.no_grad():
        for expected, actual in zip(theirs(inputs), ours(inputs)):
            expected, actual = expected["instances"], actual["instances"]
            assert len(actual) == len(expected) > 50
            assert expected.image_size == actual.image_size
            torch.testing.assert_close(actual.scores, expected.scores, rtol=1e-4, atol=1e-6)
            assert torch.equal(actual.pred_classes, expected.pred_classes)
            torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3)


def test_lazy_config(generator):
    # A user's LazyConfig of Detectron2's RetinaNet, with the class swapped: same keyword arguments, same numbers.
    lazy = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py").model
    torch.manual_seed(0)
    theirs = instantiate(lazy)
    lazy._target_ = FocalRetinaNet
    ours = instantiate(lazy)
    ours.load_state_dict(theirs.state_dict())
    inputs = batch(generator, (128, 128), num_objects=3, num_classes=80)
    with EventStorage(0):
        expected, actual = theirs(inputs), ours(inputs)
    for name, loss in expected.items():
        torch.testing.assert_close(actual[name], loss, rtol=1e-5, atol=1e-8)

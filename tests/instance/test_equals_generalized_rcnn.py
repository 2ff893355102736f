"""MaskRCNN computes what Detectron2's GeneralizedRCNN computes, and exchanges weights with it."""

import pytest
import torch

from retinanet_ext import d2
from tests.instance.tiny_rcnn import tame, tiny_config, two_stage_batch

if d2.ENGINE != "detectron2":
    pytest.skip("needs the engine detectron2", allow_module_level=True)

from detectron2 import model_zoo

FILES = {
    "faster_fpn": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "mask_fpn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "keypoint_fpn": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "faster_c4": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "mask_c4": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "mask_dc5": "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml",
}
STRIDE_32 = ["MODEL.RESNETS.RES5_DILATION", "1"]
MODELS = [(name, []) for name in FILES] + [("mask_dc5", STRIDE_32)]
VARIANTS = [
    ("faster_fpn", ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]),
    ("faster_fpn", ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", "2.0"]),
    ("faster_fpn", ["MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", "0.5", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True"]),
    ("faster_fpn", ["MODEL.ROI_BOX_HEAD.NUM_CONV", "2", "MODEL.ROI_BOX_HEAD.CONV_DIM", "8"]),
    ("faster_fpn", ["MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.NORM", "GN"]),
    ("faster_fpn", ["MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False", "MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.1]"]),
    ("mask_fpn", ["MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", "True"]),
    ("mask_fpn", ["MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.3, 0.5]", "MODEL.ROI_HEADS.IOU_LABELS", "[0, -1, 1]"]),
]


def pair(name: str, *opts: str):
    """Our model and Detectron2's with the same weights, loaded without a missing or unexpected name, both ways."""
    torch.manual_seed(0)
    file = model_zoo.get_config_file(FILES[name])
    theirs = d2.build_model(tiny_config(file, "GeneralizedRCNN", *opts))
    tame(theirs)
    ours = d2.build_model(tiny_config(file, "MaskRCNN", *opts))
    theirs.load_state_dict(ours.state_dict() | theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize(("name", "opts"), MODELS + VARIANTS)
def test_parameters_are_exactly_detectron2s(name, opts):
    ours, theirs = pair(name, *opts)
    assert {n: v.shape for n, v in ours.state_dict().items()} == {n: v.shape for n, v in theirs.state_dict().items()}
    assert {n: p.requires_grad for n, p in ours.named_parameters()} == {
        n: p.requires_grad for n, p in theirs.named_parameters()
    }


@pytest.mark.parametrize(("name", "opts"), MODELS + VARIANTS[3:5])
def test_equal_seeds_give_equal_weights(name, opts):
    weights = []
    for meta_architecture in ("MaskRCNN", "GeneralizedRCNN"):
        torch.manual_seed(0)
        model = d2.build_model(tiny_config(model_zoo.get_config_file(FILES[name]), meta_architecture, *opts))
        weights.append(model.state_dict())
    assert [key for key, value in weights[1].items() if not torch.equal(weights[0][key], value)] == []


def test_untrained_scores_start_as_in_detectron2():
    file, opts = model_zoo.get_config_file(FILES["faster_fpn"]), ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True"]
    for name in ("MaskRCNN", "GeneralizedRCNN"):
        predictor = d2.build_model(tiny_config(file, name, *opts)).roi_heads.box_predictor
        assert not predictor.cls_score.bias.any() and not predictor.bbox_pred.bias.any()
        assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.3)
        assert predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.3)


@pytest.mark.parametrize(("name", "opts"), MODELS + VARIANTS)
def test_same_losses_and_gradients(name, opts):
    ours, theirs = pair(name, *opts)
    for number, sizes in enumerate([[(96, 128), (128, 96)], [(64, 100)]]):
        inputs = two_stage_batch(*sizes, seed=number)
        found = []
        for model in (ours, theirs):
            model.zero_grad()
            torch.manual_seed(number)  # the draws of both samplers
            with d2.EventStorage(0):
                losses = model(inputs)
            sum(losses.values()).backward()
            found.append(losses)
        largest = max(p.grad.abs().max().item() for p in theirs.parameters() if p.grad is not None)
        assert found[0].keys() == found[1].keys()
        for loss, expected in found[1].items():
            assert expected > 0
            torch.testing.assert_close(found[0][loss], expected, rtol=1e-4, atol=1e-6, msg=loss)
        for (parameter, a), b in zip(ours.named_parameters(), theirs.parameters()):
            if b.grad is not None:
                # A rounding error that flips a ReLU changes few entries by much: hence the norm.
                assert (a.grad - b.grad).norm() <= 5e-4 * b.grad.norm() + 1e-6 * largest, parameter


LOWEST_BAND_IGNORED = ["MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.1, 0.5]", "MODEL.ROI_HEADS.IOU_LABELS", "[-1, 0, 1]"]


@pytest.mark.parametrize(("name", "opts"), [*((name, []) for name in FILES), ("faster_fpn", LOWEST_BAND_IGNORED)])
def test_same_losses_without_objects(name, opts):
    ours, theirs = pair(name, *opts)
    inputs = two_stage_batch((96, 128), (64, 64), num_objects=0)
    found = []
    for model in (ours, theirs):
        torch.manual_seed(0)
        with d2.EventStorage(0):
            found.append(model(inputs))
    assert found[0].keys() == found[1].keys()
    for loss, expected in found[1].items():
        torch.testing.assert_close(found[0][loss], expected, rtol=1e-4, atol=1e-6, msg=loss)


@pytest.mark.parametrize(("name", "opts"), MODELS + VARIANTS[:3])
def test_same_detections_masks_and_keypoints(name, opts):
    ours, theirs = (model.eval() for model in pair(name, *opts))
    inputs = two_stage_batch((96, 128), (128, 96))
    inputs[0].update(height=150, width=211)
    with torch.no_grad():
        for actual, expected in zip(ours(inputs), theirs(inputs), strict=True):
            actual, expected = actual["instances"], expected["instances"]
            assert len(expected) > 5 and actual.image_size == expected.image_size
            fields, theirs_fields = actual.get_fields(), expected.get_fields()
            theirs_fields.pop("pred_keypoint_heatmaps", None)
            assert fields.keys() == theirs_fields.keys()
            torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3)
            torch.testing.assert_close(actual.scores, expected.scores, rtol=1e-4, atol=1e-6)
            assert torch.equal(actual.pred_classes, expected.pred_classes)
            if "mask" in name:
                assert actual.pred_masks.dtype == torch.bool
                assert (actual.pred_masks != expected.pred_masks).float().mean() < 1e-4
            if "keypoint" in name:
                torch.testing.assert_close(actual.pred_keypoints, expected.pred_keypoints, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", ["mask_fpn", "keypoint_fpn", "mask_c4"])
def test_same_with_given_boxes_and_without_postprocessing(name):
    ours, theirs = (model.eval() for model in pair(name))
    inputs = two_stage_batch((96, 128))
    boxes = d2.Boxes(torch.tensor([[10.0, 20, 60, 80], [0, 0, 128, 96]]))
    given = d2.Instances((96, 128), pred_boxes=boxes, pred_classes=torch.tensor([0, 0]), scores=torch.ones(2))
    with torch.no_grad():
        found = [model.inference(inputs, [given], do_postprocess=False)[0] for model in (ours, theirs)]
        assert torch.equal(found[0].pred_boxes.tensor, boxes.tensor)
        field = "pred_keypoints" if name == "keypoint_fpn" else "pred_masks"
        torch.testing.assert_close(found[0].get(field), found[1].get(field), rtol=1e-4, atol=1e-4)
        assert len(ours.inference(inputs, [given])[0]["instances"]) == 2

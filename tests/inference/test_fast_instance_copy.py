"""The fast copy of detectors with masks and keypoints, in one stage and in two."""

import functools

import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.inference.fast_copy import optimize_for_inference
from tests.builders import small_config
from tests.instance.tiny_rcnn import tame, two_stage_batch, two_stage_config

MASKS, KEYPOINTS = ["MODEL.MASK_ON", "True"], ["MODEL.KEYPOINT_ON", "True"]
TWO_STAGES = {
    "FPN": ("FPN", [*MASKS, *KEYPOINTS]),
    "C4": ("C4", MASKS),
    "norms": ("FPN", [*MASKS, "MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.NORM", "GN",
                      "MODEL.ROI_MASK_HEAD.NORM", "BN", "MODEL.FPN.NORM", "BN"]),
    "fully connected": ("FPN", [*MASKS, "MODEL.ROI_MASK_HEAD.NAME", "MLPMaskHead"]),
    "softmax, maxima": ("FPN", [*MASKS, "MODEL.ROI_MASK_HEAD.NAME", "SoftmaxMaskHead",
                                "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignMax"]),
}  # fmt: skip


def one_stage_model():
    opts = ["MODEL.META_ARCHITECTURE", "InstanceRetinaNet", *MASKS, *KEYPOINTS, "MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    opts += ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "20"]
    opts += ["MODEL.ROI_HEADS.IN_FEATURES", "['p3', 'p4', 'p5']", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"]
    opts += ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "4"]
    model = d2.build_model(small_config(*opts))
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.3)
    return model


def make_model(form: str):
    torch.manual_seed(0)
    if form == "one stage":
        model = one_stage_model()
    else:
        backbone, opts = TWO_STAGES[form]
        model = d2.build_model(two_stage_config(backbone, *opts))
        tame(model)
    spread_probabilities(model.eval())
    return model


@torch.no_grad()
def spread_probabilities(model) -> None:
    """Choose the last layers of the branches, so that masks and heatmaps are not flat."""
    for head, layer in (("mask_head", "predictor"), ("keypoint_head", "score_lowres")):
        if hasattr(model.roi_heads, head):
            weight = getattr(getattr(model.roi_heads, head), layer).weight
            weight.normal_(std=0.3 / weight[0].numel() ** 0.5)


@torch.no_grad()
def detections(model):
    inputs = two_stage_batch((96, 128), (128, 96))
    return [output["instances"] for output in model(inputs)]


def fields_of(detected) -> dict:
    fields = {**detected.get_fields(), "pred_boxes": detected.pred_boxes.tensor}
    return {name: value.float() for name, value in fields.items()}


@pytest.mark.parametrize("form", ["one stage", *TWO_STAGES])
def test_the_copy_in_float32_gives_the_same_detections(form):
    model = make_model(form)
    fast = optimize_for_inference(model)
    norms = [m for m in fast.modules() if isinstance(m, (d2.FrozenBatchNorm2d, torch.nn.BatchNorm2d))]
    assert norms == [] and fast.compute_dtype == torch.float32
    for found, expected in zip(detections(fast), detections(model), strict=True):
        assert len(found) > 5 and found.get_fields().keys() == expected.get_fields().keys()
        for name, value in fields_of(expected).items():
            if name == "pred_masks":
                assert value.any() and (fields_of(found)[name] != value).float().mean() < 1e-4
            else:
                torch.testing.assert_close(fields_of(found)[name], value, rtol=1e-4, atol=1e-3, msg=name)


@pytest.mark.parametrize("form", ["one stage", *TWO_STAGES])
def test_bfloat16_is_near_and_gives_float32(form):
    model = make_model(form)
    fast = optimize_for_inference(model, dtype="bfloat16")
    layers = [m for m in fast.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear))]
    assert {parameter.dtype for layer in layers for parameter in layer.parameters()} == {torch.bfloat16}
    inputs = two_stage_batch((96, 128), (128, 96))
    with torch.no_grad():
        pixels = fast.preprocess_image(inputs).tensor
        for a, b in zip(sum(fast.network(pixels), []), sum(model.network(pixels), []), strict=True):
            assert a.dtype == torch.bfloat16 and (a.float() - b).abs().max() < 0.1 * b.abs().max()
        # The same boxes to both, because rounding changes which ones are found.
        truth = [image["instances"] for image in inputs]
        given = [
            d2.Instances(x.image_size, pred_boxes=x.gt_boxes, pred_classes=x.gt_classes.clamp(max=2)) for x in truth
        ]
        raw = [masks_and_heatmaps(m, pixels, given) for m in (fast, model)]
    assert {tensor.dtype for kind in raw[0] for tensor in kind} == {torch.float32}
    for a, b in zip(*raw, strict=True):
        for found, expected in zip(a, b, strict=True):
            assert (found - expected).abs().mean() < 0.02 * expected.abs().max() and expected.std() > 0.02
    for found in detections(fast):
        assert found.scores.dtype == found.pred_boxes.tensor.dtype == torch.float32


def masks_and_heatmaps(model, pixels, given) -> list[list[torch.Tensor]]:
    names = getattr(model, "feature_names", None) or model.head_in_features
    features = dict(zip(names, model.network(pixels)[0]))
    heatmaps = []
    if model.roi_heads.keypoint_on:
        head = model.roi_heads.keypoint_head
        head.heatmaps = lambda x: heatmaps.append(type(head).heatmaps(head, x)) or heatmaps[-1]
    found = model.roi_heads.forward_with_given_boxes(features, [x[torch.arange(len(x))] for x in given])
    assert all(x.pred_keypoints.dtype == torch.float32 for x in found if x.has("pred_keypoints"))
    return [[x.pred_masks for x in found], heatmaps]


@pytest.mark.parametrize("form", ["one stage", "FPN", "C4"])
def test_the_network_can_be_compiled(form, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    model = make_model(form)
    fast = optimize_for_inference(model, compile=True)
    for found, expected in zip(detections(fast), detections(model), strict=True):
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
    assert fast.network.is_checked

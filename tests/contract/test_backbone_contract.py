"""Backbones of `lite` against Detectron2's: names, shapes, initial values, outputs and gradients."""

import pytest
import torch

pytest.importorskip("detectron2", reason="compares lite with Detectron2, which is not installed")

import detectron2.modeling.backbone as d2_backbone
from detectron2.config import get_cfg as d2_get_cfg
from detectron2.modeling.backbone.fpn import LastLevelP6P7 as D2LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock as D2BasicBlock

from retinanet_ext.lite import backbone as lite_backbone
from retinanet_ext.lite.cfg_node import get_cfg

FEATURES = ["res3", "res4", "res5"]
R18 = {"RESNETS.DEPTH": 18, "RESNETS.RES2_OUT_CHANNELS": 64}
X50 = {"RESNETS.NUM_GROUPS": 32, "RESNETS.WIDTH_PER_GROUP": 8, "RESNETS.STRIDE_IN_1X1": False}


ENGINES = ((get_cfg, lite_backbone.build_backbone), (d2_get_cfg, d2_backbone.build_backbone))


def build(engine, overrides, name="build_retinanet_resnet_fpn_backbone"):
    make_cfg, build_backbone = engine
    cfg = make_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL.RESNETS.OUT_FEATURES = FEATURES
    cfg.merge_from_list([item for key, value in overrides.items() for item in (f"MODEL.{key}", value)])
    torch.manual_seed(0)
    return build_backbone(cfg)


def build_pair(overrides, **kwargs):
    """The same backbone from both engines, initialised from the same seed."""
    return [build(engine, overrides, **kwargs) for engine in ENGINES]


def names_and_shapes(model):
    return [(name, tuple(value.shape)) for name, value in model.state_dict().items()]


def trainable(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def shapes(model):
    return {name: (shape.channels, shape.stride) for name, shape in model.output_shape().items()}


@pytest.mark.parametrize(
    "overrides",
    [
        R18,
        {**R18, "RESNETS.DEPTH": 34},
        {"RESNETS.DEPTH": 50},
        {"RESNETS.DEPTH": 101},
        {"RESNETS.DEPTH": 152},
        X50,
        {**X50, "RESNETS.DEPTH": 101},
        {"RESNETS.NORM": "BN", "BACKBONE.FREEZE_AT": 0},
        {"RESNETS.NORM": "BN", "BACKBONE.FREEZE_AT": 3},
        {"RESNETS.NORM": "SyncBN", "BACKBONE.FREEZE_AT": 1},
        {"RESNETS.NORM": "GN", "FPN.NORM": "GN", "BACKBONE.FREEZE_AT": 5},
        {
            "RESNETS.OUT_FEATURES": ["res4", "res5"],
            "FPN.IN_FEATURES": ["res4", "res5"],
            "FPN.OUT_CHANNELS": 64,
        },
    ],
)
def test_state_dict_and_declarations(overrides):
    with torch.device("meta"):
        ours, theirs = build_pair(overrides)
    assert names_and_shapes(ours) == names_and_shapes(theirs)
    assert trainable(ours) == trainable(theirs)
    assert shapes(ours) == shapes(theirs)
    assert shapes(ours.bottom_up) == shapes(theirs.bottom_up)
    assert ours.size_divisibility == theirs.size_divisibility
    assert ours.padding_constraints == theirs.padding_constraints
    assert ours.bottom_up.size_divisibility == theirs.bottom_up.size_divisibility
    assert ours.bottom_up.padding_constraints == theirs.bottom_up.padding_constraints


PYRAMID_WITH_P2 = {
    "RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
}


def test_pyramid_of_two_stage_models():
    overrides = {**R18, **PYRAMID_WITH_P2, "FPN.OUT_CHANNELS": 16}
    ours, theirs = build_pair(overrides, name="build_resnet_fpn_backbone")
    assert names_and_shapes(ours) == names_and_shapes(theirs)
    assert shapes(ours) == shapes(theirs) and list(shapes(ours)) == ["p2", "p3", "p4", "p5", "p6"]
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        actual, expected = ours(x), theirs(x)
    for name, value in expected.items():
        assert_near(actual[name], value)
    assert actual["p6"].shape[2:] == (1, 2)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("out_features", [["stem"], ["res3"], ["res4"], ["res5"], ["stem", "res2", "res5"]])
def test_bare_resnet(out_features, dilation):
    overrides = {"RESNETS.OUT_FEATURES": out_features, "RESNETS.RES5_DILATION": dilation}
    with torch.device("meta"):
        ours, theirs = build_pair(overrides, name="build_resnet_backbone")
    assert names_and_shapes(ours) == names_and_shapes(theirs)
    assert shapes(ours) == shapes(theirs)


@pytest.mark.parametrize("overrides", [R18, {"RESNETS.DEPTH": 50, "BACKBONE.FREEZE_AT": 0, "RESNETS.NORM": "BN"}, X50])
def test_equal_seeds_give_equal_weights(overrides):
    ours, theirs = build_pair(overrides)
    expected = theirs.state_dict()
    different = [name for name, value in ours.state_dict().items() if not torch.equal(value, expected[name])]
    assert different == []


@pytest.mark.parametrize("last_stage", ["res2", "res4", "res5"])
def test_layers_after_the_backbone_get_equal_weights_too(last_stage):
    draws = []
    for engine in ENGINES:
        build(engine, {"RESNETS.OUT_FEATURES": [last_stage]}, name="build_resnet_backbone")
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


def randomise_norms(model):
    """Gives norms random values: norms that are the identity would hide errors."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if ".norm." in name and value.is_floating_point():
            value.uniform_(0.5, 1.5, generator=generator)


def p5_pyramids():
    pair = []
    lite_parts = (lite_backbone, lite_backbone.BasicBlock, lite_backbone.LastLevelP6P7)
    for engine, block, last_levels in (lite_parts, (d2_backbone, D2BasicBlock, D2LastLevelP6P7)):
        channels = [64, 64, 128, 256, 512]
        stages = [
            engine.ResNet.make_stage(
                block, 2, in_channels=channels[i], out_channels=channels[i + 1], norm="FrozenBN",
                stride_per_block=[1 if i == 0 else 2, 1],
            )
            for i in range(4)
        ]  # fmt: skip
        bottom_up = engine.ResNet(engine.BasicStem(norm="FrozenBN"), stages, out_features=FEATURES, freeze_at=1)
        pair.append(engine.FPN(bottom_up, FEATURES, 16, top_block=last_levels(16, 16, "p5")))
    return pair


@pytest.mark.parametrize(
    "overrides",
    [
        R18,
        {"RESNETS.DEPTH": 50},
        {"RESNETS.DEPTH": 50, "RESNETS.STRIDE_IN_1X1": False, "RESNETS.NORM": "BN", "FPN.FUSE_TYPE": "avg"},
        {**R18, "RESNETS.NORM": "GN", "FPN.NORM": "GN", "BACKBONE.FREEZE_AT": 0},
        {**R18, "RESNETS.NORM": "SyncBN", "BACKBONE.FREEZE_AT": 3},
        X50,
        None,
    ],
    ids=["R18", "R50", "R50-BN-3x3-avg", "R18-GN", "R18-SyncBN", "X50-32x8d", "R18-p5"],
)
def test_outputs_and_gradients_with_the_same_weights(overrides):
    ours, theirs = p5_pyramids() if overrides is None else build_pair({**overrides, "FPN.OUT_CHANNELS": 32})
    assert shapes(ours) == shapes(theirs)
    randomise_norms(theirs)
    ours.load_state_dict(theirs.state_dict())
    # SyncBN trains on CUDA only; the other norms are compared in training mode.
    for model in (ours, theirs):
        model.train(overrides is None or overrides.get("RESNETS.NORM") != "SyncBN")
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    outputs = [model(x) for model in (ours, theirs)]
    assert list(outputs[0]) == list(outputs[1])
    for name, expected in outputs[1].items():
        assert_near(outputs[0][name], expected)
    for features in outputs:
        sum(feature.square().mean() for feature in features.values()).backward()
    expected_gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = expected_gradients[name].grad
        assert (parameter.grad is None) == (expected is None), name
        if expected is not None:
            assert_near(parameter.grad, expected)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-5, atol=1e-5)  # running statistics


def assert_near(actual, expected):
    """Tolerance 1e-4 of the largest value, because rounding differences of the engines add up over layers."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    "overrides",
    [
        {"RESNETS.DEPTH": 18},
        {**R18, "RESNETS.RES5_DILATION": 2},
        {**R18, "RESNETS.NUM_GROUPS": 2},
        {"RESNETS.RES5_DILATION": 3},
        {"RESNETS.DEPTH": 42},
        {"RESNETS.OUT_FEATURES": ["res3", "res4"]},
        {"FPN.IN_FEATURES": ["res3", "res5"], "RESNETS.OUT_FEATURES": ["res3", "res5"]},
        {"FPN.FUSE_TYPE": "max"},
        {"BACKBONE.NAME": "no_such_backbone"},
    ],
)
def test_what_detectron2_refuses_is_refused(overrides):
    for engine in ENGINES:
        with torch.device("meta"), pytest.raises((AssertionError, ValueError, KeyError)):
            build(engine, overrides)

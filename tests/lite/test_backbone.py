import pytest
import torch
from torch import nn

from retinanet_ext.lite.backbone import (
    FPN,
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    LastLevelP6P7,
    ResNet,
    build_backbone,
)
from retinanet_ext.lite.cfg_node import get_cfg
from retinanet_ext.lite.layers import FrozenBatchNorm2d, ShapeSpec


def small_resnet(**kwargs):
    stages = [
        ResNet.make_stage(BasicBlock, 1, in_channels=8 * max(i, 1), out_channels=8 * (i + 1), stride=min(i + 1, 2))
        for i in range(4)
    ]
    return ResNet(BasicStem(out_channels=8), stages, **kwargs)


def config(**resnets):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    for key, value in resnets.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


def test_outputs_have_the_declared_channels_and_strides():
    names = ["stem", "res2", "res3", "res4", "res5"]
    model = small_resnet(out_features=names)
    outputs = model(torch.zeros(2, 3, 64, 96))
    assert list(outputs) == names
    for name, shape in model.output_shape().items():
        assert outputs[name].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
    assert [shape.stride for shape in model.output_shape().values()] == [4, 4, 8, 16, 32]


def test_stages_that_no_output_needs_are_left_out():
    model = small_resnet(out_features=["res3"])
    assert [name for name, _ in model.named_children()] == ["stem", "res2", "res3"]


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_counts_the_stem_as_one(freeze_at):
    model = small_resnet(freeze_at=freeze_at)
    for index, part in enumerate((model.stem, model.res2, model.res3, model.res4, model.res5)):
        is_frozen = index < freeze_at
        assert {p.requires_grad for p in part.parameters()} == {not is_frozen}
        norms = {type(m) for m in part.modules() if isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d))}
        assert norms == {FrozenBatchNorm2d if is_frozen else nn.BatchNorm2d}


def test_make_stage_per_block_arguments():
    blocks = ResNet.make_stage(
        BottleneckBlock,
        2,
        bottleneck_channels=8,
        in_channels=16,
        out_channels=32,
        stride_per_block=[2, 1],
        dilation_per_block=[1, 2],
        num_groups=4,
        stride_in_1x1=True,
    )
    assert [block.stride for block in blocks] == [2, 1]
    assert blocks[0].conv1.stride == (2, 2) and blocks[0].conv2.stride == (1, 1)
    assert blocks[1].conv2.dilation == blocks[1].conv2.padding == (2, 2)
    assert blocks[0].conv2.groups == 4
    assert blocks[0].shortcut is not None and blocks[1].shortcut is None
    for bad in ({"stride_per_block": [1]}, {"stride": 1, "stride_per_block": [1, 1]}):
        with pytest.raises(ValueError, match="stride_per_block needs 2 values, without stride"):
            ResNet.make_stage(BasicBlock, 2, in_channels=4, out_channels=4, **bad)


@pytest.mark.parametrize("depth, blocks", [(18, 8), (34, 16), (50, 16), (101, 33), (152, 50)])
def test_stages_have_the_depth_they_are_called_by(depth, blocks):
    with torch.device("meta"):
        resnet = build_backbone(config(DEPTH=depth, RES2_OUT_CHANNELS=64 if depth < 50 else 256)).bottom_up
    assert sum(len(getattr(resnet, name)) for name in resnet.stage_names) == blocks
    convolutions_per_block = 2 if depth < 50 else 3
    assert blocks * convolutions_per_block + 2 == depth  # + 2: the stem and the classifier


def test_dilation_keeps_the_resolution_of_res5():
    with torch.device("meta"):
        cfg = config(RES5_DILATION=2, OUT_FEATURES=["res5"])
        cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
        assert build_backbone(cfg).output_shape() == {"res5": ShapeSpec(channels=2048, stride=16)}


def test_input_channels_follow_the_pixel_mean_or_the_argument():
    cfg = config(DEPTH=18, RES2_OUT_CHANNELS=64)
    cfg.MODEL.PIXEL_MEAN = [0.0]
    with torch.device("meta"):
        assert build_backbone(cfg).bottom_up.stem.in_channels == 1
        assert build_backbone(cfg, ShapeSpec(channels=4)).bottom_up.stem.in_channels == 4


@pytest.mark.parametrize(
    "resnets, message",
    [
        ({"DEPTH": 42}, "depth 42 does not exist; legal: 18, 34"),
        ({"DEPTH": 18}, "RES2_OUT_CHANNELS must be 64 for DEPTH 18, found 256"),
        ({"RES5_DILATION": 3}, "RES5_DILATION must be 1 or 2, found 3"),
        ({"DEFORM_ON_PER_STAGE": [False, False, False, True]}, "no deformable convolutions"),
        ({"OUT_FEATURES": ["res9"]}, "OUT_FEATURES must be among"),
        ({"OUT_FEATURES": []}, "OUT_FEATURES must be among"),
        ({"OUT_FEATURES": ["res3", "res4"]}, "must contain res5, the input of P6"),
        ({"NORM": "bn"}, "unknown norm 'bn'"),
    ],
)
def test_config_errors(resnets, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_backbone(config(**resnets))


def test_resnet_refuses_a_single_image():
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), found \(3, 8, 8\)"):
        small_resnet()(torch.zeros(3, 8, 8))


def fpn(**kwargs):
    torch.manual_seed(0)
    names = ["res3", "res4", "res5"]
    return FPN(small_resnet(out_features=names).eval(), names, 8, **kwargs)


def test_pyramid_levels_are_named_and_sized_by_stride():
    model = fpn(top_block=LastLevelP6P7(8, 8, "p5"))
    outputs = model(torch.zeros(1, 3, 64, 128))
    assert {name: tuple(out.shape[2:]) for name, out in outputs.items()} == {
        "p3": (8, 16),
        "p4": (4, 8),
        "p5": (2, 4),
        "p6": (1, 2),
        "p7": (1, 1),
    }
    assert [shape.stride for shape in model.output_shape().values()] == [8, 16, 32, 64, 128]
    assert model.size_divisibility == 32


@pytest.mark.parametrize("fuse_type, divisor", [("sum", 1), ("avg", 2)])
def test_p4_is_the_fused_lateral_and_upsampled_maps(fuse_type, divisor):
    model = fpn(fuse_type=fuse_type)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.bottom_up(x)
        above = model.fpn_lateral5(features["res5"])
        nearest = above.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        expected = model.fpn_output4((model.fpn_lateral4(features["res4"]) + nearest) / divisor)
        torch.testing.assert_close(model(x)["p4"], expected)


@pytest.mark.parametrize("in_feature, in_channels", [("res5", 32), ("p5", 8)])
def test_p6_and_p7_come_from_the_named_feature(in_feature, in_channels):
    model = fpn(top_block=LastLevelP6P7(in_channels, 8, in_feature))
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model(x)
        source = model.bottom_up(x)["res5"] if in_feature == "res5" else outputs["p5"]
        p6 = model.top_block.p6(source)
        torch.testing.assert_close(outputs["p6"], p6)
        torch.testing.assert_close(outputs["p7"], model.top_block.p7(p6.clamp(min=0)))


def test_fpn_norm_replaces_the_bias():
    keys = fpn(norm=lambda channels: nn.GroupNorm(2, channels)).state_dict()
    assert "fpn_lateral3.norm.weight" in keys and "fpn_lateral3.bias" not in keys
    assert "fpn_lateral3.bias" in fpn().state_dict()


@pytest.mark.parametrize(
    "names, kwargs, message",
    [
        (["res3", "res5"], {}, r"consecutive powers of 2; found \[8, 32\]"),
        (["res6"], {}, "in_features must be among"),
        ([], {}, "in_features must be among"),
        (["res3"], {"fuse_type": "max"}, "sum or avg, found 'max'"),
    ],
)
def test_fpn_errors(names, kwargs, message):
    with pytest.raises(ValueError, match=message):
        FPN(small_resnet(out_features=["res3", "res4", "res5"]), names, 8, **kwargs)


def test_initial_weights():
    torch.manual_seed(0)
    block = BottleneckBlock(64, 128, bottleneck_channels=64)
    # MSRA, by fan-out: the variance is 2 / (outputs * kernel area).
    assert block.conv2.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert block.shortcut.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    model = FPN(small_resnet(out_features=["res5"]), ["res5"], 64, top_block=LastLevelP6P7(64, 64, "p5"))
    # Caffe2's Xavier: uniform within sqrt(3 / fan-in).
    for conv, fan_in in ((model.fpn_lateral5, 32), (model.fpn_output5, 64 * 9), (model.top_block.p7, 64 * 9)):
        bound = (3 / fan_in) ** 0.5
        assert 0.98 * bound < conv.weight.abs().max().item() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert conv.bias.abs().max() == 0


def test_channels_last_goes_through_the_backbone():
    model = fpn(top_block=LastLevelP6P7(32, 8)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 128, 128).to(memory_format=torch.channels_last)
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in model(x).values())

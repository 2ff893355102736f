import pytest
import torch
import torchvision

from retinanet_ext.lite.backbone import build_resnet_backbone
from retinanet_ext.lite.cfg_node import get_cfg
from retinanet_ext.lite.layers import ShapeSpec
from retinanet_ext.lite.pretrained_names import convert_caffe2, convert_torchvision, match_by_suffix


def _backbone(depth):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize("depth", [18, 50])
def test_a_torchvision_resnet_computes_the_same_here(depth):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")().eval()
    for name, buffer in theirs.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    ours = _backbone(depth).eval()
    incompatible = ours.load_state_dict(convert_torchvision(theirs.state_dict()), strict=True)
    assert not incompatible.missing_keys
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        torch.testing.assert_close(ours(image)["res5"], expected, rtol=1e-3, atol=1e-4)


def test_caffe2_names():
    one = torch.ones(1)
    names = {
        "conv1_w": "stem.conv1.weight",
        "res_conv1_bn_s": "stem.conv1.norm.weight",
        "res_conv1_bn_b": "stem.conv1.norm.bias",
        "res2_0_branch2a_w": "res2.0.conv1.weight",
        "res2_0_branch2b_bn_s": "res2.0.conv2.norm.weight",
        "res3_11_branch2c_bn_b": "res3.11.conv3.norm.bias",
        "res5_2_branch1_w": "res5.2.shortcut.weight",
        "res5_2_branch1_bn_rm": "res5.2.shortcut.norm.running_mean",
        "res5_2_branch1_bn_riv": "res5.2.shortcut.norm.running_var",
        "something_else": "something_else",
    }
    dropped = dict.fromkeys(["pred_w", "pred_b", "fc1000_w", "conv1_w_momentum"], one)
    converted = convert_caffe2({**dict.fromkeys(names, one), **dropped})
    added = {f"{norm}.norm.running_{kind}" for norm in ("stem.conv1", "res2.0.conv2") for kind in ("mean", "var")}
    assert set(converted) == set(names.values()) | added


def test_folded_statistics_are_spelt_out_as_mean_0_and_variance_1():
    converted = convert_caffe2({"res_conv1_bn_s": torch.full((2,), 3.0)})
    assert converted["stem.conv1.norm.running_mean"].tolist() == [0, 0]
    assert converted["stem.conv1.norm.running_var"].tolist() == [1, 1]


def test_the_longest_fitting_name_wins():
    weights = {"conv.weight": torch.tensor(1), "a.conv.weight": torch.tensor(2), "other": torch.tensor(3)}
    matched, unmatched = match_by_suffix(weights, ["x.a.conv.weight", "x.b.conv.weight", "x.deconv.weight"])
    assert matched == {"x.a.conv.weight": 2, "x.b.conv.weight": 1, "other": 3}
    assert unmatched == ["other"]

"""ImageNet weights in a C4 model: `lite` puts each weight where Detectron2 does, res5 into the heads."""

import pickle

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="compares lite with Detectron2, which is not installed")

from detectron2.checkpoint import DetectionCheckpointer as D2DetectionCheckpointer
from detectron2.config import get_cfg as d2_get_cfg
from detectron2.modeling.backbone import build_backbone as d2_build_backbone

from retinanet_ext.lite.backbone import build_backbone
from retinanet_ext.lite.cfg_node import get_cfg
from retinanet_ext.lite.checkpointer import DetectionCheckpointer


def resnet(make_cfg, build, last):
    cfg = make_cfg()
    for key, value in {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4}.items():
        cfg.MODEL.RESNETS[key] = value
    cfg.MODEL.RESNETS.OUT_FEATURES = [last]
    return build(cfg)


def c4_model(make_cfg, build):
    """A backbone that ends with res4, and heads that begin with res5."""
    model = nn.Module()
    model.backbone = resnet(make_cfg, build, "res4")
    model.roi_heads = nn.Module()
    model.roi_heads.res5 = resnet(make_cfg, build, "res5").res5
    model.roi_heads.box_predictor = nn.Linear(4, 4)
    return model


def test_weights_of_a_classifier(tmp_path):
    torch.manual_seed(5)
    classifier = resnet(get_cfg, build_backbone, "res5").state_dict()
    weights = {name: torch.rand_like(value).numpy() for name, value in classifier.items()}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "torchvision", "matching_heuristics": True}))
    ours, theirs = c4_model(get_cfg, build_backbone), c4_model(d2_get_cfg, d2_build_backbone)
    theirs.roi_heads.box_predictor.load_state_dict(ours.roi_heads.box_predictor.state_dict())
    DetectionCheckpointer(ours).load(str(path))
    D2DetectionCheckpointer(theirs).load(str(path))
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, expected[name]), name
        if "box_predictor" not in name:
            short = name.removeprefix("backbone.").removeprefix("roi_heads.")
            assert torch.equal(value, torch.from_numpy(weights[short])), name

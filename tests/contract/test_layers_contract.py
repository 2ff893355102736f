"""Norms and anchors of `lite` against Detectron2's."""

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="compares lite with Detectron2, which is not installed")

import detectron2.layers as d2
from detectron2.config import get_cfg as d2_get_cfg
from detectron2.modeling import build_anchor_generator as d2_build_anchor_generator
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator as D2AnchorGenerator

from retinanet_ext.lite import layers as lite
from retinanet_ext.lite.anchors import DefaultAnchorGenerator, build_anchor_generator
from retinanet_ext.lite.cfg_node import get_cfg

ENGINES = (lite, d2)


def random_state(channels, generator):
    return {
        "weight": torch.randn(channels, generator=generator),
        "bias": torch.randn(channels, generator=generator),
        "running_mean": torch.randn(channels, generator=generator),
        "running_var": torch.rand(channels, generator=generator) + 0.1,
    }


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_frozen_batch_norm_numbers(generator, requires_grad, dtype, rtol):
    state = random_state(8, generator)
    x = torch.randn(2, 8, 6, 5, generator=generator).to(dtype)
    outputs, gradients = [], []
    for engine in ENGINES:
        layer = engine.FrozenBatchNorm2d(8)
        layer.load_state_dict(state)
        source = x.clone().requires_grad_(requires_grad)
        y = layer(source)
        assert y.dtype == dtype
        outputs.append(y.detach())
        if requires_grad:
            y.float().square().sum().backward()
            gradients.append(source.grad)
    for ours, theirs in (outputs, gradients) if requires_grad else (outputs,):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=rtol, atol=rtol)


def test_new_frozen_batch_norms_are_equal():
    ours, theirs = (engine.FrozenBatchNorm2d(3) for engine in ENGINES)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_frozen_copies_of_batch_norms_are_equal(generator, norm):
    results = []
    for engine in ENGINES:
        layer = norm(8, eps=1e-3)
        layer.load_state_dict(random_state(8, torch.Generator().manual_seed(1)), strict=False)
        results.append(engine.FrozenBatchNorm2d.convert_frozen_batchnorm(nn.Sequential(layer)))
    ours, theirs = results
    assert type(ours[0]) is lite.FrozenBatchNorm2d
    assert ours[0].eps == theirs[0].eps == 1e-3
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("norm", ["", None, "BN", "FrozenBN", "SyncBN", "GN", nn.BatchNorm2d])
def test_get_norm(norm):
    assert repr(lite.get_norm(norm, 64)) == repr(d2.get_norm(norm, 64))


def test_shape_spec():
    assert repr(lite.ShapeSpec(channels=3, stride=4)) == repr(d2.ShapeSpec(channels=3, stride=4))
    assert lite.ShapeSpec(3) == lite.ShapeSpec(channels=3)


ANCHORS = [
    {"sizes": [[32, 64]], "aspect_ratios": [[0.5, 1, 2]], "strides": [8, 16]},
    {"sizes": [32, 64], "aspect_ratios": [0.5, 1, 2], "strides": [8, 16], "offset": 0.0},
    {"sizes": [[32.0], [64.5]], "aspect_ratios": [[1 / 3], [2.0, 4.0]], "strides": [8, 16], "offset": 0.25},
]


@pytest.mark.parametrize("arguments", ANCHORS)
def test_anchors(arguments):
    ours, theirs = DefaultAnchorGenerator(**arguments), D2AnchorGenerator(**arguments)
    assert ours.num_cell_anchors == theirs.num_cell_anchors
    assert ours.box_dim == theirs.box_dim
    assert list(ours.state_dict()) == list(theirs.state_dict()) == []
    features = [torch.zeros(1, 1, 5, 7), torch.zeros(1, 1, 3, 4)]
    for a, b in zip(ours(features), theirs(features), strict=True):
        assert torch.equal(a.tensor, b.tensor)


def test_anchors_from_config():
    grids = []
    for make_cfg, build, spec in (
        (get_cfg, build_anchor_generator, lite.ShapeSpec),
        (d2_get_cfg, d2_build_anchor_generator, d2.ShapeSpec),
    ):
        cfg = make_cfg()
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[x * 2 ** (i / 3) for i in range(3)] for x in (32, 64, 128, 256, 512)]
        generator = build(cfg, [spec(stride=stride) for stride in (8, 16, 32, 64, 128)])
        grids.append(generator([torch.zeros(1, 1, 128 // s, 96 // s + 1) for s in (8, 16, 32, 64, 128)]))
    for ours, theirs in zip(*grids, strict=True):
        assert torch.equal(ours.tensor, theirs.tensor)


@pytest.mark.parametrize(
    "change",
    [{"offset": 1.0}, {"offset": -0.1}, {"sizes": []}, {"sizes": 32}, {"sizes": [[1], [2], [3]]}],
)
def test_bad_anchor_arguments_are_refused_alike(change):
    for generator in (DefaultAnchorGenerator, D2AnchorGenerator):
        with pytest.raises((ValueError, AssertionError)):
            generator(**{**ANCHORS[0], **change})

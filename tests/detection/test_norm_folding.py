import copy

import pytest
import torch
import torch.nn.functional as F

from retinanet_ext.d2 import Conv2d, FrozenBatchNorm2d, build_model
from retinanet_ext.detection.convolutions import fold_frozen_norms, fuse_norms
from tests.builders import batch, small_config


def conv_with(norm, generator, **kwargs) -> Conv2d:
    conv = Conv2d(4, 6, 3, padding=1, bias=False, norm=norm, **kwargs).double()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        tensor.data.normal_(generator=generator)
    norm.running_var.data.uniform_(0.5, 2.0, generator=generator)
    return conv


def by_definition(conv, x):
    norm = conv.norm
    x = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
    x = (x - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + norm.eps).sqrt()
    x = x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    return x if conv.activation is None else conv.activation(x)


@pytest.mark.parametrize("activation", [None, F.relu])
@pytest.mark.parametrize("stride", [1, 2])
def test_folded_convolution_has_the_values_and_gradients_of_the_definition(stride, activation, generator):
    conv = conv_with(FrozenBatchNorm2d(6), generator, stride=stride, activation=activation)
    fold_frozen_norms(conv)
    assert type(conv) is not Conv2d
    x = torch.randn(2, 4, 9, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    found, expected = conv(x), by_definition(conv, x)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad(y, (x, conv.weight), upstream) for y in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_only_convolutions_before_frozen_norms_fold(generator):
    trainable = conv_with(torch.nn.BatchNorm2d(6), generator)
    plain = Conv2d(4, 6, 3)
    fold_frozen_norms(torch.nn.Sequential(trainable, plain))
    assert type(trainable) is type(plain) is Conv2d


def test_frozen_weights_get_no_gradient(generator):
    conv = conv_with(FrozenBatchNorm2d(6), generator).requires_grad_(False)
    fold_frozen_norms(conv)
    x = torch.randn(1, 4, 5, 5, generator=generator, dtype=torch.float64)
    assert not conv(x).requires_grad
    x.requires_grad_()
    conv(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(by_definition(conv, x).sum(), x)[0])


def test_folding_computes_in_the_dtype_of_autocast(generator):
    conv = conv_with(FrozenBatchNorm2d(6), generator).float()
    fold_frozen_norms(conv)
    x = torch.randn(1, 4, 8, 8, generator=generator, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = conv(x)
    found.float().sum().backward()
    assert found.dtype == torch.bfloat16 and x.grad.dtype == conv.weight.grad.dtype == torch.float32
    torch.testing.assert_close(found.float(), by_definition(conv, x), rtol=0.05, atol=0.05)


def test_a_model_keeps_its_names_and_can_be_copied():
    model = build_model(small_config("MODEL.RESNETS.NORM", "FrozenBN"))
    twin = copy.deepcopy(model)
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert "backbone.bottom_up.stem.conv1.norm.running_mean" in model.state_dict()
    twin.load_state_dict(model.state_dict())


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, torch.nn.BatchNorm2d])
@pytest.mark.parametrize("bias", [False, True])
def test_fused_convolution_has_no_norm_and_the_values_of_the_definition(norm, bias, generator):
    conv = conv_with(norm(6), generator, stride=2, activation=F.relu)
    if bias:
        conv.bias = torch.nn.Parameter(torch.randn(6, generator=generator, dtype=torch.float64))
    fold_frozen_norms(conv.eval())
    x = torch.randn(2, 4, 9, 7, generator=generator, dtype=torch.float64)
    expected = by_definition(conv, x)
    fuse_norms(conv)
    assert conv.norm is None and type(conv) is Conv2d
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_fusing_a_whole_backbone_changes_nothing_but_rounding(norm, generator):
    torch.manual_seed(0)
    model = build_model(small_config("MODEL.RESNETS.NORM", norm, "MODEL.FPN.NORM", "BN")).eval()
    pixels = model.preprocess_image(batch(generator, (64, 64))).tensor
    fused = copy.deepcopy(model)
    fuse_norms(fused)
    assert not any(isinstance(m, (FrozenBatchNorm2d, torch.nn.BatchNorm2d)) for m in fused.backbone.modules())
    with torch.no_grad():
        for found, expected in zip(fused.network(pixels), model.network(pixels), strict=True):
            for a, b in zip(found, expected, strict=True):
                assert (a - b).abs().max() < 1e-4 * b.abs().max()

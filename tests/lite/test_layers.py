import pytest
import torch
from torch import nn

from retinanet_ext.lite.layers import Conv2d, FrozenBatchNorm2d, get_norm


@pytest.fixture
def batch_norm(generator):
    """A BatchNorm2d in evaluation mode, with statistics and weights far from the identity."""
    layer = nn.BatchNorm2d(6, eps=1e-3).eval()
    for tensor in (layer.weight.data, layer.bias.data, layer.running_mean):
        tensor.normal_(generator=generator)
    layer.running_var.uniform_(0.2, 3, generator=generator)
    return layer


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_frozen_batch_norm_is_batch_norm_in_evaluation(batch_norm, generator, requires_grad, memory_format):
    x = torch.randn(2, 6, 5, 7, generator=generator).to(memory_format=memory_format)
    expected = batch_norm(x).detach()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(batch_norm)
    y = frozen.train()(x.clone(memory_format=torch.preserve_format).requires_grad_(requires_grad))
    torch.testing.assert_close(y.detach(), expected, rtol=1e-5, atol=1e-6)
    assert y.is_contiguous(memory_format=memory_format)


def test_frozen_batch_norm_gradient_is_the_scale(batch_norm, generator):
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(batch_norm)
    x = torch.randn(1, 6, 2, 2, generator=generator, requires_grad=True)
    frozen(x).sum().backward()
    scale = batch_norm.weight.detach() / (batch_norm.running_var + 1e-3).sqrt()
    torch.testing.assert_close(x.grad, scale.view(1, 6, 1, 1).expand(1, 6, 2, 2))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_batch_norm_keeps_half_precision(batch_norm, requires_grad):
    x = torch.ones(1, 6, 2, 2, dtype=torch.bfloat16, requires_grad=requires_grad)
    assert FrozenBatchNorm2d.convert_frozen_batchnorm(batch_norm)(x).dtype == torch.bfloat16


def test_new_frozen_batch_norm_is_the_identity_and_has_no_parameters(generator):
    frozen = FrozenBatchNorm2d(3)
    x = torch.randn(1, 3, 4, 4, generator=generator)
    torch.testing.assert_close(frozen(x), x)
    assert list(frozen.parameters()) == []
    assert list(frozen.state_dict()) == ["weight", "bias", "running_mean", "running_var"]


def test_conversion_replaces_nested_batch_norms_only():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.SyncBatchNorm(3)), nn.GroupNorm(1, 3))
    assert FrozenBatchNorm2d.convert_frozen_batchnorm(module) is module
    assert [type(m) for m in module.modules() if not list(m.children())] == [
        FrozenBatchNorm2d,
        FrozenBatchNorm2d,
        nn.GroupNorm,
    ]


def test_get_norm():
    assert get_norm("", 64) is None and get_norm(None, 64) is None
    assert type(get_norm("BN", 64)) is nn.BatchNorm2d
    assert type(get_norm("SyncBN", 64)) is nn.SyncBatchNorm
    assert get_norm("GN", 64).num_groups == 32
    assert get_norm(lambda channels: nn.GroupNorm(4, channels), 64).num_groups == 4
    with pytest.raises(ValueError, match="'bn'; legal: BN, FrozenBN, SyncBN, GN"):
        get_norm("bn", 64)


def test_conv2d_applies_norm_then_activation():
    conv = Conv2d(1, 1, 1, bias=False, norm=nn.GroupNorm(1, 1), activation=torch.relu)
    assert list(conv.state_dict()) == ["weight", "norm.weight", "norm.bias"]
    with torch.no_grad():
        conv.weight.fill_(1)
        # The norm turns 1 and 3 into -1 and 1; the activation turns -1 into 0.
        out = conv(torch.tensor([[[[1.0, 3.0]]]]))
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 1.0]), atol=1e-4, rtol=0)

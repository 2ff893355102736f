"""The layers of FaceNet's networks against loops, other implementations and hand arithmetic."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from retinanet_ext.embedding.network_layers import (
    MaxoutLinear,
    convolution,
    flattened_map,
    l2_pool,
    local_response_norm,
    max_pool,
)


def test_l2_pooling_is_the_root_of_the_mean_square_by_hand():
    maps = torch.tensor([[3.0, 4.0], [0.0, 12.0]])[None, None]
    # All four positions lie in the 3x3 window of each: sqrt((9 + 16 + 0 + 144) / 4) = 6.5.
    torch.testing.assert_close(l2_pool(maps), torch.full((1, 1, 2, 2), 6.5))


@pytest.mark.parametrize("stride", [1, 2])
def test_l2_pooling_against_a_loop(stride, generator):
    maps = torch.randn(2, 3, 7, 6, dtype=torch.float64, generator=generator)
    found = l2_pool(maps, stride)
    assert found.shape == (2, 3, math.ceil(7 / stride), math.ceil(6 / stride)) == max_pool(maps, stride).shape
    for y in range(found.shape[2]):
        for x in range(found.shape[3]):
            row, column = y * stride, x * stride
            window = maps[:, :, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            torch.testing.assert_close(found[:, :, y, x], window.square().mean(dim=(2, 3)).sqrt())


def test_l2_pooling_has_a_finite_gradient_where_all_is_zero():
    maps = torch.zeros(1, 1, 4, 4, requires_grad=True)
    l2_pool(maps).sum().backward()
    assert torch.equal(maps.grad, torch.zeros_like(maps))


def test_l2_pooling_of_half_precision_neither_overflows_nor_is_nan_at_zero():
    maps = torch.tensor([0.0, 1000.0], dtype=torch.float16).view(1, 2, 1, 1).expand(1, 2, 4, 4).clone().requires_grad_()
    pooled = l2_pool(maps)
    pooled.sum().backward()
    assert pooled.dtype == torch.float16 and torch.equal(pooled[0, 1], maps[0, 1])
    assert maps.grad.isfinite().all()


def test_local_response_norm_by_hand():
    # Five channels of 100: the middle one sees all five, so m = 10^4 and the divisor is (1 + 1)^0.75.
    found = local_response_norm(torch.full((1, 5, 1, 1), 100.0)).flatten()
    assert found[2].item() == pytest.approx(100 / 2**0.75)
    # The first one sees itself and two more, of a window of five: m = 3/5 * 10^4.
    assert found[0].item() == pytest.approx(100 / 1.6**0.75)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_local_response_norm_is_torchs_with_its_gradient(channels, memory_format, generator):
    maps = torch.randn(2, channels, 5, 3, generator=generator).mul(300).to(memory_format=memory_format)
    grad = torch.randn(maps.shape, generator=generator)
    ours, theirs = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    out, expected = local_response_norm(ours), F.local_response_norm(theirs, 5)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(local_response_norm(maps), expected)  # without a gradient
    out.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert out.is_contiguous(memory_format=memory_format)


def test_gradients_of_the_layers(generator):
    maps = (torch.randn(1, 4, 3, 3, dtype=torch.float64, generator=generator) * 100).requires_grad_()
    assert torch.autograd.gradcheck(local_response_norm, (maps,))
    assert torch.autograd.gradcheck(l2_pool, (maps,))


def test_maxout_is_the_largest_of_its_pieces(generator):
    layer = MaxoutLinear(3, 2, pieces=2)
    nn.init.normal_(layer.bias, generator=generator)
    vector = torch.randn(1, 3, generator=generator)
    values = [layer.weight[row] @ vector[0] + layer.bias[row] for row in range(4)]
    expected = torch.stack([max(values[0], values[2]), max(values[1], values[3])])
    torch.testing.assert_close(layer(vector)[0], expected)


def test_initial_filters_have_no_sum_and_keep_the_variance(generator):
    torch.manual_seed(0)
    positive = torch.randn(4, 64, 24, 24, generator=generator).relu()  # has a mean, as every rectified map
    conv = convolution(64, 128, 1, "")
    torch.testing.assert_close(conv.weight.sum(dim=(1, 2, 3)), torch.zeros(128), rtol=0, atol=1e-5)
    assert conv(positive).var().item() == pytest.approx(positive.var().item(), rel=0.05)
    vectors = positive.permute(0, 2, 3, 1).reshape(-1, 64)
    layer = MaxoutLinear(64, 128)
    torch.testing.assert_close(layer.weight.sum(dim=1), torch.zeros(256), rtol=0, atol=1e-5)
    assert layer(vectors).var().item() == pytest.approx(positive.var().item(), rel=0.05)
    assert not conv.bias.any() and not layer.bias.any()


@pytest.mark.parametrize("channels, groups", [(16, 16), (32, 32), (48, 16), (112, 16), (192, 32)])
def test_group_norm_has_a_number_of_groups_that_divides_the_channels(channels, groups):
    conv = convolution(8, channels, 1, "GN")
    assert conv.norm.num_groups == groups and conv.bias is None


def test_a_fully_connected_layer_names_the_image_sizes_it_takes():
    images, maps = torch.zeros(1, 3, 96, 96), torch.zeros(1, 256, 3, 3)
    message = "height 193 to 224 and width 161 to 192, but found 96x96; set INPUT.FACE.SIZE"
    with pytest.raises(ValueError, match=message):
        flattened_map(maps, (7, 6), images)

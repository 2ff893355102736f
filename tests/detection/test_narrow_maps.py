"""Stride-2 convolutions of maps that are one column wide."""

import copy

import pytest
import torch
import torch.nn.functional as F

from retinanet_ext.d2 import build_model
from retinanet_ext.detection.convolutions import avoid_wrong_gradients_of_narrow_maps
from tests.builders import batch, small_config

CHANNELS = 64


def fill_free_memory(*shape):
    """Leave NaNs in the memory that the next tensors of ``shape`` get."""
    filled = [torch.full(shape, torch.nan, dtype=dtype) for dtype in (torch.bfloat16, torch.float32) for _ in range(4)]
    del filled


def weight_gradient(convolve, weight, height, width):
    """Of the sum of the outputs, for a map of ones in bfloat16."""
    weight = weight.detach().to(torch.bfloat16).requires_grad_()
    outputs = convolve(torch.ones(1, weight.shape[1], height, width, dtype=torch.bfloat16), weight)
    fill_free_memory(*weight.shape)
    outputs.float().sum().backward()
    return weight.grad.float()


def expected_gradient(height, width):
    """For one channel: how many outputs see a one through each of the 3x3 weights."""
    weight = torch.zeros(1, 1, 3, 3, requires_grad=True)
    F.conv2d(torch.ones(1, 1, height, width), weight, stride=2, padding=1).sum().backward()
    return weight.grad[0, 0]


def plain(x, weight):
    return F.conv2d(x, weight, stride=2, padding=1)


def through_the_module(x, weight):
    conv = torch.nn.Conv2d(*reversed(weight.shape[:2]), 3, stride=2, padding=1, bias=False).to(weight.dtype)
    avoid_wrong_gradients_of_narrow_maps(conv)
    return torch.func.functional_call(conv, {"weight": weight}, x)


def count_wrong(convolve, height, width, repeats=20):
    weight, expected = torch.zeros(CHANNELS, CHANNELS, 3, 3), expected_gradient(height, width)
    return sum(not weight_gradient(convolve, weight, height, width).eq(expected).all() for _ in range(repeats))


def test_the_defect_of_pytorch_is_still_there():
    """Not a test of this package: a skip says that the workaround may go."""
    wrong = count_wrong(plain, 1, 1, repeats=50)
    if wrong == 0:
        pytest.skip(
            f"torch {torch.__version__} on this CPU computes the gradient right. If no supported version of torch on a "
            "CPU with AVX-512 shows the defect, the workaround can go: avoid_wrong_gradients_of_narrow_maps"
        )


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 1), (1, 2), (3, 2), (4, 5)])
def test_weight_gradient_in_bfloat16(size):
    assert count_wrong(through_the_module, *size) == 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 1), (1, 3), (4, 2), (6, 7)])
def test_values_and_gradients_are_those_of_the_plain_convolution(size, bias, generator):
    conv = torch.nn.Conv2d(5, 7, 3, stride=2, padding=1, bias=bias).double()
    twin = copy.deepcopy(conv)
    avoid_wrong_gradients_of_narrow_maps(twin)
    assert type(twin) is not type(conv) and list(twin.state_dict()) == list(conv.state_dict())
    x = torch.randn(2, 5, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    found, expected = twin(x), conv(x)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad(y, (x, *m.parameters()), upstream) for y, m in ((found, twin), (expected, conv))]
    torch.testing.assert_close(*gradients)


def test_other_convolutions_stay_as_they_are():
    class Other(torch.nn.Conv2d):
        pass

    kept = [torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 1, stride=2), Other(4, 4, 3, 2, 1)]
    kept += [torch.nn.Conv2d(4, 4, 3, 2, 1, groups=2), torch.nn.Conv2d(4, 4, 3, 2, 1, padding_mode="reflect")]
    types = [type(conv) for conv in kept]
    avoid_wrong_gradients_of_narrow_maps(torch.nn.ModuleList(kept))
    assert [type(conv) for conv in kept] == types


@pytest.mark.parametrize("size_hw", [(32, 32), (64, 64), (128, 64)])
def test_training_on_small_images_in_bfloat16_is_the_same_every_time(size_hw, generator):
    torch.manual_seed(0)
    model = build_model(small_config())
    inputs = batch(generator, (max(size_hw), max(size_hw)))
    inputs[0]["image"] = inputs[0]["image"][:, : size_hw[0], : size_hw[1]]

    def before_the_backward_pass_of_a_convolution(conv, inputs, outputs):
        outputs.register_hook(lambda gradient: fill_free_memory(*conv.weight.shape))

    for conv in model.backbone.top_block.children():
        conv.register_forward_hook(before_the_backward_pass_of_a_convolution)
    gradients = []
    for _ in range(5):
        model.zero_grad()
        model.loss_normalizer.average.fill_(100.0)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(inputs)
        sum(losses.values()).backward()
        gradients.append([p.grad.clone() for p in model.backbone.top_block.parameters()])
    for found in gradients:
        assert all(torch.isfinite(a).all() and torch.equal(a, b) for a, b in zip(found, gradients[0], strict=True))

"""RoI layers against torchvision, against loops, and against values known by hand."""

import pytest
import torch
import torch.nn.functional as F
import torchvision

from retinanet_ext.instance import roi_align as roi_align_module
from retinanet_ext.instance import roi_align_max as roi_align_max_module
from retinanet_ext.instance.roi_align import pool_samples_reference
from retinanet_ext.instance.roi_layers import (
    ROIAlign,
    ROIAlignMax,
    ROIAlignV2,
    ROIPool,
    ROIWarp,
    ROIWarpMax,
    quantised_boxes,
    roi_pool_reference,
    round_half_away,
)

LAYERS = [ROIAlign, ROIAlignV2, ROIAlignMax, ROIPool, ROIWarp, ROIWarpMax]
SAMPLING = [ROIAlign, ROIAlignV2, ROIAlignMax, ROIWarp, ROIWarpMax]
# On a map of 12 x 16 cells of 4 pixels: inside, without area, partly outside at each side, wholly outside, thin, the
# whole image, on the border, inverted.
ROIS = torch.tensor(
    [
        [0, 3.3, 5.1, 21.7, 30.2],
        [1, 10.0, 10.0, 10.0, 10.0],
        [1, -9.5, -7.3, 12.4, 15.5],
        [0, 50.2, 40.1, 80.9, 70.3],
        [0, 200.0, 100.0, 240.0, 130.0],
        [1, -90.0, -80.0, -40.0, -50.0],
        [1, 2.2, 20.4, 61.9, 21.3],
        [0, 0.0, 0.0, 64.0, 48.0],
        [1, 63.0, 47.0, 64.0, 48.0],
        [0, 30.0, 20.0, 22.0, 15.0],
    ]
)


def features_of(generator, channels=3, dtype=torch.float32, size=(12, 16)):
    values = torch.randn(2, channels, *size, generator=generator).to(dtype)
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


def forward_and_gradient(function, features, weights):
    """The result of ``function`` and the gradient of its weighted sum."""
    pooled = function(features)
    return pooled, torch.autograd.grad((pooled * weights.to(pooled.dtype)).sum(), features)[0]


def check_equal(first, second, features, weights, atol=1e-5):
    for a, b in zip(*(forward_and_gradient(function, features, weights) for function in (first, second))):
        assert a.shape == b.shape and a.isfinite().all()
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("layer, aligned", [(ROIAlignV2, True), (ROIAlign, False)])
def test_roi_align_equals_torchvision(layer, aligned, sampling_ratio, generator):
    features, weights = features_of(generator), torch.randn(len(ROIS), 3, 4, 5, generator=generator)
    check_equal(
        lambda x: layer((4, 5), 0.25, sampling_ratio)(x, ROIS),
        lambda x: torchvision.ops.roi_align(x, ROIS, (4, 5), 0.25, sampling_ratio, aligned),
        features,
        weights,
    )


def test_roi_pool_equals_torchvision_and_loops(generator):
    features, weights = features_of(generator), torch.randn(len(ROIS), 3, 4, 5, generator=generator)
    layer = ROIPool((4, 5), 0.25)
    check_equal(lambda x: layer(x, ROIS), lambda x: torchvision.ops.roi_pool(x, ROIS, (4, 5), 0.25), features, weights)
    check_equal(lambda x: layer(x, ROIS), lambda x: roi_pool_reference(x, ROIS, (4, 5), 0.25), features, weights)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("layer", SAMPLING)
def test_fast_forms_equal_the_reference(layer, sampling_ratio, generator):
    features, weights = features_of(generator), torch.randn(len(ROIS), 3, 3, 2, generator=generator)
    layer = layer((3, 2), 0.25, sampling_ratio)
    # amax would share the gradient of equal samples among them.
    reduce = (lambda s: s.max(0).values) if isinstance(layer, ROIAlignMax) else (lambda s: s.mean(0))
    check_equal(
        lambda x: layer(x, ROIS),
        lambda x: pool_samples_reference(x, layer.regions(ROIS), (3, 2), sampling_ratio, reduce),
        features,
        weights,
    )


@pytest.mark.parametrize("layer", SAMPLING)
def test_gradients_by_finite_differences(layer, generator):
    features = torch.randn(2, 2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.1, 2.3, 9.2, 8.7], [1, -3.3, 4.2, 7.4, 21.0]], dtype=torch.float64)
    layer = layer((2, 2), 0.5, 2)
    assert torch.autograd.gradcheck(lambda x: layer(x, rois), [features])


def test_roi_align_is_grid_sample_inside_the_map(generator):
    # RoI from (8, 4) to (40, 36) pixels, 8 x 8 cells from (2, 1); 4 x 4 bins with one sample in the middle of each.
    features = features_of(generator)
    pooled = ROIAlignV2(4, 0.25, 1)(features, torch.tensor([[1, 8.0, 4.0, 40.0, 36.0]]))
    centres = torch.tensor([1.0, 3.0, 5.0, 7.0])
    x, y = (2 + centres) / 16 * 2 - 1, (1 + centres) / 12 * 2 - 1
    grid = torch.stack([x.expand(4, 4), y[:, None].expand(4, 4)], dim=2)[None]
    sampled = F.grid_sample(features[1:], grid, mode="bilinear", align_corners=False)
    torch.testing.assert_close(pooled, sampled, atol=1e-5, rtol=1e-5)


def ramp():
    """Cell (y, x) of a 6 x 6 map holds 10 y + x."""
    return (torch.arange(6.0)[:, None] * 10 + torch.arange(6.0))[None, None]


def test_the_layers_on_a_ramp_by_hand():
    # Stride 10. RoI from (14, 14) to (34, 34): 1.4 to 3.4 cells. Its centre is 2.4, as an index 1.9.
    roi = torch.tensor([[0, 14.0, 14.0, 34.0, 34.0]])
    value = {layer: layer(1, 0.1, 2)(ramp(), roi).item() for layer in LAYERS}
    assert value[ROIAlignV2] == pytest.approx(11 * 1.9)
    assert value[ROIAlign] == pytest.approx(11 * 2.4)
    # Samples at 1/4 and 3/4 of 2 cells: 1.4 + 1.5 - 0.5.
    assert value[ROIAlignMax] == pytest.approx(11 * 2.4)
    # Rounded to the cells 1, 2, 3, which are [1, 4): the centre is index 2.
    assert value[ROIWarp] == pytest.approx(11 * 2.0)
    assert value[ROIWarpMax] == pytest.approx(11 * (1 + 3 * 0.75 - 0.5))
    assert value[ROIPool] == 33


def test_samples_outside_the_map_by_hand():
    # RoI [-4, 2) x [0, 2) of a map of ones, one bin: with 6 samples a row, index -3.5 to 1.5; those beyond -1 count 0.
    roi = torch.tensor([[0, -4.0, 0.0, 2.0, 2.0]])
    assert ROIAlignV2(1, 1.0, 0)(torch.ones(1, 1, 4, 4), roi).item() == pytest.approx(3 / 6)
    assert ROIAlignMax(1, 1.0, 0)(-torch.ones(1, 1, 4, 4), roi).item() == 0


def test_halves_are_rounded_away_from_zero():
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -2.5, 0.49999997, -1.2])
    assert round_half_away(values).tolist() == [1, 2, 3, -1, -3, 0, -1]
    # 10 and 25 pixels at stride 4 are 2.5 and 6.25: the cells 3 to 6. An inverted RoI has one cell.
    boxes = quantised_boxes(torch.tensor([[0, 10.0, 10, 25, 25], [1, 20.0, 20, 8, 8]]), 0.25)
    assert boxes.tolist() == [[0, 3, 3, 7, 7], [1, 5, 5, 6, 6]]


@pytest.mark.parametrize("layer", LAYERS)
def test_no_rois_stay_in_the_graph(layer, generator):
    features = features_of(generator)
    pooled = layer((3, 2), 0.25, 2)(features, torch.zeros(0, 5))
    assert pooled.shape == (0, 3, 3, 2)
    (gradient,) = torch.autograd.grad(pooled.sum(), features)
    assert gradient.shape == features.shape and gradient.count_nonzero() == 0
    empty = torch.zeros(0, 3, 4, 4, requires_grad=True)
    layer((3, 2), 0.25, 2)(empty, torch.zeros(0, 5)).sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", LAYERS)
def test_half_precision_is_rounded_once(layer, dtype, generator):
    half, layer = features_of(generator, dtype=dtype), layer((3, 2), 0.25, 2)
    weights = torch.randn(len(ROIS), 3, 3, 2, generator=generator).to(dtype)
    wide = half.detach().float().requires_grad_()
    pooled, gradient = forward_and_gradient(lambda x: layer(x, ROIS), half, weights)
    exact, exact_gradient = forward_and_gradient(lambda x: layer(x, ROIS), wide, weights)
    assert pooled.dtype == gradient.dtype == dtype
    torch.testing.assert_close(pooled, exact.to(dtype), atol=0, rtol=0)
    torch.testing.assert_close(gradient, exact_gradient.to(dtype), atol=0, rtol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_autocast_changes_nothing(layer, generator):
    features, layer = features_of(generator), layer((3, 2), 0.25, 2)
    weights = torch.randn(len(ROIS), 3, 3, 2, generator=generator)
    expected = forward_and_gradient(lambda x: layer(x, ROIS), features, weights)
    with torch.autocast("cpu", torch.bfloat16):
        found = forward_and_gradient(lambda x: layer(x, ROIS), features, weights)
    for a, b in zip(found, expected):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=0, rtol=0)


@pytest.mark.parametrize("layer", SAMPLING)
def test_small_blocks_and_other_memory_formats_give_the_same(layer, generator, monkeypatch):
    features, layer = features_of(generator), layer((3, 2), 0.25, 0)
    weights = torch.randn(len(ROIS), 3, 3, 2, generator=generator)
    expected = forward_and_gradient(lambda x: layer(x, ROIS), features, weights)
    monkeypatch.setattr(roi_align_module, "BLOCK_SAMPLES", 50)
    monkeypatch.setattr(roi_align_max_module, "BLOCK_VALUES", 40)
    order = torch.randperm(len(ROIS), generator=generator)
    nchw = features.detach().contiguous().requires_grad_()
    found = forward_and_gradient(lambda x: layer(x, ROIS[order]), nchw, weights[order])
    torch.testing.assert_close(found[0], expected[0][order], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)


def test_only_regions_are_kept_for_the_backward_pass(generator):
    features, kept = features_of(generator), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        pooled = ROIAlignV2(7, 0.25, 2)(features, ROIS)
    assert not kept and pooled.is_contiguous(memory_format=torch.channels_last)
    assert pooled.grad_fn.levels[0].regions.shape == ROIS.shape


def test_a_traced_layer_does_not_depend_on_the_rois_it_was_traced_with(generator):
    features, layer = features_of(generator).detach(), ROIAlignV2(2, 0.25, 2)
    traced = torch.jit.trace(lambda x, rois: layer(x, rois), (features, ROIS[:2]))
    torch.testing.assert_close(traced(features, ROIS), layer(features, ROIS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layer", LAYERS)
def test_rois_that_are_not_finite_are_refused(layer, value, generator):
    with pytest.raises(ValueError, match="inf or NaN"):
        layer(2, 0.25, 2)(features_of(generator), torch.tensor([[0, 1.0, value, 5.0, 6.0]]))


@pytest.mark.parametrize("layer", LAYERS)
def test_rois_of_an_image_that_is_not_there_are_refused(layer, generator):
    with pytest.raises(ValueError, match="legal are 0 to 1"):
        layer(2, 0.25, 2)(features_of(generator), torch.tensor([[2, 1.0, 1.0, 5.0, 6.0]]))

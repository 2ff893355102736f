"""RoIs pooled from a pyramid: levels by hand, and Detectron2's pooler."""

import pytest
import torch

from retinanet_ext.d2 import Boxes
from retinanet_ext.instance.pooler import ROI_POOLER_REGISTRY, ROIPooler, assign_levels

TYPES = ["ROIAlignV2", "ROIAlign", "ROIAlignMax", "ROIPool", "ROIWarp", "ROIWarpMax"]
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def maps_of(generator, dtype=torch.float32, size=(64, 96), num_images=2):
    maps = [torch.randn(num_images, 3, int(size[0] * s), int(size[1] * s), generator=generator) for s in SCALES]
    return [m.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_() for m in maps]


def boxes_of(generator, count, size=(64, 96), factory=Boxes):
    """Boxes of 4 to 96 pixels a side, some beyond the image, then one without area."""
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]])
    sides = 4 + torch.rand(count, 2, generator=generator) * 92
    return factory(torch.cat([torch.cat([corner, corner + sides], 1), torch.tensor([[9.0, 9.0, 9.0, 9.0]])]))


def gradients(pooled, maps, weights):
    return torch.autograd.grad((pooled * weights.to(pooled.dtype)).sum(), maps)


def test_levels_at_their_borders_by_hand():
    sides = [0.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 5000.0]
    boxes = [
        Boxes(torch.tensor([[7.0, 3.0, 7.0 + side, 3.0 + side] for side in part])) for part in (sides[:3], sides[3:])
    ]
    assert assign_levels(boxes, 2, 5, 224, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # Equal area, other shape: 56 x 224 is as 112 x 112. Levels 3 to 4 alone clamp at both ends.
    assert assign_levels([Boxes(torch.tensor([[0.0, 0.0, 56.0, 224.0]]))], 2, 5, 224, 4).tolist() == [1]
    assert assign_levels(boxes, 3, 4, 224, 4).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    # Another canonical box: twice as small a box goes to the same level.
    assert assign_levels([Boxes(torch.tensor([[0.0, 0.0, 112.0, 112.0]]))], 2, 5, 112, 4).tolist() == [2]


@pytest.mark.parametrize("pooler_type", TYPES)
def test_each_box_is_pooled_from_its_level(pooler_type, generator):
    maps, boxes = maps_of(generator), [boxes_of(generator, 9), boxes_of(generator, 5)]
    arguments = {"output_size": (3, 2), "sampling_ratio": 0}
    pooled = ROIPooler(**arguments, scales=SCALES, pooler_type=pooler_type, canonical_box_size=32)(maps, boxes)
    assert pooled.shape == (16, 3, 3, 2)
    levels = assign_levels(boxes, 2, 5, 32, 4).tolist()
    assert set(levels) == {0, 1, 2, 3}
    weights = torch.randn(pooled.shape, generator=generator)
    layers = [ROI_POOLER_REGISTRY.get(pooler_type)(**arguments, spatial_scale=scale) for scale in SCALES]
    rois = [(image, box) for image, part in enumerate(boxes) for box in part.tensor.tolist()]
    expected = torch.cat(
        [layers[level](maps[level], torch.tensor([[image, *box]])) for level, (image, box) in zip(levels, rois)]
    )
    torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=1e-6)
    for a, b in zip(gradients(pooled, maps, weights), gradients(expected, maps, weights)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("pooler_type", ["ROIAlignV2", "ROIAlign", "ROIPool"])
@pytest.mark.parametrize("scales", [SCALES, SCALES[2:3]])
def test_equals_detectron2(pooler_type, sampling_ratio, scales, generator):
    poolers = pytest.importorskip("detectron2.modeling.poolers")
    structures = pytest.importorskip("detectron2.structures")
    boxes = [boxes_of(generator, 40), boxes_of(generator, 25)]
    maps = maps_of(generator)[2 if len(scales) == 1 else 0 :][: len(scales)]
    arguments = (7, scales, sampling_ratio, pooler_type, 48, 4)
    theirs = poolers.ROIPooler(*arguments)(maps, [structures.Boxes(part.tensor) for part in boxes])
    ours = ROIPooler(*arguments)(maps, boxes)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weights = torch.randn(ours.shape, generator=generator)
    for a, b in zip(gradients(ours, maps, weights), gradients(theirs, maps, weights)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooler_type", TYPES)
def test_no_boxes_and_no_images_stay_in_the_graph(pooler_type, generator):
    pooler = ROIPooler((3, 2), SCALES, 2, pooler_type)
    for num_images in (2, 0):
        maps = maps_of(generator, num_images=num_images)
        pooled = pooler(maps, [Boxes(torch.zeros(0, 4))] * num_images)
        assert pooled.shape == (0, 3, 3, 2)
        for gradient, features in zip(torch.autograd.grad(pooled.sum(), maps), maps):
            assert gradient.shape == features.shape and gradient.count_nonzero() == 0


@pytest.mark.parametrize("pooler_type", TYPES)
def test_half_precision_and_autocast(pooler_type, generator):
    maps, boxes = maps_of(generator, torch.bfloat16), [boxes_of(generator, 9), boxes_of(generator, 5)]
    pooler = ROIPooler((3, 2), SCALES, 2, pooler_type, canonical_box_size=32)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooler(maps, boxes)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled, pooler([m.float() for m in maps], boxes).bfloat16(), atol=0, rtol=0)
    assert all(g.dtype == torch.bfloat16 for g in gradients(pooled, maps, torch.ones(pooled.shape)))


def test_a_registered_layer_of_another_kind_is_called_for_each_level(generator):
    def factory(output_size, spatial_scale, sampling_ratio):
        return lambda features, rois: torch.full((len(rois), 3, *output_size), 1 / spatial_scale)

    ROI_POOLER_REGISTRY.register(factory, name="StrideOnly")
    try:
        pooler = ROIPooler(1, SCALES, 0, "StrideOnly")
        sides = torch.tensor([448.0, 10.0, 224.0, 112.0, 448.0])
        boxes = [Boxes(torch.stack([sides * 0, sides * 0, sides, sides], 1)), Boxes(torch.zeros(0, 4))]
        assert pooler(maps_of(generator), boxes)[:, 0, 0, 0].tolist() == [32, 4, 16, 8, 32]
    finally:
        ROI_POOLER_REGISTRY._obj_map.pop("StrideOnly")


def test_an_unknown_type_is_refused_with_the_nearest_names():
    with pytest.raises(KeyError, match="POOLER_TYPE.*'ROIAlignV3'.*registered: ROIAlignV2"):
        ROIPooler(7, SCALES, 0, "ROIAlignV3")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scales": []}, "scales is"),
        ({"scales": [1 / 8, 1 / 4]}, "scales is .* finest first"),
        ({"scales": [1 / 4, 1 / 16]}, "scales is .* half of the one before"),
        ({"scales": [0.3]}, "scales is .* powers of two"),
        ({"scales": [0.0]}, "scales is .* above 0"),
        ({"output_size": (7, 7, 7)}, "output_size is"),
        ({"output_size": 0}, "output_size is"),
        ({"canonical_box_size": 0}, "canonical_box_size is 0"),
    ],
)
def test_arguments_that_are_not_legal(change, message):
    arguments = {"output_size": 7, "scales": SCALES, "sampling_ratio": 0, "pooler_type": "ROIAlignV2"}
    with pytest.raises(ValueError, match=message):
        ROIPooler(**{**arguments, **change})


def test_inputs_that_do_not_fit(generator):
    maps, boxes, pooler = maps_of(generator), [boxes_of(generator, 2)] * 2, ROIPooler(7, SCALES, 0, "ROIAlignV2")
    with pytest.raises(ValueError, match="box_lists has the boxes of 1 images; legal are 2"):
        pooler(maps, boxes[:1])
    with pytest.raises(ValueError, match="x is 3 maps; legal is a list of 4"):
        pooler(maps[:3], boxes)
    with pytest.raises(ValueError, match="x is a tensor"):
        pooler(maps[0], boxes)


@pytest.mark.parametrize("pooler_type", TYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_boxes_that_are_not_finite_are_refused(pooler_type, value, generator):
    boxes = [boxes_of(generator, 2), Boxes(torch.tensor([[1.0, 1.0, value, 9.0]]))]
    with pytest.raises(ValueError, match="inf or NaN"):
        ROIPooler(7, SCALES, 0, pooler_type)(maps_of(generator), boxes)

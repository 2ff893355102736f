"""Masks and keypoints of `lite`: side by side with Detectron2's, and against pycocotools and cases by hand."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from retinanet_ext.d2 import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from retinanet_ext.lite import structures as lite

ENGINES = [lite]
try:
    import detectron2.structures as d2
except ImportError:
    pass
else:
    ENGINES.append(d2)
needs_both = pytest.mark.skipif(len(ENGINES) < 2, reason="compares lite with Detectron2, which is not installed")


def polygons(seed=0, count=12):
    """Stars, some with two parts, one without any part, around and beyond a 50x60 image."""
    rng = np.random.default_rng(seed)
    objects = []
    for index in range(count):
        parts = []
        for _ in range((index + 1) % 3):
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
            radii = rng.uniform(2, 25, len(angles))
            center = rng.uniform(0, 55, 2)
            points = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            parts.append(points.reshape(-1))
        objects.append(parts)
    return objects


def boxes(seed, count):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-5, 40, (count, 2))
    sides = rng.uniform(0.3, 45, (count, 2))
    sides[: count // 4] *= 0.05  # also boxes much smaller than a pixel
    return torch.from_numpy(np.concatenate([corners, corners + sides], axis=1)).float()


def plain(value):
    kind = type(value).__name__
    if kind in ("BitMasks", "Keypoints", "Boxes"):
        return kind, plain(value.tensor)
    if kind == "PolygonMasks":
        return kind, [[p.tolist() for p in polygon_list] for polygon_list in value.polygons]
    if kind == "Instances":
        return value.image_size, {name: plain(field) for name, field in value.get_fields().items()}
    if isinstance(value, torch.Tensor):
        return str(value.dtype), list(value.shape), value.tolist()
    return value


def both(function):
    results = []
    for engine in ENGINES:
        try:
            results.append(plain(function(engine)))
        except (AssertionError, ValueError, TypeError, IndexError, RuntimeError, UnboundLocalError):
            results.append("error")
    return results


INDICES = [0, -1, 40, slice(1, 5), slice(0, 0), [0, 3], torch.tensor([5, 0, 0]), torch.arange(12) % 3 == 0]
INDICES += [torch.zeros(12, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)]
KEYPOINTS = torch.arange(12 * 4 * 3.0).view(12, 4, 3)


def bits(engine):
    return engine.BitMasks.from_polygon_masks(engine.PolygonMasks(polygons()), 50, 60)


MAKERS = {
    "polygons": lambda engine: engine.PolygonMasks(polygons()),
    "bits": bits,
    "keypoints": lambda engine: engine.Keypoints(KEYPOINTS),
}
CALLS = {
    "len": len,
    "repr": repr,
    "device": lambda m: str(m.device),
    "to": lambda m: m.to("cpu"),
    "cat": lambda m: type(m).cat([m, m[:1], m[:0]]),
    "cat nothing": lambda m: type(m).cat([]),
    "nonempty": lambda m: m.nonempty() if hasattr(m, "nonempty") else None,
    "bounding boxes": lambda m: m.get_bounding_boxes() if hasattr(m, "get_bounding_boxes") else None,
    "area": lambda m: m.area().shape if hasattr(m, "area") else None,
    "iteration": lambda m: [[plain(torch.as_tensor(np.asarray(part))) for part in element] for element in m],
}


# Detectron2's Keypoints stop with an error at an integer index, and so at iteration.
ONLY_LITE = {("keypoints", "iteration"), ("keypoints", "0"), ("keypoints", "-1")}


@needs_both
@pytest.mark.parametrize("maker, call", [(m, c) for m in MAKERS for c in CALLS if (m, c) not in ONLY_LITE])
def test_methods(maker, call):
    ours, theirs = both(lambda engine: CALLS[call](MAKERS[maker](engine)))
    assert ours == theirs


@needs_both
@pytest.mark.parametrize("maker, index", [(m, i) for m in MAKERS for i in INDICES if (m, str(i)) not in ONLY_LITE])
def test_indexing(maker, index):
    ours, theirs = both(lambda engine: MAKERS[maker](engine)[index])
    assert ours == theirs


@needs_both
@pytest.mark.parametrize(
    "source",
    [
        lambda e: e.PolygonMasks(()),
        lambda e: e.PolygonMasks([np.zeros(6)]),
        lambda e: e.PolygonMasks([[[0, 0, 1, 1]]]),
        lambda e: e.PolygonMasks([[[0, 0, 1, 1, 2, 2, 3]]]),
        lambda e: e.PolygonMasks([[torch.arange(6)], [[0, 0, 4, 0, 4, 3]]]),
        lambda e: e.PolygonMasks([]),
        lambda e: e.BitMasks(torch.zeros(3, 4)),
        lambda e: e.BitMasks(np.array([[[0, 1], [2, 0]]], dtype=np.uint8)),
        lambda e: e.BitMasks(torch.zeros(2, 3, 4)).image_size,
        lambda e: e.Keypoints(torch.zeros(2, 3, 2)),
        lambda e: e.Keypoints(np.zeros((2, 3, 3))),
        lambda e: e.Keypoints([[[1, 2, 2]]]),
    ],
)
def test_constructors(source):
    ours, theirs = both(source)
    assert ours == theirs


@needs_both
@pytest.mark.parametrize("size", [1, 14, 28, 56])
@pytest.mark.parametrize("maker", ["polygons", "bits"])
def test_crop_and_resize(maker, size):
    for seed in range(6):
        ours, theirs = both(lambda e, seed=seed: MAKERS[maker](e).crop_and_resize(boxes(seed, 12), size))
        assert ours == theirs
    ours, theirs = both(lambda e: MAKERS[maker](e)[:0].crop_and_resize(torch.zeros(0, 4), size))
    assert ours == theirs
    assert both(lambda e: MAKERS[maker](e).crop_and_resize(boxes(0, 11), size)) == ["error", "error"]


@needs_both
def test_area():
    ours, theirs = (engine.PolygonMasks(polygons()).area() for engine in ENGINES)
    assert torch.allclose(ours, theirs.double(), rtol=1e-12)


@needs_both
def test_instances_hold_them():
    def run(engine):
        image = engine.Instances((50, 60), **{name: maker(engine) for name, maker in MAKERS.items()})
        return engine.Instances.cat([image[torch.arange(12) > 8], image[2:4].to("cpu")])[torch.tensor([4, 0])]

    ours, theirs = both(run)
    assert ours == theirs


# ---- independent truth, on the engine that runs


def test_polygons_become_the_bits_that_pycocotools_draws():
    masks = BitMasks.from_polygon_masks(PolygonMasks(polygons()), 50, 60)
    for mask, parts in zip(masks, polygons()):
        if parts:
            encoded = mask_util.merge(mask_util.frPyObjects([p.tolist() for p in parts], 50, 60))
            assert int(mask.sum()) == mask_util.area(encoded)
            assert np.array_equal(mask.numpy(), mask_util.decode(encoded))
        else:
            assert not mask.any()


def test_area_of_a_triangle_and_a_square_with_a_second_part():
    triangle, square = [0.0, 0, 4, 0, 4, 3], [1.0, 1, 3, 1, 3, 3, 1, 3]
    assert PolygonMasks([[triangle], [square, triangle]]).area().tolist() == [6, 10]


def test_a_mask_through_its_left_half_is_full_and_through_its_right_half_empty():
    square = [2.0, 2, 6, 2, 6, 6, 2, 6]
    halves = torch.tensor([[2.0, 2, 6, 6], [4, 2, 8, 6], [6, 2, 10, 6]])
    for masks in (PolygonMasks([[square]] * 3), BitMasks.from_polygon_masks([[np.array(square)]] * 3, 12, 12)):
        whole, half, none = masks.crop_and_resize(halves, 8)
        assert whole.all() and not none.any()
        assert half[:, :4].all() and not half[:, 4:].any()


def test_boxes_of_masks():
    square = [2.0, 3, 6, 3, 6, 9, 2, 9]
    assert PolygonMasks([[square]]).get_bounding_boxes().tensor.tolist() == [[2, 3, 6, 9]]
    masks = torch.zeros(2, 12, 15)
    masks[0, 3:9, 2:6] = 1
    found = BitMasks(masks).get_bounding_boxes()
    assert isinstance(found, Boxes)
    assert found.tensor.tolist() == [[2, 3, 6, 9], [0, 0, 0, 0]]


def test_indexing_keeps_fields_together():
    image = Instances((50, 60), gt_masks=PolygonMasks(polygons()), gt_keypoints=Keypoints(KEYPOINTS))
    chosen = image[torch.arange(12) % 5 == 1]
    assert [len(parts) for parts in chosen.gt_masks.polygons] == [2, 1, 0]
    assert torch.equal(chosen.gt_keypoints.tensor, KEYPOINTS[[1, 6, 11]])


def test_an_integer_selects_one_object():
    keypoints = lite.Keypoints(KEYPOINTS)
    assert torch.equal(keypoints[-1].tensor, KEYPOINTS[11:])
    assert torch.equal(torch.stack(list(keypoints)), KEYPOINTS)


def test_messages_of_lite_name_what_is_wrong():
    with pytest.raises(ValueError, match="object 1: .*at least 6 numbers; found shape .4,."):
        lite.PolygonMasks([[], [[0, 0, 1, 1]]])
    with pytest.raises(ValueError, match="2 masks need boxes of shape .2, 4., found .3, 4."):
        lite.PolygonMasks([[], []]).crop_and_resize(torch.zeros(3, 4), 7)
    with pytest.raises(ValueError, match="x, y, visibility; found .2, 3, 2."):
        lite.Keypoints(torch.zeros(2, 3, 2))

"""Boxes, Instances and ImageList of `lite` against Detectron2's, on the same inputs."""

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="compares lite with Detectron2, which is not installed")

import detectron2.structures as d2
from detectron2.modeling.postprocessing import detector_postprocess as d2_postprocess

from retinanet_ext.lite import structures as lite
from retinanet_ext.lite.meta_arch import detector_postprocess

ENGINES = (lite, d2)
# Ordinary, partly outside, without width, inverted, touching the border, a fraction of a pixel.
ROWS = [[0, 0, 10, 10], [-5, -5, 20, 30], [3, 3, 3, 8], [6, 6, 4, 4], [2, 2, 15, 12], [0.25, 0.5, 0.75, 1.5]]


def both(function):
    """The function's results for the two engines; an error becomes the word "error"."""
    results = []
    for engine in ENGINES:
        try:
            results.append(function(engine))
        except (
            AssertionError,
            ValueError,
            TypeError,
            IndexError,
            NotImplementedError,
            RuntimeError,
            KeyError,
        ):
            results.append("error")
    return results


def plain(value):
    """Tensors, boxes and instances as lists, so that results can be compared across engines."""
    if isinstance(value, (lite.Boxes, d2.Boxes)):
        return ("Boxes", plain(value.tensor))
    if isinstance(value, (lite.Instances, d2.Instances)):
        return (value.image_size, {name: plain(field) for name, field in value.get_fields().items()})
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return (str(value.dtype), list(value.shape), value.tolist())
    return value


def assert_alike(function):
    ours, theirs = both(function)
    assert plain(ours) == plain(theirs)


def after(obj, method, *args):
    getattr(obj, method)(*args)
    return obj


@pytest.mark.parametrize(
    "source",
    [
        ROWS,
        np.array(ROWS),
        torch.tensor(ROWS).double(),
        torch.tensor(ROWS).long(),
        [],
        torch.zeros(0),
        torch.zeros(0, 5),
        torch.zeros(4),
        torch.zeros(2, 5),
    ],
)
def test_boxes_constructor(source):
    assert_alike(lambda engine: engine.Boxes(source))


@pytest.mark.parametrize(
    "call",
    [
        lambda b: b.area(),
        lambda b: b.get_centers(),
        lambda b: b.nonempty(),
        lambda b: b.nonempty(5),
        lambda b: b.inside_box((12, 15)),
        lambda b: b.inside_box((12, 15), 5),
        lambda b: after(b, "clip", (12, 15)),
        lambda b: after(b, "scale", 1.5, 0.3),
        lambda b: type(b).cat([b, b[:0], b[1:2]]),
        lambda b: type(b).cat([]),
        lambda b: type(b).cat([b, 3]),
        lambda b: b.to("cpu"),
        lambda b: b.clone(),
        lambda b: len(b),
        lambda b: repr(b),
        lambda b: [plain(row) for row in b],
        lambda b: str(b.device),
    ],
)
def test_boxes_methods(call):
    assert_alike(lambda engine: call(engine.Boxes(ROWS)))


INDICES = [0, -1, 9, slice(1, 3), [0, 1], torch.tensor([0, 2]), np.array([1, 0]), (slice(None), 0)]


@pytest.mark.parametrize("index", [*INDICES, torch.tensor([True, False] * 3), np.array([True, False] * 3)])
def test_boxes_indexing(index):
    assert_alike(lambda engine: engine.Boxes(ROWS)[index])


def test_boxes_clip_refuses_nan():
    assert both(lambda engine: engine.Boxes([[0, float("nan"), 1, 1]]).clip((3, 3))) == ["error", "error"]


@pytest.mark.parametrize("modes", [("XYXY_ABS", "XYWH_ABS"), ("XYWH_ABS", "XYXY_ABS"), ("XYXY_ABS", "XYXY_ABS")])
@pytest.mark.parametrize(
    "box",
    [
        [1, 2, 3, 4],
        (1, 2, 3, 4),
        [1.5, 2, 3, 4],
        [0.1, 0.2, 0.3, 0.7],
        [16777217.0, 0, 1, 1],
        np.array([[1, 2, 3, 4.0]]),
        np.array([[1, 2, 3, 4]], dtype=np.float32),
        np.zeros((0, 4)),
        torch.tensor([[1, 2, 3, 4]]),
        torch.tensor([[1, 2, 3, 4.0]], dtype=torch.float64),
    ],
)
def test_box_mode_convert(box, modes):
    def convert(engine):
        return engine.BoxMode.convert(box, *(engine.BoxMode[mode] for mode in modes))

    ours, theirs = both(convert)
    assert type(ours) is type(theirs)
    assert plain(ours) == plain(theirs)


def test_box_mode_numbers():
    assert {m.name: int(m) for m in lite.BoxMode} == {m.name: int(m) for m in d2.BoxMode}


@pytest.mark.parametrize(
    "box, source", [([1, 2, 3], "XYXY_ABS"), ([], "XYXY_ABS"), ([[1, 2, 3, 4]], "XYXY_ABS"), ([1, 2, 3, 4], "XYXY_REL")]
)
def test_box_mode_refusals(box, source):
    def convert(engine):
        return engine.BoxMode.convert(box, engine.BoxMode[source], engine.BoxMode.XYWH_ABS)

    assert both(convert) == ["error", "error"]


def make_instances(engine, size=(10, 20), **fields):
    boxes = engine.Boxes(torch.arange(12.0).view(3, 4))
    return engine.Instances(size, pred_boxes=boxes, scores=torch.tensor([0.1, 0.2, 0.3]), **fields)


@pytest.mark.parametrize(
    "call",
    [
        lambda i: i,
        lambda i: len(i),
        lambda i: i.image_size,
        lambda i: list(i.get_fields()),
        lambda i: (i.has("scores"), i.has("foo")),
        lambda i: i.get("scores"),
        lambda i: i.get("foo"),
        lambda i: i.remove("foo"),
        lambda i: after(i, "remove", "scores"),
        lambda i: after(i, "set", "labels", [1, 2, 3]),
        lambda i: after(i, "set", "labels", [1, 2]),
        lambda i: setattr(i, "scores", torch.zeros(2)),
        lambda i: setattr(i, "image_size", (3, 3)),
        lambda i: iter(i),
        lambda i: i.to("cpu"),
        lambda i: type(i).cat([i, i]),
        lambda i: type(i).cat([]),
        lambda i: type(i).cat([i, type(i)((11, 20), **i.get_fields())]),
        lambda i: type(i).cat([i, type(i)((10, 20), scores=torch.zeros(1))]),
        lambda i: repr(i),
        lambda i: str(i),
    ],
)
def test_instances_methods(call):
    assert_alike(lambda engine: call(make_instances(engine)))
    assert_alike(lambda engine: hasattr(make_instances(engine), "foo"))


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        3,
        -4,
        slice(1, None),
        [0, 1],
        torch.tensor([2, 0]),
        torch.tensor([True, False, True]),
        np.array([0, 2]),
    ],
)
def test_instances_indexing(index):
    assert_alike(lambda engine: make_instances(engine)[index])


def test_instances_with_lists():
    assert_alike(lambda engine: make_instances(engine, names=["a", "b", "c"])[1:])
    assert_alike(lambda engine: engine.Instances.cat([make_instances(engine, names=["a", "b", "c"])] * 2))
    assert_alike(lambda engine: engine.Instances.cat([engine.Instances((1, 1), q=(1,))] * 2))
    assert_alike(lambda engine: len(engine.Instances((1, 1))))


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"size_divisibility": 1},
        {"size_divisibility": 4, "pad_value": 2.0},
        {"padding_constraints": {"size_divisibility": 8}},
        {"padding_constraints": {"square_size": 16}},
        {"size_divisibility": 4, "padding_constraints": {"square_size": 0, "size_divisibility": 32}},
        {"padding_constraints": {"square_size": 10, "size_divisibility": 8}},
    ],
)
@pytest.mark.parametrize("shapes", [[(3, 5, 7), (3, 6, 4)], [(5, 7), (6, 4)], [(3, 5, 7)], [(3, 5, 7), (1, 5, 7)], []])
def test_image_list(shapes, kwargs):
    # An image greater than square_size is not tested: Detectron2 cuts it if it is the only image; lite refuses it.
    def make(engine):
        images = [torch.arange(float(np.prod(shape))).view(shape) for shape in shapes]
        batch = engine.ImageList.from_tensors(images, **kwargs)
        return plain(batch.tensor), batch.image_sizes, len(batch), [plain(image) for image in batch]

    assert_alike(make)


@pytest.mark.parametrize("size", [(20, 30), (10, 20), (7, 3)])
def test_detector_postprocess(size):
    def run(engine):
        results = engine.Instances((10, 20), pred_boxes=engine.Boxes(ROWS), scores=torch.arange(6.0))
        return (detector_postprocess if engine is lite else d2_postprocess)(results, *size)

    assert_alike(run)


@pytest.mark.parametrize("size", [(20, 30), (7, 3)])
def test_detector_postprocess_of_masks_keypoints_and_proposals(size, generator):
    masks, points = torch.rand(6, 1, 5, 5, generator=generator), 10 * torch.rand(6, 3, 3, generator=generator)

    def run(engine, field):
        results = engine.Instances((10, 20), **{field: engine.Boxes(ROWS)}, scores=torch.arange(6.0))
        if field == "pred_boxes":
            results.pred_masks, results.pred_keypoints = masks, points
        scaled = (detector_postprocess if engine is lite else d2_postprocess)(results, *size)
        assert results.get_fields().get("pred_keypoints", points) is points
        return scaled

    assert_alike(lambda engine: run(engine, "pred_boxes"))
    assert_alike(lambda engine: run(engine, "proposal_boxes"))

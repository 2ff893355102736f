"""A traced model computes what the model computes, at any image size; its operations can be counted."""

import io
import warnings

import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.d2 import build_model
from tests.builders import batch, small_config

pytestmark = pytest.mark.filterwarnings("ignore:.*:torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")


@pytest.fixture
def model():
    torch.manual_seed(0)
    # Frozen norms fold into the convolutions before them. Without a checkpoint they do not normalise, so that the
    # weights of the last layers have to be small for scores on both sides of the threshold, and for sane boxes.
    model = build_model(small_config("MODEL.RESNETS.NORM", "FrozenBN")).eval().requires_grad_(False)
    features, logits, deltas = model.network(model.preprocess_image(images((96, 128))).tensor)
    model.head.cls_score.weight.mul_(1.5 / logits[0].std())
    model.head.bbox_pred.weight.mul_(0.1 / deltas[0].std())
    return model


def images(*sizes_hw):
    generator = torch.Generator().manual_seed(1)
    return [{"image": inputs["image"].float()} for inputs in batch(generator, *sizes_hw)]


def saved_and_loaded(traced):
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    return torch.jit.load(file)


class Network(torch.nn.Module):
    """The part of a model that maps pixels to logits and deltas."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        _, logits, deltas = self.model.network(pixels)
        return (*logits, *deltas)


def test_a_traced_network_runs_at_another_size_and_batch(model):
    first, other = (model.preprocess_image(images(*sizes)).tensor for sizes in ([(96, 128)], [(160, 64), (128, 64)]))
    traced = saved_and_loaded(torch.jit.trace(Network(model), (first,)))
    for found, expected in zip(traced(other), Network(model)(other), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_exported_network_gives_the_same(model):
    pixels = model.preprocess_image(images((96, 128))).tensor
    exported = torch.export.export(Network(model), (pixels,)).module()
    for found, expected in zip(exported(pixels), Network(model)(pixels), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


needs_detectron2 = pytest.mark.skipif(d2.ENGINE != "detectron2", reason="needs the engine detectron2")


@needs_detectron2
@pytest.mark.parametrize("size_hw", [(160, 96), (64, 224)])
def test_a_model_traced_at_one_size_finds_the_same_boxes_at_another(model, size_hw):
    from detectron2.export import TracingAdapter

    traced_inputs, inputs = images((96, 128)), images(size_hw)
    adapter = TracingAdapter(model, traced_inputs)
    traced = saved_and_loaded(torch.jit.trace(adapter, adapter.flattened_inputs))
    found = adapter.outputs_schema(traced(inputs[0]["image"]))[0]["instances"]
    expected = model(inputs)[0]["instances"]
    assert len(found) == len(expected) > 20
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-2)
    assert torch.equal(found.pred_classes, expected.pred_classes)


@needs_detectron2
@pytest.mark.parametrize("traced_image", ["with detections", "without"])
def test_a_model_traced_on_an_image_with_detections_runs_on_one_without_and_the_other_way_round(model, traced_image):
    from detectron2.export import TracingAdapter

    inputs = {"with detections": images((96, 128)), "without": images((64, 96))}
    # Of an image of mean colour every feature is 0, so that every score is the prior.
    inputs["without"][0]["image"][:] = model.pixel_mean
    adapter = TracingAdapter(model, inputs[traced_image])
    traced = torch.jit.trace(adapter, adapter.flattened_inputs)
    for name, (image,) in inputs.items():
        found = adapter.outputs_schema(traced(image["image"]))[0]["instances"]
        assert len(found) == len(model([image])[0]["instances"])
        assert (len(found) > 20) == (name == "with detections")


@needs_detectron2
def test_the_flop_counter_counts_what_it_counts_in_detectron2s_retinanet():
    from detectron2.utils.analysis import FlopCountAnalysis

    counts = []
    for name in ("FocalRetinaNet", "RetinaNet"):
        model = build_model(small_config("MODEL.META_ARCHITECTURE", name, "MODEL.RESNETS.NORM", "FrozenBN")).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            counts.append(FlopCountAnalysis(model, images((96, 128))).by_operator())
    ours, theirs = counts
    assert theirs.pop("batch_norm") > 0  # ours are folded into the weights
    assert ours["conv"] == theirs["conv"] > 1e8
    assert ours == theirs

"""The faster copy of FaceNet gives its embeddings."""

import functools

import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.config.loading import load_config
from retinanet_ext.inference.fast_copy import inference_model, optimize_for_inference
from tests.builders import faces

SIZES = {"facenet_nn4": (64, 64), "facenet_nns2": (140, 116), "resnet": (64, 64)}


def config(backbone, norm, *opts):
    overrides = ["MODEL.META_ARCHITECTURE", "FaceNet", "MODEL.DEVICE", "cpu", "MODEL.FACENET.NORM", norm]
    overrides += ["MODEL.BACKBONE.NAME", f"build_{backbone}_backbone", "MODEL.RESNETS.DEPTH", "18"]
    overrides += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.NORM", norm or "GN"]
    return load_config(None, [*overrides, *opts], datasets=False)


def make_model(backbone, norm):
    torch.manual_seed(0)
    model = d2.build_model(config(backbone, norm)).eval()
    for name, buffer in model.named_buffers():  # statistics that a trained model could have
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
        elif name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    return model


def embeddings(model, inputs):
    with torch.no_grad():
        return torch.stack([output["embedding"] for output in model(inputs)])


FORMS = [("facenet_nn4", ""), ("facenet_nn4", "BN"), ("facenet_nns2", "GN"), ("resnet", "FrozenBN")]


@pytest.mark.parametrize("backbone, norm", FORMS)
def test_float32_and_bfloat16(backbone, norm, generator):
    model = make_model(backbone, norm)
    inputs = faces(generator, SIZES[backbone], (0, 1, 2))
    expected = embeddings(model, inputs)
    fast = optimize_for_inference(model)
    assert not [m for m in fast.modules() if isinstance(m, (d2.FrozenBatchNorm2d, torch.nn.BatchNorm2d))]
    torch.testing.assert_close(embeddings(fast, inputs), expected, rtol=0, atol=1e-5)
    half = optimize_for_inference(model, dtype="bfloat16")
    layers = [m for m in half.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert {parameter.dtype for layer in layers for parameter in layer.parameters()} == {torch.bfloat16}
    found = embeddings(half, inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    # Squared distances of two people are near 1.
    assert (found - expected).square().sum(dim=1).max() < 0.05


@pytest.mark.parametrize("backbone, norm", FORMS[:3])
def test_the_network_can_be_compiled(backbone, norm, generator, monkeypatch):
    # Only traced, because a C++ compiler would take a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    model = make_model(backbone, norm)
    inputs = faces(generator, SIZES[backbone], (0, 1))
    fast = optimize_for_inference(model, compile=True)
    torch.testing.assert_close(embeddings(fast, inputs), embeddings(model, inputs), rtol=0, atol=1e-5)
    assert fast.network.is_checked


def test_the_config_asks_for_the_copy(generator):
    cfg = config("facenet_nn4", "", "TEST.DTYPE", "bfloat16")
    assert inference_model(cfg, d2.build_model(cfg)).compute_dtype == torch.bfloat16

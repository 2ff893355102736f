import functools
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from retinanet_ext.d2 import ENGINE, build_model
from retinanet_ext.inference.fast_copy import MAX_GRAPHS, CudaGraphs, inference_model, optimize_for_inference
from retinanet_ext.training.trainer import Trainer
from tests.builders import batch, shapes_config, small_config

needs_cuda = "CUDA graphs need TEST_DEVICE=cuda"


@pytest.fixture
def model(device):
    torch.manual_seed(0)
    model = build_model(small_config("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "MODEL.DEVICE", str(device)))
    # Scores further apart than the initial ones, so that rounding does not change which are best.
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.3)
    return model


def detections(model, inputs):
    with torch.no_grad():
        return [output["instances"] for output in model(inputs)]


def assert_same_detections(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=tolerance)
        assert (a.pred_classes == b.pred_classes).float().mean() > 0.95
        same = a.pred_classes == b.pred_classes
        torch.testing.assert_close(a.pred_boxes.tensor[same], b.pred_boxes.tensor[same], rtol=0, atol=100 * tolerance)


def test_the_copy_gives_the_same_detections_and_leaves_the_model_alone(model, generator):
    inputs = batch(generator, (64, 96), (96, 64))
    fast = optimize_for_inference(model)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not fast.training and not any(p.requires_grad for p in fast.parameters())
    assert_same_detections(detections(fast, inputs), detections(model.eval(), inputs), 1e-4)


def test_bfloat16_computes_convolutions_in_it_and_gives_float32(model, generator):
    inputs = batch(generator, (64, 96))
    fast = optimize_for_inference(model, dtype="bfloat16")
    pixels = fast.preprocess_image(inputs).tensor
    with torch.no_grad():
        found, expected = fast.network(pixels), model.eval().network(pixels)
    for levels, expected_levels in zip(found, expected, strict=True):
        for a, b in zip(levels, expected_levels, strict=True):
            assert a.dtype == torch.bfloat16
            assert (a.float() - b).abs().max() < 0.05 * b.abs().max()
    result = detections(fast, inputs)[0]
    assert result.scores.dtype == result.pred_boxes.tensor.dtype == torch.float32
    torch.testing.assert_close(result.scores, detections(model, inputs)[0].scores, rtol=0, atol=0.03)


LITE_NORMS = ["", "BN", "SyncBN", "FrozenBN", "GN"]


@pytest.mark.parametrize("norm", LITE_NORMS if ENGINE == "lite" else [*LITE_NORMS, "LN", "nnSyncBN", "naiveSyncBN"])
@pytest.mark.parametrize("part", ["RESNETS", "FPN", "RETINANET"])
def test_bfloat16_with_every_norm(part, norm, generator, device):
    if (part, norm) == ("RESNETS", ""):
        pytest.skip("without norms a random network explodes")
    torch.manual_seed(0)
    model = build_model(small_config(f"MODEL.{part}.NORM", norm, "MODEL.DEVICE", str(device))).eval()
    for name, buffer in model.named_buffers():  # statistics that a trained model could have
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    fast = optimize_for_inference(model, dtype="bfloat16")
    inputs = batch(generator, (160, 224))  # 2x2 on p7: a group norm needs two values
    pixels = fast.preprocess_image(inputs).tensor
    with torch.no_grad():
        found, expected = fast.network(pixels), model.network(pixels)
    for a, b in zip((t for levels in found for t in levels), (t for levels in expected for t in levels), strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).abs().max() < 0.1 * b.abs().max()
    assert detections(fast, inputs)[0].scores.dtype == torch.float32


def test_compiled_network_gives_the_same_detections(model, generator, monkeypatch):
    # Only traced, because a C++ compiler would take a minute. `benchmarks.inference --compile` runs the compiler.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    inputs = batch(generator, (64, 96))
    fast = optimize_for_inference(model, compile=True)
    assert_same_detections(detections(fast, inputs), detections(model.eval(), inputs), 1e-4)
    assert fast.network.is_checked


def test_a_compiled_network_that_computes_something_else_is_refused(model, generator, monkeypatch):
    def wrong(network):
        def compute(pixels):
            features, logits, deltas = network(pixels)
            return features, [level + 0.1 for level in logits], deltas

        return compute

    monkeypatch.setattr(torch, "compile", wrong)
    fast = optimize_for_inference(model, compile=True)
    with pytest.raises(RuntimeError, match="TEST.COMPILE the network's outputs are off by"):
        detections(fast, batch(generator, (64, 64)))


def test_a_compiler_that_fails_is_an_error_that_names_the_key(model, generator, monkeypatch):
    def broken(network):
        def compute(pixels):
            raise FileNotFoundError("no compiler")

        return compute

    monkeypatch.setattr(torch, "compile", broken)
    fast = optimize_for_inference(model, compile=True)
    with pytest.raises(RuntimeError, match="TEST.COMPILE does not work here: FileNotFoundError: no compiler"):
        detections(fast, batch(generator, (64, 64)))


def test_cuda_graphs_give_the_same_detections(model, device, generator):
    if device.type != "cuda":
        pytest.skip(needs_cuda)
    fast = optimize_for_inference(model, cuda_graphs=True)
    for size in ((64, 96), (64, 96), (96, 96), (64, 96)):
        inputs = batch(generator, size)
        assert_same_detections(detections(fast, inputs), detections(model.eval(), inputs), 1e-4)


def test_cuda_graphs_record_a_bounded_number_of_sizes(device):
    if device.type != "cuda":
        pytest.skip(needs_cuda)
    graphs = CudaGraphs(lambda pixels: ([pixels * 2],))
    for size in range(1, MAX_GRAPHS + 4):
        for value in (1.0, 2.0, 3.0):
            pixels = torch.full((1, 3, size, size), value, device=device)
            assert graphs(pixels)[0][0].eq(2 * value).all()
    assert len(graphs._graphs) == MAX_GRAPHS


@contextmanager
def noted(calls, *call):
    calls.append(("enter", *call))
    yield
    calls.append(("leave", *call))


def test_graphs_are_recorded_on_the_device_of_the_images_while_other_threads_use_cuda(monkeypatch):
    # Without a GPU: what PyTorch is asked for. The current device may be another one, and a loader may pin memory.
    calls = []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: noted(calls, "device", device))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: noted(calls, "stream"))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    graph = SimpleNamespace(replay=lambda: calls.append(("replay",)))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **how: noted(calls, "graph", *sorted(how.items())))
    graphs = CudaGraphs(lambda pixels: ([pixels * 2],))
    pixels = torch.ones(1, 3, 4, 4)
    graphs(pixels)
    calls.clear()
    graphs(pixels)
    how = (("capture_error_mode", "thread_local"), ("pool", "pool"), ("stream", stream))
    inner = [("enter", "stream"), ("leave", "stream"), ("enter", "graph", *how), ("leave", "graph", *how), ("replay",)]
    assert calls == [("enter", "device", pixels.device), *inner, ("leave", "device", pixels.device)]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"dtype": "half"}, "TEST.DTYPE is 'half'; legal values: float32, bfloat16, float16"),
        ({"dtype": "float16"}, "needs CUDA, and the model is on cpu; use 'bfloat16'"),
        ({"cuda_graphs": True}, "TEST.CUDA_GRAPHS is set, and the model is on cpu"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        optimize_for_inference(build_model(small_config()), **settings)


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="takes a FocalRetinaNet, InstanceRetinaNet, MaskRCNN or FaceNet, got Linear"):
        inference_model(small_config("TEST.DTYPE", "bfloat16"), torch.nn.Linear(1, 1))


def test_without_settings_the_model_itself_is_used(model):
    assert inference_model(small_config(), model) is model and model.training


def test_training_refuses_at_once_what_its_evaluations_could_not_do(shapes, tmp_path):
    with pytest.raises(ValueError, match="TEST.DTYPE is 'float16', which needs CUDA"):
        Trainer(shapes_config(shapes, tmp_path, "TEST.DTYPE", "float16"))


def test_evaluation_in_bfloat16_leaves_the_training_model_alone(shapes, tmp_path):
    cfg = shapes_config(shapes, tmp_path, "TEST.DTYPE", "bfloat16")
    trainer = Trainer(cfg)
    assert "AP" in Trainer.test(cfg, trainer.model)["bbox"]
    assert trainer.model.training and all(p.dtype == torch.float32 for p in trainer.model.parameters())

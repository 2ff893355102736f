"""Recomputed activations: the same losses, gradients and statistics, with less kept in memory."""

import copy
import pickle

import pytest
import torch
from torch import nn

from retinanet_ext.d2 import build_model
from retinanet_ext.detection.gradient_checkpointing import recompute_in_backward
from tests.builders import batch, small_config

NORMS = ["MODEL.RESNETS.NORM", "{0}", "MODEL.FPN.NORM", "{0}", "MODEL.RETINANET.NORM", "{0}"]


def build(enabled: bool, *opts: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(small_config("MODEL.GRADIENT_CHECKPOINTING", str(enabled), *opts))


def step(model: nn.Module, inputs: list[dict]) -> tuple[dict, dict]:
    losses = model(inputs)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-6, atol=1e-6 * value.abs().max().item(), msg=name)


@pytest.mark.parametrize("norm", ["GN", "BN"])
@pytest.mark.parametrize("freeze_at", ["0", "2"])
def test_losses_gradients_and_statistics_are_the_same(norm, freeze_at, generator, device):
    opts = [opt.format(norm) for opt in NORMS] + ["MODEL.BACKBONE.FREEZE_AT", freeze_at, "MODEL.DEVICE", str(device)]
    plain, recomputing = build(False, *opts), build(True, *opts)
    inputs = batch(generator, (96, 96), (96, 96))
    for _ in range(2):  # two steps, since running statistics add up; the weights stay the same
        (losses, gradients), (expected_losses, expected_gradients) = step(recomputing, inputs), step(plain, inputs)
        assert_equal(losses, expected_losses)
        assert_equal(gradients, expected_gradients)
    # Names, parameters, running statistics and their counters.
    assert_equal(recomputing.state_dict(), plain.state_dict())
    counters = [value.item() for name, value in plain.state_dict().items() if name.endswith("num_batches_tracked")]
    assert (2 in counters) == (norm == "BN")


def test_mixed_precision_is_recomputed_in_mixed_precision(generator):
    plain, recomputing = build(False), build(True)
    inputs = batch(generator, (96, 96), (96, 96))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, expected_losses = recomputing(inputs), plain(inputs)
    sum(losses.values()).backward()
    sum(expected_losses.values()).backward()
    assert_equal(losses, expected_losses)
    for (name, parameter), expected in zip(recomputing.named_parameters(), plain.parameters()):
        assert torch.equal(parameter.grad, expected.grad), name


def test_less_is_kept_for_the_backward_pass(generator):
    def kept(model: nn.Module) -> int:
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = model(inputs)
        assert len(losses) == 2
        return sum(size for pointer, size in sizes.items() if pointer not in parameters)

    inputs = batch(generator, (128, 128))
    assert kept(build(True)) < 0.6 * kept(build(False))


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_recomputes_too(make_copy, generator):
    model = build(True)
    duplicate = make_copy(model)
    calls = []
    for block in duplicate.backbone.bottom_up.res3:
        block.register_forward_pre_hook(lambda *_: calls.append("res3"))
    inputs = batch(generator, (96, 96))
    (_, gradients), (_, expected) = step(duplicate, inputs), step(model, inputs)
    assert len(calls) == 4  # two blocks, forward and again in the backward pass
    assert_equal(gradients, expected)


def test_inference_recomputes_nothing(generator):
    model = build(True).eval()
    calls = []
    model.head.cls_subnet[0].register_forward_hook(lambda *_: calls.append("subnet"))
    with torch.no_grad():
        model(batch(generator, (64, 64)))
    assert len(calls) == 5  # once per level


def test_nothing_to_recompute_is_refused():
    detector = nn.Module()
    detector.backbone, detector.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="MODEL.GRADIENT_CHECKPOINTING is True, but the backbone Conv2d"):
        recompute_in_backward(detector)

"""The loss of a step: warm-up by another loss, exact resume, mixed precision, the same result from the same seed."""

import copy

import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.embedding.embedding_losses import TripletLoss
from retinanet_ext.embedding.pooling import l2_normalize
from retinanet_ext.embedding.selection import BatchHard, SemiHard
from retinanet_ext.embedding.training_loss import TrainingLoss, build_training_loss
from retinanet_ext.training.step import TrainStep
from tests.embedding.tiny_facenet import tiny_batches, tiny_config

WARMUP = ["MODEL.EMBEDDING.WARMUP.LOSS", "softmax", "MODEL.EMBEDDING.WARMUP.ITERS", "3"]


def make(*opts, optimizer=torch.optim.SGD, **kwargs):
    torch.manual_seed(0)
    model = d2.build_model(tiny_config(*opts))
    return model, optimizer(model.parameters(), lr=0.05, **kwargs)


def train(model, optimizer, batches, start=0):
    """Train on ``batches[start:]``; the metrics of each step."""
    step, history = TrainStep(model, batches[start:], optimizer, storage=d2.get_event_storage), []
    with d2.EventStorage(start) as storage:
        for index in range(start, len(batches)):
            storage.iter = index
            step.run_step()
            values = {name: value for name, (value, when) in storage.latest().items() if when == index}
            history.append({name: value for name, value in values.items() if "time" not in name})
    return history


@pytest.fixture
def with_library():
    pytest.importorskip("pytorch_metric_learning")


def test_the_warm_up_loss_runs_for_its_iterations_and_every_parameter_keeps_a_gradient(with_library):
    model, optimizer = make(*WARMUP)
    batches, gradients = tiny_batches(5), []
    for index in range(5):
        train(model, optimizer, batches[: index + 1], start=index)
        gradients.append({name: parameter.grad.abs().max().item() for name, parameter in model.named_parameters()})
    (classifier,) = [name for name in gradients[0] if name.startswith("loss.")]
    # The classifier's vectors move in the warm-up only; afterwards their gradient is 0, but it is there.
    assert [row[classifier] > 0 for row in gradients] == [True] * 3 + [False] * 2
    assert all(value > 0 for row in gradients for name, value in row.items() if name != classifier)
    history = train(*make(*WARMUP), batches)
    assert [row["loss_softmax"] > 0 for row in history] == [True] * 3 + [False] * 2
    assert [row["loss_triplet"] > 0 for row in history] == [False] * 3 + [True] * 2
    assert ["triplets/valid" in row for row in history] == [False] * 3 + [True] * 2
    assert all("embedding/spread" in row for row in history)


@pytest.mark.parametrize("stop", [2, 3, 4])
@pytest.mark.parametrize("optimizer", [torch.optim.Adagrad, torch.optim.AdamW])
def test_a_resumed_run_is_the_unbroken_run(stop, optimizer, with_library):
    batches = tiny_batches(6)
    model, solver = make(*WARMUP, optimizer=optimizer)
    expected = train(model, solver, batches)
    first, its_solver = make(*WARMUP, optimizer=optimizer)
    train(first, its_solver, batches[:stop])
    weights, state = copy.deepcopy(first.state_dict()), copy.deepcopy(its_solver.state_dict())
    second, its_solver = make(*WARMUP, optimizer=optimizer)
    second.load_state_dict(weights)
    its_solver.load_state_dict(state)
    assert train(second, its_solver, batches, start=stop) == expected[stop:]
    for name, value in model.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


@pytest.mark.parametrize("selection", ["semi_hard", "batch_hard", "batch_all"])
def test_the_same_seed_gives_the_same_run(selection):
    opts = ["MODEL.EMBEDDING.LOSS.SELECTION", selection]
    (first, solver), (second, other) = make(*opts), make(*opts)
    history = train(first, solver, tiny_batches(4))
    assert train(second, other, tiny_batches(4)) == history
    assert history[0]["triplets/valid"] > 0 and history[-1]["total_loss"] != history[0]["total_loss"]
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_the_warm_up_needs_an_event_storage(with_library):
    loss = build_training_loss(tiny_config(*WARMUP))
    with pytest.raises(RuntimeError, match="WARMUP.LOSS is set, but no event storage is active"):
        loss(torch.eye(4), torch.arange(4))
    TrainingLoss(TripletLoss(0.2, SemiHard()))(torch.eye(4), torch.arange(4))  # without a warm-up none is needed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision_does_not_round_the_distances(dtype, generator, device):
    """Distances of close pairs would be lost in the products of bfloat16."""
    embeddings = l2_normalize(torch.randn(24, 8, generator=generator) * 0.01 + torch.eye(8)[0]).to(device, dtype)
    identities = (torch.arange(24, device=device) // 4) % 3
    loss, results = TrainingLoss(TripletLoss(0.2, BatchHard())), []
    for enabled in (False, True):
        leaf = embeddings.to(dtype if enabled else torch.float32, copy=True).requires_grad_()
        with torch.autocast(leaf.device.type, dtype=torch.bfloat16, enabled=enabled):
            value = loss(leaf, identities)["loss_triplet"]
        assert value.dtype == torch.float32
        value.backward()
        results.append((value, leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1].to(dtype), results[1][1]) and results[0][1].any()


def test_a_step_in_mixed_precision():
    model, optimizer = make()
    step = TrainStep(model, tiny_batches(2), optimizer, storage=d2.get_event_storage, precision=torch.bfloat16)
    with d2.EventStorage(0) as storage:
        step.run_step()
        step.run_step()
        assert 0 < storage.latest()["total_loss"][0] < 0.4


def test_micro_batches_are_refused():
    model, optimizer = make()
    with pytest.raises(ValueError, match="FaceNet has no `as_one_batch`: its loss compares every image"):
        TrainStep(model, [], optimizer, storage=d2.get_event_storage, accumulate=2)

"""Statistics against loops over pairs; the alarms, said once and with their remedies."""

import logging

import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.embedding.embedding_losses import TripletLoss
from retinanet_ext.embedding.pooling import l2_normalize
from retinanet_ext.embedding.selection import BatchHard, SemiHard
from retinanet_ext.embedding.training_loss import TrainingLoss
from retinanet_ext.embedding.training_monitor import COLLAPSED_SPREAD, COLLAPSED_STEPS, pair_statistics


@pytest.fixture
def warnings(caplog):
    """Messages of the monitor; the engines' loggers do not propagate once a run has set them up."""
    caplog.set_level(logging.WARNING)
    logger = logging.getLogger("retinanet_ext.embedding.training_monitor")
    logger.addHandler(caplog.handler)
    yield lambda: list(dict.fromkeys(record for record in caplog.records if record.name == logger.name))
    logger.removeHandler(caplog.handler)


def observe(embeddings, identities, selection=None, margin=0.2, steps=1):
    """The last logged value of each statistic."""
    loss = TrainingLoss(TripletLoss(margin, selection or SemiHard()))
    with d2.EventStorage(0) as storage:
        for _ in range(steps):
            loss(embeddings, torch.as_tensor(identities))
        return {name: value for name, (value, _) in storage.latest().items()}


@pytest.mark.parametrize("scale", [1.0, 1e-4], ids=["spread", "collapsed"])
def test_statistics_are_those_of_a_loop_over_pairs(scale, generator):
    embeddings = l2_normalize(torch.randn(15, 6, generator=generator) * scale + torch.eye(6)[0])
    identities = torch.randint(4, (15,), generator=generator)
    pairs = {True: [], False: []}
    for i in range(15):
        for j in range(15):
            if i != j:
                distance = (embeddings[i].double() - embeddings[j].double()).square().sum().item()
                pairs[bool(identities[i] == identities[j])].append(distance)
    found = {name: value.item() for name, value in pair_statistics(embeddings, identities).items()}
    mean = embeddings.double().mean(dim=0)
    assert found == {
        "distance/positive": pytest.approx(sum(pairs[True]) / len(pairs[True])),
        "distance/negative": pytest.approx(sum(pairs[False]) / len(pairs[False])),
        "num_positive": len(pairs[True]),
        "num_negative": len(pairs[False]),
        "embedding/spread": pytest.approx((embeddings.double() - mean).square().sum(dim=1).mean().item()),
    }


def test_the_range_of_the_spread():
    same, opposite = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([[1.0, 0.0], [-1.0, 0.0]] * 2)
    for embeddings, spread in ((same, 0), (opposite, 1)):
        assert observe(embeddings, [0, 1, 2, 3])["embedding/spread"] == spread


def test_what_a_step_logs():
    # On a circle: identity 0 at 0 and 60 degrees (squared distance 1), identity 1 at 80 and 180.
    angles = torch.tensor([0.0, 60.0, 80.0, 180.0]).deg2rad()
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    logged = observe(embeddings, [0, 0, 1, 1], margin=1.0)
    # Semi-hard: 2 - 2 cos 80 = 1.65 is within 1 and 2 for the pair (0, 1). The squared distances of (1, 0), 1, are
    # above 2 - 2 cos 20 = 0.12 and below 2 - 2 cos 120 = 3. Of (2, 3), 2.35, none is within 1; of (3, 2) 3 is.
    assert logged["triplets/valid"] == 2 and logged["triplets/active"] == 0.5
    assert logged["distance/positive"] == pytest.approx((1 + 2.347296) / 2, abs=1e-5)
    assert logged["distance/negative"] == pytest.approx((1.652704 + 4 + 0.120615 + 3) / 4, abs=1e-5)
    assert logged["triplets/empty_batches"] == 0
    hard = observe(embeddings, [0, 0, 1, 1], BatchHard(), margin=1.0)
    # Anchor by anchor: 1 + 1 > 1.65, 1 + 1 > 0.12, 2.35 + 1 > 0.12, 2.35 + 1 > 3: all are within the margin.
    assert hard["triplets/valid"] == 4 and hard["triplets/active"] == 1


@pytest.mark.parametrize(
    "identities, reason, missing",
    [
        ([3, 3, 3, 3], "all its images are of one identity", "distance/negative"),
        ([0, 1, 2, 3], "it has one image per identity", "distance/positive"),
        ([0, 0, 1, 1], "no negative lies where", None),
    ],
)
def test_a_batch_without_triplets_is_explained_once_and_counted(identities, reason, missing, warnings):
    # Identities 0 and 1 are a right angle apart: every negative is beyond the margin.
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    logged = observe(embeddings, identities, steps=3)
    (record,) = warnings()
    assert reason in record.getMessage() and "triplets/empty_batches" in record.getMessage()
    assert logged["triplets/empty_batches"] == 3 and logged["triplets/valid"] == 0 and missing not in logged
    assert all(value == value for value in logged.values())


class Collapsed(torch.nn.Module):
    """Gives all images nearly the same embedding, as a network whose last layer has only its bias left."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, images):
        return l2_normalize(images * self.scale + torch.eye(images.shape[1])[0])


def test_a_collapsed_network_is_announced_once_with_the_remedy(generator, warnings):
    images, identities = torch.randn(12, 16, generator=generator), torch.arange(3).repeat(4)
    loss = TrainingLoss(TripletLoss(0.2, BatchHard()))
    collapsed = Collapsed(0.003)(images)
    with d2.EventStorage(0):
        for _ in range(COLLAPSED_STEPS - 1):
            value = loss(collapsed, identities)["loss_triplet"]
        assert not warnings()
        for _ in range(COLLAPSED_STEPS):
            loss(collapsed, identities)
        (record,) = warnings()
    # That is the symptom users report: the loss stays at the margin.
    assert value.item() == pytest.approx(0.2, rel=0.02)
    for remedy in ("SOLVER.BASE_LR", "SOLVER.IMS_PER_BATCH", "semi_hard", "WARMUP.LOSS softmax"):
        assert remedy in record.getMessage()


def test_a_few_collapsed_steps_and_a_batch_of_one_identity_are_no_collapse(generator, warnings):
    images, identities = torch.randn(12, 16, generator=generator), torch.arange(3).repeat(4)
    loss = TrainingLoss(TripletLoss(0.2, BatchHard()))
    for step in range(3 * COLLAPSED_STEPS):
        loss(Collapsed(1.0 if step % COLLAPSED_STEPS == 0 else 0.003)(images), identities)
    for _ in range(2 * COLLAPSED_STEPS):
        loss(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64))
    assert not [record for record in warnings() if "collapsed" in record.getMessage()]


def test_the_threshold_means_a_loss_at_the_margin(generator):
    """There the mean squared distance between identities is a tenth of the paper's margin."""
    embeddings = Collapsed(0.026)(torch.randn(200, 16, generator=generator))
    identities = torch.arange(20).repeat(10)
    statistics = pair_statistics(embeddings, identities)
    assert statistics["embedding/spread"].item() == pytest.approx(COLLAPSED_SPREAD, rel=0.1)
    assert statistics["distance/negative"].item() == pytest.approx(0.1 * 0.2, rel=0.1)

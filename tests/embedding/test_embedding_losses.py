"""The registered losses by formula, and what they refuse."""

import sys

import pytest
import torch

from retinanet_ext.config.loading import load_config
from retinanet_ext.embedding import EMBEDDING_LOSS_REGISTRY, select_triplets
from retinanet_ext.embedding.pooling import l2_normalize
from retinanet_ext.embedding.training_loss import build_training_loss
from retinanet_ext.losses.triplet import triplet_loss

LOSS = "MODEL.EMBEDDING.LOSS"


def make_config(*opts):
    base = ["MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "FaceNet", "MODEL.EMBEDDING.DIM", "8"]
    return load_config(None, [*base, "MODEL.EMBEDDING.NUM_IDENTITIES", "5", *opts], datasets=False)


def make_batch(generator, count=20):
    embeddings = l2_normalize(torch.randn(count, 8, generator=generator)).requires_grad_()
    return embeddings, torch.randint(5, (count,), generator=generator)


def build(name, *opts):
    pytest.importorskip("pytorch_metric_learning")
    return EMBEDDING_LOSS_REGISTRY.get(name)(make_config(*opts))


def test_triplet_takes_margin_and_selection_from_the_config(generator):
    embeddings, identities = make_batch(generator)
    for selection in ("semi_hard", "batch_hard", "batch_all"):
        cfg = make_config(f"{LOSS}.SELECTION", selection, f"{LOSS}.MARGIN", "0.5")
        losses, statistics = EMBEDDING_LOSS_REGISTRY.get("triplet")(cfg)(embeddings, identities)
        triplets = select_triplets(selection, embeddings, identities, 0.5)
        assert statistics["triplets/valid"] == len(triplets) > 0 and 0 < statistics["triplets/active"] <= 1
        torch.testing.assert_close(losses["loss_triplet"], triplet_loss(embeddings, triplets, 0.5))


def test_the_loss_is_that_of_pytorch_metric_learning(generator):
    """Its reducers differ: by default it averages over the losses above 0, here over all triplets."""
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    from pytorch_metric_learning import losses, reducers

    embeddings, identities = make_batch(generator)
    squared = distances.LpDistance(normalize_embeddings=False, power=2)
    theirs = losses.TripletMarginLoss(margin=0.2, distance=squared, reducer=reducers.MeanReducer())
    for selection in ("semi_hard", "batch_hard", "batch_all"):
        triplets = select_triplets(selection, embeddings, identities, 0.2)
        wanted = theirs(embeddings, identities, tuple(triplets.unbind(1)))
        cfg = make_config(f"{LOSS}.SELECTION", selection)
        found = EMBEDDING_LOSS_REGISTRY.get("triplet")(cfg)(embeddings, identities)[0]["loss_triplet"]
        torch.testing.assert_close(found, wanted)
        gradients = [torch.autograd.grad(loss, embeddings)[0] for loss in (found, wanted)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["softmax", "cosface"])
def test_classification_by_formula(name, generator):
    embeddings, identities = make_batch(generator)
    loss = build(name, f"{LOSS}.SCALE", "4.0", f"{LOSS}.COSINE_MARGIN", "0.25")
    (weights,) = loss.parameters()
    assert sorted(weights.shape) == [5, 8]
    vectors = (weights if weights.shape[0] == 5 else weights.T).double()
    cosines = embeddings.double() @ (vectors / vectors.norm(dim=1, keepdim=True)).T
    if name == "cosface":
        cosines = cosines - 0.25 * torch.nn.functional.one_hot(identities, 5)
    wanted = (4 * cosines).logsumexp(dim=1) - (4 * cosines)[torch.arange(20), identities]
    losses, _ = loss(embeddings, identities)
    torch.testing.assert_close(losses[f"loss_{name}"].double(), wanted.mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["triplet", "softmax", "cosface"])
def test_a_batch_without_images_gives_zero_gradients_to_all_parameters(name):
    loss, embeddings = build(name), torch.zeros(0, 8, requires_grad=True)
    (value,) = loss(embeddings, torch.zeros(0, dtype=torch.int64))[0].values()
    value.backward()
    assert value.item() == 0 and embeddings.grad.shape == (0, 8)
    assert all(not parameter.grad.any() for parameter in loss.parameters())


def test_unknown_identities_are_refused(generator):
    embeddings, identities = make_batch(generator)
    with pytest.raises(ValueError, match="NUM_IDENTITIES is 5: legal are 0 to 4"):
        build("softmax")(embeddings, identities + 2)


def test_the_number_of_identities_must_be_known():
    pytest.importorskip("pytorch_metric_learning")
    with pytest.raises(ValueError, match="MODEL.EMBEDDING.NUM_IDENTITIES is 0, but the loss 'cosface' classifies"):
        build("cosface", "MODEL.EMBEDDING.NUM_IDENTITIES", "0")


def test_without_the_library_the_error_has_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'retinanet_ext\[embedding\]'"):
        EMBEDDING_LOSS_REGISTRY.get("softmax")(make_config())
    EMBEDDING_LOSS_REGISTRY.get("triplet")(make_config())  # needs no library


@pytest.mark.parametrize(
    "opts, message",
    [
        ((f"{LOSS}.MARGIN", "0.0"), "MODEL.EMBEDDING.LOSS.MARGIN is 0.0; legal: a number above 0"),
        ((f"{LOSS}.SCALE", "-1.0"), "MODEL.EMBEDDING.LOSS.SCALE is -1.0; legal: a number above 0"),
        ((f"{LOSS}.COSINE_MARGIN", "28.6"), "COSINE_MARGIN is 28.6; legal: a number from 0 to 1"),
        (("MODEL.EMBEDDING.WARMUP.ITERS", "0"), "WARMUP.ITERS is 0; legal: an integer above 0"),
        (("MODEL.EMBEDDING.NUM_IDENTITIES", "-1"), "NUM_IDENTITIES is -1; legal: an integer from 0"),
    ],
)
def test_numbers_out_of_range_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        make_config(*opts)


@pytest.mark.parametrize(
    "opts, error, message",
    [
        ((f"{LOSS}.NAME", "tripplet"), KeyError, "LOSS.NAME is 'tripplet', .*registered: triplet"),
        ((f"{LOSS}.SELECTION", "hard"), KeyError, "LOSS.SELECTION is 'hard', .*batch_hard"),
        (("MODEL.EMBEDDING.WARMUP.LOSS", "soft"), KeyError, "WARMUP.LOSS is 'soft', .*softmax"),
        (("MODEL.EMBEDDING.WARMUP.LOSS", "triplet"), ValueError, "are both 'triplet'; leave WARMUP.LOSS empty"),
    ],
)
def test_unknown_names_are_refused(opts, error, message):
    with pytest.raises(error, match=message):
        build_training_loss(make_config(*opts))

"""The triplet loss: arithmetic by hand, numerical gradients, and the form that runs against the readable one."""

import pytest
import torch

from retinanet_ext.embedding.pooling import l2_normalize
from retinanet_ext.embedding.selection import TRIPLET_SELECTION_REGISTRY, AnchorBlock, select_triplets
from retinanet_ext.losses import triplet
from retinanet_ext.losses.triplet import selected_triplet_loss, squared_distances, triplet_loss

SELECTIONS = ["semi_hard", "batch_hard", "batch_all"]


def random_batch(generator, identities=6, images=5, dim=8, dtype=torch.float32, device="cpu"):
    vectors = torch.randn(identities * images, dim, generator=generator, dtype=dtype)
    labels = torch.arange(identities).repeat_interleave(images)[torch.randperm(len(vectors), generator=generator)]
    return vectors.to(device), labels.to(device)


def select_and_sum(name, embeddings, identities, margin):
    selection = TRIPLET_SELECTION_REGISTRY.get(name)()
    return selected_triplet_loss(
        embeddings, lambda d, start: selection.counts(AnchorBlock.make(d, identities, start), margin), margin
    )


def test_by_hand():
    # |a - p|^2 = 2, |a - n|^2 = 4 for the first triplet; swapped for the second: losses 0 and 2.2.
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], requires_grad=True)
    loss = triplet_loss(embeddings, torch.tensor([[0, 1, 2], [0, 2, 1]]), 0.2)
    loss.backward()
    assert loss.item() == pytest.approx((0 + 2.2) / 2)
    # Half of the second triplet's: d/da = 2 (n - p), d/dp = 2 (p - a), d/dn = 2 (a - n).
    torch.testing.assert_close(embeddings.grad, torch.tensor([[1.0, 1.0], [1.0, -1.0], [-2.0, 0.0]]))


@pytest.mark.parametrize("name", SELECTIONS)
def test_the_form_that_runs_by_hand(name):
    # On a line: a at 0, p at 1, n at 1.5. Of anchor a the squares are 1 and 2.25; of p, 1 and 0.25. Margin 2.
    embeddings = torch.tensor([[0.0], [1.0], [1.5]], requires_grad=True)
    loss, totals = select_and_sum(name, embeddings, torch.tensor([7, 7, 9]), 2.0)
    loss.backward()
    first, second = 1 - 2.25 + 2, 1 - 0.25 + 2  # the second is no semi-hard one: the negative is nearer
    # (d/da, d/dp, d/dn): 2 (a - p) - 2 (a - n), 2 (p - a), -2 (n - a); and with p as the anchor of the second.
    from_first, from_second = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([-2.0, 3.0, -1.0])
    expected = first if name == "semi_hard" else (first + second) / 2
    gradient = from_first if name == "semi_hard" else (from_first + from_second) / 2
    assert loss.item() == pytest.approx(expected)
    torch.testing.assert_close(embeddings.grad[:, 0], gradient)
    assert [int(total) for total in totals] == ([2, 1, 1] if name == "semi_hard" else [2, 2, 2])


def test_without_triplets_it_is_zero_and_backpropagates(generator):
    vectors, identities = random_batch(generator)
    for labels in (torch.zeros_like(identities), torch.arange(len(identities))):
        for name in SELECTIONS:
            embeddings = vectors.clone().requires_grad_()
            triplets = select_triplets(name, embeddings, labels, 0.2)
            assert triplets.shape == (0, 3)
            for loss in (triplet_loss(embeddings, triplets), select_and_sum(name, embeddings, labels, 0.2)[0]):
                embeddings.grad = None
                loss.backward()
                assert loss.item() == 0 and torch.equal(embeddings.grad, torch.zeros_like(vectors))


def test_gradient_of_the_readable_form_through_the_normalisation(generator):
    vectors, identities = random_batch(generator, dtype=torch.float64)
    triplets = select_triplets("batch_all", l2_normalize(vectors), identities, 0.3)[::7]
    assert len(triplets) > 20
    assert torch.autograd.gradcheck(lambda x: triplet_loss(l2_normalize(x), triplets, 0.3), vectors.requires_grad_())


@pytest.mark.parametrize("name", SELECTIONS)
def test_gradient_of_the_form_that_runs_through_the_normalisation(name, generator):
    vectors, identities = random_batch(generator, dtype=torch.float64)
    selected = select_and_sum(name, l2_normalize(vectors), identities, 0.3)[1].selected
    assert selected > 5
    assert torch.autograd.gradcheck(
        lambda x: select_and_sum(name, l2_normalize(x), identities, 0.3)[0], vectors.requires_grad_()
    )


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("block", [1 << 20, 100, 1])
@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["spread", "similar"])
def test_the_form_that_runs_equals_the_readable_one(name, block, scale, generator, device, monkeypatch):
    """Also in blocks of 3 anchors and of 1, and for embeddings that are almost equal."""
    vectors, identities = random_batch(generator, device=device)
    margin = 0.2 * scale**2
    vectors = l2_normalize(vectors * scale + torch.eye(8, device=device)[0] * (scale != 1))
    expected = vectors.double().requires_grad_()
    wanted = triplet_loss(expected, select_triplets(name, vectors, identities, margin), margin)
    monkeypatch.setattr(triplet, "BLOCK_PAIRS", block)
    found = vectors.clone().requires_grad_()
    loss, _ = select_and_sum(name, found, identities, margin)
    torch.autograd.backward([wanted * 3, loss * 3])
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-12)
    largest = expected.grad.abs().max()
    assert largest > 0 and (found.grad - expected.grad).abs().max() < 2e-6 * largest


def test_distances_tie_where_they_are_equal(generator, device):
    """A float32 product gives equal vectors distances other than 0, and breaks ties with the anchor's other images."""
    vectors = l2_normalize(torch.randn(37, 128, generator=generator)).to(device)
    twice = torch.cat([vectors, vectors[:, torch.randperm(128, generator=generator)], vectors])
    distances = squared_distances(twice, twice).float()
    exact = (twice.double()[:, None] - twice.double()).square().sum(dim=2)
    torch.testing.assert_close(distances.double(), exact, rtol=1e-6, atol=1e-12)
    assert torch.equal(distances, distances.T)
    assert torch.equal(distances[:37], distances[74:]) and not distances.diagonal().any()
    assert not distances[:37, 74:].diagonal().any()


def test_an_embedding_that_is_not_finite_shows_in_the_loss(generator):
    """Its comparisons are all false, so it is in no triplet; but it would spoil the weights."""
    vectors, identities = random_batch(generator)
    vectors[3, 2] = float("nan")
    for name in SELECTIONS:
        assert select_and_sum(name, vectors.requires_grad_(), identities, 0.2)[0].isnan()

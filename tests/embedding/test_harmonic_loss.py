"""The harmonic triplet loss against loops over explicit triplets of two models, as sets, and hand arithmetic."""

import pytest
import torch

from retinanet_ext.embedding.harmonic_loss import HarmonicLoss, MixedSelection
from retinanet_ext.embedding.pooling import l2_normalize
from retinanet_ext.embedding.selection import TRIPLET_SELECTION_REGISTRY, AnchorBlock
from retinanet_ext.losses import triplet
from retinanet_ext.losses.triplet import squared_distances, triplet_loss
from tests.embedding.test_selection import as_set, brute_force, grid_case, random_case

NAMES = ["semi_hard", "batch_hard", "batch_all"]


def mixed_triplets(name, v2, v1, identities, margin):
    """All triplets of the set of both, less those of three embeddings of v1."""
    found = brute_force(name, torch.cat([v2, v1]), torch.cat([identities, identities]), margin)
    return {t for t in found if min(t) < len(v2)}


def two_models(case, generator):
    """Embeddings of 12 images by two models, and the identities of the images."""
    vectors, identities, margin = case(generator)
    return vectors[:12], vectors[12:], identities[:12], margin


@pytest.mark.parametrize("case", [random_case, grid_case])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("block_pairs", [1 << 20, 100])
def test_selection_loss_and_gradient_are_those_of_explicit_triplets(name, case, block_pairs, generator, monkeypatch):
    monkeypatch.setattr(triplet, "BLOCK_PAIRS", block_pairs)
    v2, v1, identities, margin = two_models(case, generator)
    expected = mixed_triplets(name, v2, v1, identities, margin)
    everything = brute_force(name, torch.cat([v2, v1]), torch.cat([identities, identities]), margin)
    # Some triplets are left out. Of the many equal distances of the grid, batch_hard takes those of v2 first.
    assert expected and (len(everything) > len(expected) or case is grid_case)

    selection = TRIPLET_SELECTION_REGISTRY.get(name)()
    vectors = torch.cat([v2, v1])
    block = AnchorBlock.make(squared_distances(vectors, vectors).float(), identities.repeat(2), 0)
    mixed = MixedSelection(selection, len(v2))
    assert as_set(mixed.triplets(block, margin)) == expected
    assert int(mixed.counts(block, margin).selected) == len(expected)

    trained, fixed = v2.double().requires_grad_(), v1.double().requires_grad_()
    loss = HarmonicLoss(margin, selection)(trained, fixed, identities)["loss_harmonic"]
    loss.backward()
    reference = v2.double().requires_grad_()
    rows = torch.tensor(sorted(expected))
    by_hand = triplet_loss(torch.cat([reference, v1.double()]), rows, margin)
    by_hand.backward()
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(trained.grad, reference.grad)
    assert fixed.grad is None or not fixed.grad.any()


def test_the_loss_by_hand():
    v2, v1 = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8], [0.8, 0.6]])
    identities = torch.tensor([4, 9])
    # Squared distances: 0.8 between the two embeddings of either image; between the images 2 (v2, v2), 0.08 (v1, v1)
    # and 0.4 (across). The only positive of an embedding is that of the other model.
    # Anchors of v2: 0.8 - 0.4 + 0.2 = 0.6, the other negative gives nothing. Anchors of v1: 0.6, and
    # 0.8 - 0.08 + 0.2 = 0.92. The mean of 4 x 0.6 and 2 x 0.92:
    loss = HarmonicLoss(0.2, TRIPLET_SELECTION_REGISTRY.get("batch_all")())(v2, v1, identities)["loss_harmonic"]
    assert loss.item() == pytest.approx(4.24 / 6)
    # Semi-hard with margin 1.5: only anchors of v2 have a negative from 0.8 to 2.3, at 2: 0.8 - 2 + 1.5.
    loss = HarmonicLoss(1.5, TRIPLET_SELECTION_REGISTRY.get("semi_hard")())(v2, v1, identities)["loss_harmonic"]
    assert loss.item() == pytest.approx(0.3)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_triplet_the_loss_is_zero_and_has_a_gradient(name):
    for count in (0, 1, 3):
        v2 = l2_normalize(torch.randn(count, 4)).requires_grad_()
        loss = HarmonicLoss(0.2, TRIPLET_SELECTION_REGISTRY.get(name)())(
            v2, torch.zeros(count, 4), torch.zeros(count, dtype=torch.int64)
        )["loss_harmonic"]
        loss.backward()
        assert loss.item() == 0 and not v2.grad.any()

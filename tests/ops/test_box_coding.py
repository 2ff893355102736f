import math

import pytest
import torch

from retinanet_ext.detection import Box2BoxTransform


def test_deltas_by_hand():
    # Source 10x20 centred at (5, 10); target 20x20 centred at (10, 5).
    source, target = torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[0.0, -5.0, 20.0, 15.0]])
    deltas = Box2BoxTransform().get_deltas(source, target)
    assert deltas.tolist() == [pytest.approx([0.5, -0.25, math.log(2), 0.0])]
    weighted = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)).get_deltas(source, target)
    assert weighted.tolist() == [pytest.approx([5.0, -2.5, 5 * math.log(2), 0.0])]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_round_trip(weights, generator):
    corner = torch.rand(2, 100, 2, generator=generator) * 100
    source, target = torch.cat([corner, corner + 1 + torch.rand(2, 100, 2, generator=generator) * 50], dim=2)
    transform = Box2BoxTransform(weights)
    decoded = transform.apply_deltas(transform.get_deltas(source, target), source)
    torch.testing.assert_close(decoded, target, atol=1e-3, rtol=1e-5)


def test_decoded_size_is_bounded():
    source = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    decoded = Box2BoxTransform().apply_deltas(torch.tensor([[0.0, 0.0, 100.0, math.log(2)]]), source)
    # 16 * 1000 / 16 wide, 32 high, around the centre (8, 8).
    torch.testing.assert_close(decoded, torch.tensor([[8.0 - 500, 8 - 16.0, 8 + 500.0, 8 + 16.0]]))


def test_half_precision_deltas_are_decoded_in_float32():
    source = torch.tensor([[1000.0, 1000.0, 1016.0, 1016.0]])
    decoded = Box2BoxTransform().apply_deltas(torch.zeros(1, 4, dtype=torch.bfloat16), source)
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, source)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 1.0, 0.0, 1.0)])
def test_weights_that_cannot_encode_a_box_are_refused(weights):
    with pytest.raises(ValueError, match="BBOX_REG_WEIGHTS is .*; legal: four numbers above 0"):
        Box2BoxTransform(weights)


def test_no_boxes():
    transform = Box2BoxTransform()
    assert transform.get_deltas(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    assert transform.apply_deltas(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


def test_matches_detectron2(generator):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.modeling.box_regression import Box2BoxTransform as Theirs

    corner = torch.rand(2, 100, 2, generator=generator) * 100
    source, target = torch.cat([corner, corner + 1 + torch.rand(2, 100, 2, generator=generator) * 50], dim=2)
    ours, theirs = Box2BoxTransform((10.0, 10.0, 5.0, 5.0)), Theirs((10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(ours.get_deltas(source, target), theirs.get_deltas(source, target))
    deltas = torch.randn(100, 4, generator=generator) * 10
    torch.testing.assert_close(ours.apply_deltas(deltas, source), theirs.apply_deltas(deltas, source))

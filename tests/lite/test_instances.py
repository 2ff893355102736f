import copy
import pickle

import pytest
import torch

from retinanet_ext.lite.structures import Boxes, Instances


@pytest.fixture
def three():
    boxes = Boxes(torch.arange(12.0).view(3, 4))
    return Instances((10, 20), pred_boxes=boxes, scores=torch.tensor([0.1, 0.2, 0.3]))


def test_fields_are_attributes(three):
    assert three.image_size == (10, 20)
    assert len(three) == 3
    assert three.has("scores") and not three.has("masks")
    assert three.get("scores") is three.scores
    three.names = ["a", "b", "c"]
    assert list(three.get_fields()) == ["pred_boxes", "scores", "names"]
    three.remove("names")
    assert not three.has("names")


def test_length_is_an_invariant(three):
    with pytest.raises(ValueError, match="'scores' has length 2.*length 3"):
        three.scores = torch.zeros(2)
    with pytest.raises(ValueError, match="'names' has length 1"):
        three.set("names", ["a"])


def test_unknown_fields(three):
    with pytest.raises(AttributeError, match="no field 'masks'.*pred_boxes"):
        three.masks  # noqa: B018
    with pytest.raises(KeyError):
        three.get("masks")
    assert not hasattr(three, "masks")


def test_indexing_applies_to_every_field(three):
    for index, scores in [
        (0, [0.1]),
        (-1, [0.3]),
        (slice(1, None), [0.2, 0.3]),
        (torch.tensor([True, False, True]), [0.1, 0.3]),
        (torch.tensor([2, 0]), [0.3, 0.1]),
        ([1], [0.2]),
    ]:
        part = three[index]
        torch.testing.assert_close(part.scores, torch.tensor(scores))
        assert len(part.pred_boxes) == len(part) == len(scores)
        assert part.image_size == (10, 20)
    assert three[-1].pred_boxes.tensor.tolist() == [[8, 9, 10, 11]]
    for index in (3, -4):
        with pytest.raises(IndexError, match="out of range"):
            three[index]


def test_without_fields_there_is_no_length():
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))
    assert "unknown" in repr(Instances((1, 1)))


def test_is_not_iterable(three):
    with pytest.raises(NotImplementedError):
        iter(three)


def test_cat(three):
    three.names = ["a", "b", "c"]
    both = Instances.cat([three, three[:1]])
    assert both.names == ["a", "b", "c", "a"]
    assert both.pred_boxes.tensor.shape == (4, 4)
    torch.testing.assert_close(both.scores, torch.tensor([0.1, 0.2, 0.3, 0.1]))
    assert Instances.cat([three]) is three


@pytest.mark.parametrize(
    "other, message",
    [
        (Instances((11, 20), q=[1]), "image sizes differ"),
        (Instances((10, 20), r=[1]), "fields differ"),
        (None, "tuple cannot be concatenated"),
    ],
)
def test_cat_errors(other, message):
    first = Instances((10, 20), q=[1] if other else (1,))
    with pytest.raises(ValueError, match=message):
        Instances.cat([first, other or first])


def test_cat_of_nothing():
    with pytest.raises(ValueError, match="at least one"):
        Instances.cat([])


def test_to_moves_what_can_be_moved(three):
    three.names = ["a", "b", "c"]
    moved = three.to(torch.device("meta"))
    assert moved.scores.device.type == moved.pred_boxes.device.type == "meta"
    assert moved.names == three.names
    assert three.scores.device.type == "cpu"


def test_copies_and_pickles(three):
    for twin in (copy.deepcopy(three), pickle.loads(pickle.dumps(three))):
        torch.testing.assert_close(twin.scores, three.scores)
        assert twin.scores is not three.scores
        assert twin.image_size == three.image_size

"""Labels of proposals, and the ground truth of those that are objects."""

import torch

from retinanet_ext import d2
from retinanet_ext.detection.matcher import IoUMatcher
from retinanet_ext.instance.roi_targets import RoISampler, foreground_of

NUM_CLASSES = 3


def sample(thresholds, labels, boxes, target):
    matcher = IoUMatcher(thresholds=thresholds, labels=labels, low_quality="never")
    settings = {"num_classes": NUM_CLASSES, "batch_size_per_image": 100, "positive_fraction": 1.0}
    proposals = d2.Instances((50, 50), proposal_boxes=d2.Boxes(boxes), objectness_logits=torch.zeros(len(boxes)))
    return RoISampler(**settings, matcher=matcher, append_gt=False)([proposals], [target])[0]


# IoUs with the object [0, 10) x [0, 10): 1, 0.5, 0.3, 0.
BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 3], [20, 20, 30, 30]])
OBJECT = d2.Instances((50, 50), gt_boxes=d2.Boxes(BOXES[:1]), gt_classes=torch.tensor([1]))
NOTHING = d2.Instances((50, 50), gt_boxes=d2.Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))


def test_bands_of_iou_by_hand():
    sampled = sample([0.2, 0.5], [0, -1, 1], BOXES, OBJECT)
    boxes = map(tuple, sampled.proposal_boxes.tensor.tolist())
    found = dict(zip(boxes, sampled.gt_classes.tolist()))
    # A band contains its lower bound; the third box is ignored.
    assert found == {(0, 0, 10, 10): 1, (0, 0, 10, 5): 1, (20, 20, 30, 30): NUM_CLASSES}


def test_without_objects_all_proposals_are_background():
    """Even if the lowest band is ignored."""
    sampled = sample([0.1, 0.5], [-1, 0, 1], BOXES, NOTHING)
    assert sampled.gt_classes.tolist() == [NUM_CLASSES] * 4
    assert not sampled.gt_boxes.tensor.any() and not sampled.gt_index.any()


def test_the_foreground_has_all_fields_of_its_object():
    target = d2.Instances((50, 50), **OBJECT.get_fields(), gt_colour=torch.tensor([7.0]), file_number=torch.tensor([1]))
    (found,) = foreground_of([sample([0.5], [0, 1], BOXES, target)], [target], NUM_CLASSES)
    ground_truth = ["gt_boxes", "gt_classes", "gt_colour", "gt_index"]
    assert sorted(found.get_fields()) == [*ground_truth, "objectness_logits", "proposal_boxes"]
    assert found.gt_colour.tolist() == [7, 7]
    assert sorted(found.proposal_boxes.tensor.tolist()) == [[0, 0, 10, 5], [0, 0, 10, 10]]
    assert foreground_of([], [], NUM_CLASSES) == []

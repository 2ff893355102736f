"""Pictures of training: ground truth above, detections below, with masks and keypoints."""

from functools import partial

import numpy as np
import pytest
import torch

from retinanet_ext.d2 import Boxes, EventStorage, Instances
from retinanet_ext.detection.training_picture import draw_training_picture
from retinanet_ext.instance.postprocess import scale_detections

GREY = 120


class _Masks:
    """What both engines' BitMasks have in common."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __len__(self):
        return len(self.tensor)


def _masks():
    masks = torch.zeros(1, 60, 80, dtype=torch.bool)
    masks[0, 20:40, 30:60] = True
    return masks


def _picture(truth, detected, **options):
    boxes = Boxes(torch.tensor([[10.0, 5, 70, 55]]))
    inputs = {"image": torch.full((3, 60, 80), GREY, dtype=torch.uint8)}
    inputs["instances"] = Instances((60, 80), gt_boxes=boxes, **truth)
    detections = Instances((60, 80), pred_boxes=boxes, **detected)
    with EventStorage() as storage:
        draw_training_picture(inputs, detections, partial(scale_detections, **options), "BGR")
        (name, picture, _) = storage._vis_data[0]
    picture = np.asarray(picture).transpose(1, 2, 0)
    return picture[:60], picture[60:]


def test_boxes_alone_leave_the_inside():
    for half in _picture({}, {}):
        assert (half[22:38, 35:55] == GREY).all() and (half != GREY).any()


@pytest.mark.parametrize("encode_masks", [False, True])
def test_masks_and_keypoints_of_both(encode_masks):
    points = torch.tensor([[[20.5, 50.5, 2.0]]])
    probabilities = torch.zeros(1, 1, 10, 10)  # cells of 6 x 5 pixels from (10, 5)
    probabilities[..., 3:7, 3:8] = 1.0
    truth = {"gt_masks": _Masks(_masks()), "gt_keypoints": _Masks(points)}
    halves = _picture(truth, {"pred_masks": probabilities, "pred_keypoints": points}, encode_masks=encode_masks)
    for half in halves:
        assert (half[25:35, 38:52] != GREY).any(axis=-1).all() and (half[10:15, 20:60] == GREY).all()
        assert half[50, 20, 0] > 150 and half[50, 20, 1] < 100, "a red keypoint"

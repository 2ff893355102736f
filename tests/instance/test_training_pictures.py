"""Pictures during training show masks and keypoints, and leave the training as it is."""

import numpy as np
import pytest
import torch

from retinanet_ext import d2
from tests.instance.tiny_rcnn import one_stage_config, tame, two_stage_batch, two_stage_config

CONFIGS = {"one stage": one_stage_config, "two stages": lambda *opts: two_stage_config("FPN", *opts)}
BRANCHES = ["MODEL.MASK_ON", "True", "MODEL.KEYPOINT_ON", "True", "MODEL.ROI_MASK_HEAD.NORM", "BN"]


def step(stages: str, *opts: str):
    torch.manual_seed(0)
    model = d2.build_model(CONFIGS[stages](*opts))
    if stages == "two stages":
        tame(model)
    # The branches look at the same features whether they exist or not.
    for name in ("mask_head", "keypoint_head"):
        for parameter in getattr(getattr(model.roi_heads, name, None), "parameters", list)():
            torch.nn.init.normal_(parameter, std=0.5)
    if hasattr(model.roi_heads, "mask_head"):
        model.roi_heads.mask_head.mask_fcn1.eval()  # a part that the user has frozen
    torch.manual_seed(0)
    inputs = two_stage_batch((96, 128), (80, 80))
    with d2.EventStorage(0) as storage:
        losses = model(inputs)
    return model, losses, [np.asarray(picture) for _, picture, _ in storage._vis_data]


@pytest.mark.parametrize("stages", CONFIGS)
def test_the_lower_half_shows_masks_and_keypoints(stages):
    pictures = [step(stages, "VIS_PERIOD", "1", *opts)[2] for opts in ([], BRANCHES[:2], BRANCHES[2:4])]
    (boxes,), (masks,), (keypoints,) = pictures
    assert boxes.shape == (3, 2 * 96, 128)
    for picture in (masks, keypoints):
        assert (picture[:, 96:] != boxes[:, 96:]).any(axis=0).sum() > 20


@pytest.mark.parametrize("stages", CONFIGS)
def test_a_picture_changes_neither_losses_nor_statistics_nor_modes(stages):
    plain, plain_losses, none = step(stages, *BRANCHES)
    model, losses, pictures = step(stages, *BRANCHES, "VIS_PERIOD", "1")
    assert none == [] and len(pictures) == 1
    for name, loss in plain_losses.items():
        assert torch.equal(losses[name], loss), name
    for (name, value), expected in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes == {name: module.training for name, module in plain.named_modules()}
    assert not modes["roi_heads.mask_head.mask_fcn1"] and modes["roi_heads.mask_head"]

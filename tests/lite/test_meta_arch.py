import pytest
import torch
from torch import nn

from retinanet_ext.lite.cfg_node import get_cfg
from retinanet_ext.lite.meta_arch import META_ARCH_REGISTRY, build_model, detector_postprocess
from retinanet_ext.lite.structures import Boxes, Instances


def test_build_model_calls_the_named_class_with_the_config(monkeypatch):
    monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", {"Line": lambda cfg: nn.Linear(cfg.SEED, 1)})
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "Line", "MODEL.DEVICE", "cpu", "SEED", 3])
    assert build_model(cfg).in_features == 3
    cfg.MODEL.META_ARCHITECTURE = "Lin"
    refused = "MODEL.META_ARCHITECTURE is 'Lin', which is not registered; registered: Line; set it .*, or install Det"
    with pytest.raises(KeyError, match=refused):
        build_model(cfg)


def test_cuda_without_cuda_says_what_to_set(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="set `MODEL.DEVICE cpu`"):
        build_model(get_cfg())


def test_postprocess_scales_clips_and_drops_empty_boxes():
    boxes = Boxes([[0, 0, 10, 10], [5, 5, 5, 9], [15, 5, 30, 30]])
    results = Instances((10, 20), pred_boxes=boxes, scores=torch.tensor([0.1, 0.2, 0.3]))
    # Twice the height, one and a half times the width.
    out = detector_postprocess(results, 20, 30)
    assert out.image_size == (20, 30)
    assert out.pred_boxes.tensor.tolist() == [[0, 0, 15, 20], [22.5, 10, 30, 20]]
    torch.testing.assert_close(out.scores, torch.tensor([0.1, 0.3]))
    assert results.pred_boxes.tensor[0].tolist() == [0, 0, 10, 10]


def test_postprocess_scales_keypoints_and_pastes_masks():
    boxes = Boxes([[0, 0, 4, 4], [8, 0, 12, 4], [25, 0, 30, 5]])
    masks = torch.tensor([0.0, 1.0, 1.0])[:, None, None, None].expand(3, 1, 4, 4)
    keypoints = torch.tensor([[[1.0, 2.0, 0.5]]]).expand(3, 1, 3)
    results = Instances((10, 20), pred_boxes=boxes, pred_masks=masks, pred_keypoints=keypoints)
    # Twice the height, one and a half times the width. The third box lies outside.
    out = detector_postprocess(results, 20, 30)
    assert out.pred_keypoints.tolist() == [[[1.5, 4.0, 0.5]]] * 2
    expected = torch.zeros(2, 20, 30, dtype=torch.bool)
    expected[1, 0:8, 12:18] = True
    assert out.pred_masks.equal(expected)
    assert results.pred_masks is masks and results.pred_keypoints is keypoints


def test_postprocess_without_detections():
    results = Instances((10, 20), pred_boxes=Boxes([]), scores=torch.zeros(0))
    assert len(detector_postprocess(results, 5, 5)) == 0

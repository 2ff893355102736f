"""The trainer's evaluation of masks and keypoints, with a model that answers from the annotation file."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from retinanet_ext import d2
from retinanet_ext.inference.encoded_mask_output import encoded_masks
from retinanet_ext.ops import EncodedMasks
from retinanet_ext.training.trainer import Trainer
from tests.builders import shapes_config


class RunLengths(EncodedMasks):
    """Run lengths that an evaluator must not decode."""

    def __iter__(self):
        raise AssertionError("an evaluator needs no pixels")


class Oracle(torch.nn.Module):
    """Returns the objects of the file, masks as bool (M, H, W) or, if it is asked to, as run lengths."""

    def __init__(self, shapes, fails=False):
        super().__init__()
        content = json.loads((shapes / "annotations" / "shapes_val.json").read_text())
        self.size = (content["images"][0]["height"], content["images"][0]["width"])
        self.annotations = content["annotations"]
        self.category_ids = sorted(category["id"] for category in content["categories"])
        self.encode_masks = False
        self.asked = []
        self.fails = fails

    def forward(self, batched_inputs):
        self.asked.append(self.encode_masks)
        if self.fails:
            raise RuntimeError("out of memory")
        return [{"instances": self._instances(inputs["image_id"])} for inputs in batched_inputs]

    def _instances(self, image_id):
        objects = [a for a in self.annotations if a["image_id"] == image_id]
        boxes = torch.tensor([a["bbox"] for a in objects]).reshape(-1, 4)
        points = torch.tensor([a["keypoints"] for a in objects]).reshape(len(objects), -1, 3)
        rles = [mask_api.merge(mask_api.frPyObjects(a["segmentation"], *self.size)) for a in objects]
        instances = d2.Instances(self.size)
        instances.pred_boxes = d2.Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
        instances.scores = torch.ones(len(objects))
        instances.pred_classes = torch.tensor([self.category_ids.index(a["category_id"]) for a in objects])
        dense = np.array([mask_api.decode(rle) for rle in rles], bool).reshape(len(objects), *self.size)
        instances.pred_masks = RunLengths(rles, self.size) if self.encode_masks else torch.as_tensor(dense)
        # Models count from the image's corner, COCO from the centre of its first pixel.
        instances.pred_keypoints = points + torch.tensor([0.5, 0.5, 0])
        return instances


def test_masks_and_keypoints_are_evaluated_and_recorded(shapes, tmp_path, caplog):
    caplog.set_level("INFO")
    model = Oracle(shapes)
    cfg = shapes_config(shapes, tmp_path)
    Trainer.test(cfg, model)
    assert all(model.asked) and not model.encode_masks
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"bbox", "segm", "keypoints", "data", "reasons"} == set(results)
    for task in ("bbox", "segm", "keypoints"):
        assert {name for name, value in results[task].items() if value is None} == set(results["reasons"][task])
    for task in ("bbox", "segm", "keypoints"):
        assert results[task]["AP"] == pytest.approx(100), task
        assert ("APs" in results[task]) == (task != "keypoints")
    assert "TEST.KEYPOINT_OKS_SIGMAS is empty, and the data have 5 keypoints" in caplog.text


def test_sigmas_come_from_the_config(shapes, tmp_path):
    cfg = shapes_config(shapes, tmp_path, "TEST.KEYPOINT_OKS_SIGMAS", "[0.1, 0.1]")
    with pytest.raises(ValueError, match=r"TEST.KEYPOINT_OKS_SIGMAS .*\[0.1, 0.1\]; it needs 5 positive"):
        Trainer.test(cfg, Oracle(shapes))


def test_the_model_is_as_before_after_an_error(shapes, tmp_path):
    model = Oracle(shapes, fails=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        Trainer.test(shapes_config(shapes, tmp_path), model)
    assert model.asked == [True] and model.encode_masks is False


def test_modules_in_wrappers_are_asked_too(shapes):
    inner, plain = Oracle(shapes), torch.nn.Linear(1, 1)
    with encoded_masks(torch.nn.Sequential(inner, plain)):
        assert inner.encode_masks and not hasattr(plain, "encode_masks")
    assert inner.encode_masks is False


@pytest.mark.parametrize("metric", ["segm/AP", "keypoints/AP50"])
def test_the_best_checkpoint_may_follow_masks_or_keypoints(shapes, tmp_path, metric, monkeypatch):
    oracle = Oracle(shapes)
    whole_test = Trainer.test.__func__
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, cfg, model, e=None: whole_test(cls, cfg, oracle, e)))
    options = ["TEST.BEST_METRIC", metric, "TEST.EVAL_PERIOD", "1", "SOLVER.MAX_ITER", "2"]
    options += ["MODEL.MASK_ON", "True", "MODEL.KEYPOINT_ON", "True"]
    Trainer(shapes_config(shapes, tmp_path, *options)).train()
    assert (tmp_path / "model_best.pth").exists()

"""The plug-in: MaskRCNN in Detectron2's own predictor, evaluator and visualizer."""

import json

import numpy as np
import pytest
import torch

from retinanet_ext import d2

if d2.ENGINE != "detectron2":
    pytest.skip("needs the engine detectron2", allow_module_level=True)

from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.utils.visualizer import Visualizer

from retinanet_ext.ops.encoded_masks import EncodedMasks
from tests.instance.tiny_rcnn import tame, two_stage_config


@pytest.fixture
def cfg(shapes, tmp_path):
    name = "instances_in_detectron2"
    if name not in DatasetCatalog.list():
        register_coco_instances(name, {}, str(shapes / "annotations" / "shapes_val.json"), str(shapes / "val"))
    opts = ["MODEL.MASK_ON", "True", "DATASETS.TEST", f"('{name}',)", "INPUT.MIN_SIZE_TEST", "96"]
    torch.manual_seed(0)
    cfg = two_stage_config("FPN", *opts, "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(tmp_path))
    model = d2.build_model(cfg)
    tame(model)
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    return cfg


def test_predictor_evaluator_and_visualizer_take_both_forms_of_masks(cfg, tmp_path):
    predictor, (name,) = DefaultPredictor(cfg), cfg.DATASETS.TEST
    image, found, results, files = np.full((50, 70, 3), 128, np.uint8), {}, {}, {}
    image[10:40, 20:50] = (255, 0, 0)
    for encodes in (False, True):
        predictor.model.encode_masks = encodes
        found[encodes] = predictor(image)["instances"]
        evaluator = COCOEvaluator(name, tasks=("bbox", "segm"), output_dir=str(tmp_path / str(encodes)))
        results[encodes] = inference_on_dataset(predictor.model, build_detection_test_loader(cfg, name), evaluator)
        files[encodes] = json.loads((tmp_path / str(encodes) / "coco_instances_results.json").read_text())
        drawn = Visualizer(image[:, :, ::-1], MetadataCatalog.get(name)).draw_instance_predictions(found[encodes])
        assert drawn.get_image().shape == image.shape and (drawn.get_image() != image[:, :, ::-1]).any()
    assert len(found[False]) > 0 and isinstance(found[True].pred_masks, EncodedMasks)
    assert torch.equal(found[True].pred_masks.tensor, found[False].pred_masks)
    assert "AP" in results[True]["segm"] and len(files[True]) > 0
    assert files[True] == files[False]

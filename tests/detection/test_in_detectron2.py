"""The plug-in: our meta-architecture in Detectron2's own trainer, predictor and evaluator."""

import numpy as np
import pytest
import torch

from retinanet_ext import d2

if d2.ENGINE != "detectron2":
    pytest.skip("needs the engine detectron2", allow_module_level=True)

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOEvaluator, inference_on_dataset

import retinanet_ext


@pytest.fixture
def cfg(shapes, tmp_path):
    for split in ("train", "val"):
        name = f"plugin_{split}"
        if name not in DatasetCatalog.list():
            register_coco_instances(name, {}, str(shapes / "annotations" / f"shapes_{split}.json"), str(shapes / split))
    cfg = get_cfg()
    retinanet_ext.add_retinanet_ext_config(cfg)
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "FocalRetinaNet", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", "16"])
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"])
    cfg.merge_from_list(["MODEL.RETINANET.NUM_CLASSES", "5", "MODEL.RETINANET.NUM_CONVS", "1"])
    cfg.merge_from_list(["DATASETS.TRAIN", "('plugin_train',)", "DATASETS.TEST", "('plugin_val',)"])
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "DATALOADER.NUM_WORKERS", "0"])
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", str(tmp_path)])
    return cfg


def test_default_trainer_predictor_and_evaluator(cfg, tmp_path):
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert (tmp_path / "model_final.pth").exists()

    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    predictor = DefaultPredictor(cfg)
    found = predictor(np.zeros((50, 70, 3), dtype=np.uint8))["instances"]
    assert found.image_size == (50, 70)

    evaluator = COCOEvaluator("plugin_val", output_dir=str(tmp_path))
    results = inference_on_dataset(predictor.model, build_detection_test_loader(cfg, "plugin_val"), evaluator)
    assert "AP" in results["bbox"]


def test_a_class_id_equal_to_the_number_of_classes_is_no_background(cfg):
    # Detectron2's RetinaNet silently trains such objects as background.
    cfg.MODEL.RETINANET.NUM_CLASSES = 1
    assert len(MetadataCatalog.get("plugin_train").get("thing_classes", range(5))) == 5
    with pytest.raises(ValueError, match="tiny_shapes/train/.* has class .; legal are 0..0"):
        trainer = DefaultTrainer(cfg)
        trainer.train()


def test_resumes_in_detectron2(cfg, tmp_path):
    DefaultTrainer(cfg).train()
    cfg.SOLVER.MAX_ITER = 5
    trainer = DefaultTrainer(cfg)
    before = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]["loss_normalizer.average"]
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 3
    torch.testing.assert_close(torch.as_tensor(before), trainer.model.loss_normalizer.average)

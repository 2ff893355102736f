"""The plug-in: our meta-architecture in Detectron2's own trainer, predictor and evaluator."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from retinanet_ext import d2

if d2.ENGINE != "detectron2":
    pytest.skip("needs the engine detectron2", allow_module_level=True)

from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOEvaluator, inference_on_dataset

import retinanet_ext
from retinanet_ext.training.trainer import Trainer


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


def test_data_of_the_config_in_the_default_trainer(shapes, tmp_path, cfg):
    """`load_config` registers DATASETS.CUSTOM and sets the class count; a class of Detectron2 does the rest."""
    custom = [
        {"NAME": f"from_config_{split}", "FORMAT": "coco", "IMAGES": str(shapes / split),
         "JSON": str(shapes / "annotations" / f"shapes_{split}.json")}
        for split in ("train", "val")
    ]  # fmt: skip
    cfg.MODEL.RETINANET.pop("NUM_CLASSES")  # taken from the data, because the file does not set it
    cfg.DATASETS.CUSTOM = custom
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("from_config_train",), ("from_config_val",)
    (tmp_path / "my.yaml").write_text(cfg.dump())
    loaded = retinanet_ext.load_config(str(tmp_path / "my.yaml"), ["SOLVER.MAX_ITER", "1"])
    assert loaded.MODEL.RETINANET.NUM_CLASSES == 5
    trainer = DefaultTrainer(loaded)
    trainer.train()
    results = inference_on_dataset(
        trainer.model,
        build_detection_test_loader(loaded, "from_config_val"),
        COCOEvaluator("from_config_val", output_dir=str(tmp_path)),
    )
    assert "bbox" in results


def test_an_unregistered_dataset_says_what_to_do():
    with pytest.raises(KeyError, match=r"'plugin_trian' is not registered\. .*retinanet_ext\.load_config, which regis"):
        retinanet_ext.load_config(None, ["DATASETS.TRAIN", "('plugin_trian',)"])


def test_a_stream_passed_to_the_train_loader(cfg):
    """Refused in the catalog, where it would be read to its end, but not where Detectron2 takes it."""
    records = DatasetCatalog.get("plugin_train")

    class Stream(IterableDataset):
        def __iter__(self):
            return itertools.cycle(records)

    class StreamTrainer(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return build_detection_train_loader(
                Stream(), mapper=DatasetMapper(cfg, True), total_batch_size=2, aspect_ratio_grouping=False
            )

    cfg.DATASETS.TEST = ()
    trainer = StreamTrainer(cfg)
    trainer.train()
    assert trainer.iter == 3

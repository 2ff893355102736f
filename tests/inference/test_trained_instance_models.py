"""Runs of MaskRCNN and InstanceRetinaNet, loaded again: results, files, videos, and evaluation in training."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import retinanet_ext
from retinanet_ext.d2 import build_model
from retinanet_ext.inference.file_predictions import FilePredictions
from retinanet_ext.inference.sources import Source
from retinanet_ext.ops.encoded_masks import EncodedMasks
from retinanet_ext.training.trainer import Trainer
from tests.builders import shapes_config, small_config
from tests.instance.tiny_rcnn import TINY, tame, two_stage_config

BRANCHES = ["MODEL.MASK_ON", "True", "MODEL.KEYPOINT_ON", "True"]
HEADS = [*TINY[TINY.index("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE") :], *BRANCHES]
FORMS = ["InstanceRetinaNet", "FPN", "C4"]


def make_run(form: str, folder: Path) -> Path:
    """The folder of a finished run: config and weights."""
    size = ["INPUT.MIN_SIZE_TEST", "96", "OUTPUT_DIR", str(folder), "MODEL.CLASS_NAMES", str(list("abcde"))]
    size += ["TEST.DETECTIONS_PER_IMAGE", "500"]
    torch.manual_seed(0)
    if form == "InstanceRetinaNet":
        opts = ["MODEL.META_ARCHITECTURE", form, *HEADS, "MODEL.ROI_HEADS.IN_FEATURES", "['p3', 'p4', 'p5']"]
        cfg = small_config(*opts, *size, "MODEL.RETINANET.NUM_CLASSES", "5")
        model = build_model(cfg)
        torch.nn.init.normal_(model.head.cls_score.weight, std=1.0)
    else:
        cfg = two_stage_config(form, *(BRANCHES if form == "FPN" else BRANCHES[:2]), *size)
        model = build_model(cfg)
        tame(model)
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    return folder


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_run_gives_encoded_masks_above_the_threshold(form, dtype, tmp_path, picture):
    folder = make_run(form, tmp_path / "run")
    few, many = (
        retinanet_ext.load(folder, score_threshold=t, device="cpu", overrides=["TEST.DTYPE", dtype])(picture)
        for t in (0.5, 0.3)
    )
    assert 0 < len(few) < len(many) and few.scores.min() > 0.5
    assert isinstance(many.pred_masks, EncodedMasks) and many.pred_masks.image_size == (96, 128)
    assert few.has("pred_keypoints") == (form != "C4")
    # A mask lies within a pixel of its box.
    for (x0, y0, x1, y1), mask in zip(many.pred_boxes.tensor.tolist(), many.pred_masks):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        if len(rows):
            assert y0 - 2 <= rows.min() and rows.max() <= y1 + 2 and x0 - 2 <= columns.min() and columns.max() <= x1 + 2
    records = json.loads(json.dumps(many.to_coco(image_id=1)))
    assert len(records) == len(many) and all("counts" in record["segmentation"] for record in records)
    assert many.draw().shape == picture.shape


@pytest.mark.parametrize("form", FORMS)
def test_files_and_videos(form, tmp_path, picture):
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    job = FilePredictions(retinanet_ext.load(make_run(form, tmp_path / "run"), device="cpu"), tmp_path / "out")
    job.run_images([Source(path, Path(path.name))])
    coco = COCO(tmp_path / "out" / "predictions.json")
    assert len(coco.anns) == job.detections > 0 and job.skipped == {}
    assert all(coco.annToMask(annotation).shape == (96, 128) for annotation in coco.anns.values())
    writer = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (128, 96))
    for _ in range(2):
        writer.write(picture)
    writer.release()
    source = Source(tmp_path / "v.mp4", Path("v.mp4"))
    job.run_video(source)
    content = json.loads(source.results(tmp_path / "out").read_text())
    assert len(content["images"]) == 2
    assert content["annotations"] and all("counts" in record["segmentation"] for record in content["annotations"])


@pytest.mark.parametrize("form", FORMS)
def test_without_detections_the_best_score_below_the_threshold_is_known(form, tmp_path, picture):
    predictor = retinanet_ext.load(make_run(form, tmp_path / "run"), score_threshold=1.0, device="cpu")
    Image.fromarray(picture).save(tmp_path / "a.png")
    job = FilePredictions(predictor, tmp_path / "out", pictures=False)
    job.run_images([Source(tmp_path / "a.png", Path("a.png"))])
    assert job.detections == 0 and job.score_threshold() == 1.0
    best, images = job.best_score()
    assert 0.05 < best <= 1.0 and images == 1
    assert job.score_threshold() == 1.0


@pytest.mark.parametrize("model", ["MaskRCNN", "InstanceRetinaNet"])
def test_training_evaluates_masks_in_bfloat16(model, shapes, tmp_path):
    file = {"MaskRCNN": "mask_rcnn", "InstanceRetinaNet": "mask_retinanet"}[model]
    opts = ["TEST.DTYPE", "bfloat16", "SOLVER.MAX_ITER", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)"]
    opts += ["MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"]
    cfg = shapes_config(shapes, tmp_path, *opts, file=f"configs/quick/{file}.yaml")
    trainer = Trainer(cfg)
    trainer.train()
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"bbox", "segm"} <= set(results) and "AP" in results["segm"]
    assert trainer.model.encode_masks is False and trainer.model.compute_dtype is None
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())

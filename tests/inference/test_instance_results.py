"""Masks and keypoints in results, files and pictures."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet_ext.config.class_count import nms_threshold, num_classes, num_classes_key, set_score_threshold
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import Boxes, Instances
from retinanet_ext.inference.file_predictions import FilePredictions
from retinanet_ext.inference.predictions_json import PredictionsFile
from retinanet_ext.inference.predictor import Predictor
from retinanet_ext.inference.result import Result
from retinanet_ext.inference.sources import Source
from retinanet_ext.inference.tta import DenseDetectorWithTTA
from retinanet_ext.ops.encoded_masks import EncodedMasks
from tests.builders import small_config


class SquareFinder(torch.nn.Module):
    """Finds one object: the white pixels, its mask, and two keypoints: its upper left and lower right corner."""

    def __init__(self, encodes):
        super().__init__()
        self.test_score_thresh = 0.5
        if encodes:
            self.encode_masks = False

    def forward(self, batch):
        return [{"instances": self.detect(inputs["image"] > 200)} for inputs in batch]

    def detect(self, white):
        mask = white.all(dim=0)
        rows, columns = torch.nonzero(mask, as_tuple=True)
        x0, y0, x1, y1 = (float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        masks = mask[None]
        if getattr(self, "encode_masks", False):
            masks = EncodedMasks([mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))], mask.shape)
        return Instances(
            tuple(mask.shape),
            pred_boxes=Boxes(torch.tensor([[x0, y0, x1, y1]])),
            scores=torch.tensor([0.75]),
            pred_classes=torch.tensor([1]),
            pred_masks=masks,
            pred_keypoints=torch.tensor([[[x0 + 0.5, y0 + 0.5, 0.9], [x1 - 0.5, y1 - 0.5, 0.0]]]),
        )


WORDS = ["MODEL.META_ARCHITECTURE", "FocalRetinaNet", "MODEL.RETINANET.NUM_CLASSES", "2", "MODEL.DEVICE", "cpu"]
WORDS += ["MODEL.CLASS_NAMES", "['cat', 'square']", "MODEL.CLASS_IDS", "[17, 49]", "INPUT.MIN_SIZE_TEST", "0"]
WORDS += ["MODEL.KEYPOINT_NAMES", "['first', 'last']", "MODEL.KEYPOINT_LINES", "[['first', 'last', [0, 255, 0]]]"]


def make_predictor(encodes=True):
    return Predictor(load_config(None, WORDS), SquareFinder(encodes), batch_size=2)


@pytest.fixture
def picture():
    """Black, 120 x 80, with a white square of 40 x 20 pixels at (30, 10) without its last column's lower half."""
    image = np.zeros((80, 120, 3), np.uint8)
    image[10:30, 30:70] = 255
    image[20:30, 69] = 0
    return image


@pytest.mark.parametrize("encodes", [True, False])
def test_results_carry_run_lengths_also_from_a_model_with_dense_masks(encodes, picture):
    predictor = make_predictor(encodes)
    assert getattr(predictor.model, "encode_masks", encodes) is encodes
    result = predictor(picture)
    assert isinstance(result.pred_masks, EncodedMasks)
    assert np.array_equal(result.pred_masks.tensor[0].numpy(), picture[..., 0] == 255)
    assert len(result[:0].pred_masks) == 0 and result.to("cpu").pred_masks.areas().tolist() == [790]


def test_coco_records_have_masks_and_keypoints(picture):
    (record,) = json.loads(json.dumps(make_predictor()(picture).to_coco(image_id=7)))
    assert record["category_id"] == 49 and record["bbox"] == [30.0, 10.0, 40.0, 20.0]
    assert np.array_equal(mask_util.decode(record["segmentation"]), picture[..., 0] == 255)
    # Of the pixel in column 30 and row 10 the centre is (30.5, 10.5), and (30, 10) in COCO's files.
    assert np.allclose(record["keypoints"], [30, 10, 0.9, 69, 29, 0.0])


def test_pictures_have_masks_and_points(picture):
    grey = np.where(picture == 0, 90, picture).astype(np.uint8)
    drawn = make_predictor()(grey).draw().astype(int)
    assert drawn.shape == grey.shape and np.ptp(drawn[24:27, 45:50], axis=-1).max() > 40, "coloured inside"
    b, g, r = drawn[10, 30]
    assert r > 150 and g < 120 and b < 120, "the first keypoint; the last has no score"


def test_images_and_videos_to_pictures_and_files(tmp_path, picture):
    paths = [tmp_path / name for name in ("a.png", "b.png", "broken.png")]
    for path in paths[:2]:
        Image.fromarray(picture).save(path)
    paths[2].write_text("no image")
    job = FilePredictions(make_predictor(), tmp_path / "out")
    job.run_images([Source(path, Path(path.name)) for path in paths])
    assert job.done == 2 and list(job.skipped) == paths[2:] and job.score_threshold() == 0.5
    coco = COCO(tmp_path / "out" / "predictions.json")
    assert len(coco.imgs) == 2 and not list((tmp_path / "out").glob("*.unfinished"))
    for annotation in coco.anns.values():
        assert annotation["area"] == 790 and annotation["num_keypoints"] == 1
        assert np.array_equal(coco.annToMask(annotation), picture[..., 0] == 255)
    writer = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (120, 80))
    for _ in range(3):
        writer.write(picture)
    writer.release()
    source = Source(tmp_path / "v.mp4", Path("v.mp4"))
    job.run_video(source)
    annotations = json.loads(source.results(tmp_path / "out").read_text())["annotations"]
    assert len(annotations) == 3 and all("counts" in a["segmentation"] for a in annotations)


def test_a_file_without_images_is_left_out_if_asked_and_none_is_left_by_an_error(tmp_path):
    for keep_empty in (True, False):
        with PredictionsFile(tmp_path / f"{keep_empty}.json", ["a"], [1], keep_empty):
            pass
    with pytest.raises(RuntimeError), PredictionsFile(tmp_path / "failed.json", ["a"], [1]):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["True.json"]
    assert json.loads((tmp_path / "True.json").read_text())["annotations"] == []


def ground_truth_as_predictions(coco, kind, folder):
    """The file of predictions that are the ground truth of all images."""
    categories = sorted(coco.cats)
    with PredictionsFile(folder / "predictions.json", [coco.cats[c]["name"] for c in categories], categories) as file:
        for image in coco.imgs.values():
            found = [a for a in coco.imgToAnns[image["id"]] if not a["iscrowd"]]
            found = [a for a in found if kind == "segm" or a["num_keypoints"]]
            size = (image["height"], image["width"])
            boxes = torch.tensor([a["bbox"] for a in found]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            instances = Instances(size, pred_boxes=Boxes(boxes), scores=torch.linspace(1, 0.5, len(found)))
            instances.pred_classes = torch.tensor([categories.index(a["category_id"]) for a in found]).long()
            instances.pred_masks = EncodedMasks([coco.annToRLE(a) for a in found], size)
            if kind == "keypoints":
                points = torch.tensor([a["keypoints"] for a in found], dtype=torch.float32).reshape(len(found), 17, 3)
                instances.pred_keypoints = points + torch.tensor([0.5, 0.5, 0])
            file.add(Result.of(instances, None, ["x"] * len(categories), categories), image["file_name"])
    return json.loads((folder / "predictions.json").read_text())


@pytest.mark.parametrize("kind, name", [("segm", "instances"), ("keypoints", "person_keypoints")])
def test_ground_truth_as_predictions_has_an_ap_of_one(kind, name, shared_data, tmp_path):
    coco = COCO(shared_data / "coco_mini" / "annotations" / f"{name}_val2017.json")
    content = ground_truth_as_predictions(coco, kind, tmp_path)
    ids = {image["file_name"]: image["id"] for image in coco.imgs.values()}
    for record in content["annotations"]:
        record["image_id"] = ids[record.pop("file_name")]
        record.pop("bbox")  # so that the area is that of the mask
    evaluation = COCOeval(coco, coco.loadRes(content["annotations"]), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == 1.0 and {*evaluation.stats[3:5]} <= {1.0, -1.0}


def test_supervision_gets_masks(picture):
    pytest.importorskip("supervision", reason="supervision is not installed")
    detections = make_predictor()(picture).to_supervision()
    assert np.array_equal(detections.mask[0], picture[..., 0] == 255)


def test_sahi_gets_masks_at_their_place_in_the_image(picture):
    sahi_predict = pytest.importorskip("sahi.predict", reason="sahi is not installed")
    from retinanet_ext.inference.sahi_model import SahiModel

    image = np.zeros((160, 240, 3), np.uint8)
    image[80:, 120:] = picture
    predictor = make_predictor()
    find = predictor.model.detect

    def nothing_on_black(white):
        return find(white) if white.any() else find(torch.ones_like(white))[:0]

    predictor.model.detect = nothing_on_black
    result = sahi_predict.get_sliced_prediction(
        image, SahiModel(predictor), slice_height=80, slice_width=120, overlap_height_ratio=0, overlap_width_ratio=0,
        perform_standard_pred=False, verbose=0,
    )  # fmt: skip
    (found,) = result.object_prediction_list
    assert (found.mask.bool_mask != (image[..., 0] == 255)).sum() < 20


def test_the_number_of_classes_and_thresholds_are_those_of_the_model_in_use():
    cfg = small_config("MODEL.RETINANET.NUM_CLASSES", "3")
    cfg.defrost()
    cfg.MODEL.ROI_HEADS = type(cfg)({"NUM_CLASSES": 7, "SCORE_THRESH_TEST": 0.1, "NMS_THRESH_TEST": 0.4})
    assert (num_classes(cfg), num_classes_key(cfg)) == (3, "MODEL.RETINANET.NUM_CLASSES")
    for name in ("MaskRCNN", "GeneralizedRCNN"):
        cfg.MODEL.META_ARCHITECTURE = name
        assert (num_classes(cfg), num_classes_key(cfg)) == (7, "MODEL.ROI_HEADS.NUM_CLASSES")
    assert nms_threshold(cfg) == 0.4
    set_score_threshold(cfg, 0.8)
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.8


def test_test_time_augmentation_refuses_masks_and_keypoints(picture):
    image = torch.from_numpy(picture.transpose(2, 0, 1).copy())
    with pytest.raises(ValueError, match="pred_masks and pred_keypoints; set TEST.AUG.ENABLED False"):
        DenseDetectorWithTTA(small_config("TEST.AUG.MIN_SIZES", "(80,)"), SquareFinder(False))([{"image": image}])
    cfg = small_config()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.KEYPOINT_ON = "InstanceRetinaNet", True
    with pytest.raises(ValueError, match="MODEL.KEYPOINT_ON is True"):
        DenseDetectorWithTTA(cfg, SquareFinder(False))

"""Detections in other libraries: COCO's own tools, supervision, SAHI. The latter two are optional to install."""

import numpy as np
import pytest
import torch

import retinanet_ext
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import ENGINE, Boxes, Instances, MetadataCatalog, build_model
from retinanet_ext.inference.predictor import Predictor
from tests.builders import small_config


class DotFinder(torch.nn.Module):
    """Finds one object of class 1: the smallest box around all pixels that are not black."""

    def forward(self, batch):
        return [{"instances": self.detect(inputs)} for inputs in batch]

    def detect(self, inputs):
        image = inputs["image"]
        instances = Instances((inputs["height"], inputs["width"]))
        rows, columns = torch.nonzero(image.sum(dim=0) > 0, as_tuple=True)
        boxes = [[min(columns), min(rows), max(columns) + 1, max(rows) + 1]] if len(rows) else []
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.full((len(boxes),), 0.75)
        instances.pred_classes = torch.ones(len(boxes), dtype=torch.int64)
        return instances


@pytest.fixture
def predictor():
    words = ["MODEL.META_ARCHITECTURE", "FocalRetinaNet", "MODEL.RETINANET.NUM_CLASSES", "2"]
    words += ["MODEL.CLASS_NAMES", "['cat', 'dot']", "MODEL.CLASS_IDS", "[17, 49]"]
    return Predictor(load_config(None, [*words, "INPUT.MIN_SIZE_TEST", "0", "MODEL.DEVICE", "cpu"]), DotFinder())


@pytest.fixture
def picture():
    """Black, 300 x 200, with a white dot of 6 x 4 pixels at (210, 120)."""
    image = np.zeros((200, 300, 3), np.uint8)
    image[120:124, 210:216] = 255
    return image


def test_coco_records_have_the_ids_of_the_data(predictor, picture):
    assert predictor(picture).to_coco(image_id=7) == [
        {"image_id": 7, "category_id": 49, "bbox": [210.0, 120.0, 6.0, 4.0], "score": 0.75}
    ]


def test_supervision_gets_class_names(predictor, picture):
    pytest.importorskip("supervision", reason="supervision is not installed")
    detections = predictor(picture).to_supervision()
    assert detections.xyxy.tolist() == [[210.0, 120.0, 216.0, 124.0]]
    assert detections.class_id.tolist() == [1] and detections.data["class_name"].tolist() == ["dot"]


def test_the_converter_of_supervision_takes_a_result(predictor, picture):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    detections = supervision.Detections.from_detectron2(predictor(picture))
    assert detections.xyxy.tolist() == [[210.0, 120.0, 216.0, 124.0]] and detections.confidence.tolist() == [0.75]


def test_sahi_finds_the_dot_in_its_slice_and_names_it(predictor, picture):
    """The dot lies in the slice that begins at (180, 90): SAHI must add that offset again."""
    sahi_predict = pytest.importorskip("sahi.predict", reason="sahi is not installed")
    from retinanet_ext.inference.sahi_model import SahiModel

    result = sahi_predict.get_sliced_prediction(
        picture, SahiModel(predictor), slice_height=100, slice_width=100,
        overlap_height_ratio=0.1, overlap_width_ratio=0.1, perform_standard_pred=False, verbose=0,
    )  # fmt: skip
    (found,) = result.object_prediction_list
    assert found.bbox.to_xyxy() == [210, 120, 216, 124]
    assert (found.category.id, found.category.name, found.score.value) == (1, "dot", 0.75)


def test_a_model_publishes_its_class_names_for_the_tools_that_look_them_up():
    words = ["DATASETS.TRAIN", "('published_only_here',)", "MODEL.CLASS_NAMES", "['a', 'b', 'c']"]
    build_model(small_config(*words, "MODEL.RETINANET.NUM_CLASSES", "3"))
    assert MetadataCatalog.get("published_only_here").thing_classes == ["a", "b", "c"]


@pytest.mark.skipif(ENGINE != "detectron2", reason="SAHI's own model type needs Detectron2")
def test_the_model_type_detectron2_of_sahi_takes_our_config_and_checkpoint(tmp_path):
    sahi = pytest.importorskip("sahi", reason="sahi is not installed")
    words = ["DATASETS.TRAIN", "('of_sahi',)", "MODEL.CLASS_NAMES", "['a', 'b', 'c']", "MODEL.DEVICE", "cpu"]
    cfg = small_config(*words, "MODEL.RETINANET.NUM_CLASSES", "3")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    model = sahi.AutoDetectionModel.from_pretrained(
        model_type="detectron2", model_path=str(tmp_path / "model.pth"), config_path=str(tmp_path / "config.yaml"),
        device="cpu",
    )  # fmt: skip
    assert model.category_names == ["a", "b", "c"]


def test_load_is_a_name_of_the_package():
    from retinanet_ext.inference.trained_model import load

    assert retinanet_ext.load is load

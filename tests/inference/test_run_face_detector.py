import numpy as np
import pytest
import torch

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import DetectionCheckpointer, build_model
from retinanet_ext.inference.run_face_detector import RunFaceDetector, face_input
from tests.builders import small_config


def write_run(folder):
    """A run of a detector that finds something everywhere: all of its scores are above the threshold."""
    cfg = small_config("MODEL.RETINANET.PRIOR_PROB", "0.9", "OUTPUT_DIR", str(folder))
    cfg.MODEL.CLASS_NAMES = ["a", "b", "c"]
    torch.manual_seed(0)
    model = build_model(cfg)
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    DetectionCheckpointer(model, str(folder)).save("model_final")
    return str(folder)


def config(*opts):
    opts = ["MODEL.META_ARCHITECTURE", "FaceNet", "MODEL.DEVICE", "cpu", "INPUT.FACE.SIZE", "[32, 32]", *opts]
    return load_config(None, opts, datasets=False)


def test_the_detections_of_a_run_are_faces(tmp_path):
    run = write_run(tmp_path / "run")
    image = np.random.RandomState(0).randint(0, 256, (96, 80, 3)).astype(np.uint8)
    faces = face_input(config("INPUT.FACE.DETECTOR", run, "INPUT.FACE.MARGIN", "0.0"))
    boxes = faces.detector(image)
    assert boxes.shape[1] == 4 and len(boxes) and boxes.dtype == np.float64
    assert (boxes[:, :2] <= boxes[:, 2:]).all() and boxes.max() <= 96
    crop = faces(image)
    assert crop.found and crop.image.shape == (32, 32, 3)
    assert any(np.allclose((crop.box[:2] + crop.box[2:]) / 2, (box[:2] + box[2:]) / 2) for box in boxes)


def test_what_is_no_run_of_a_detector_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="legal: '' .*'cascade'"):
        face_input(config("INPUT.FACE.DETECTOR", "cascades"))
    cfg = config()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    with pytest.raises(ValueError, match="a run of FaceNet; name the run of a detector"):
        RunFaceDetector(str(tmp_path), "cpu")

"""The detector of a run of this package as a detector of faces: INPUT.FACE.DETECTOR with the folder of a run."""

import numpy as np

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import CfgNode
from retinanet_ext.data.identity_datasets import embeds_identities
from retinanet_ext.embedding.face_detectors import CASCADE
from retinanet_ext.embedding.face_input import FaceInput


class RunFaceDetector:
    """Boxes of all detections of a run's model, whatever their class."""

    def __init__(self, run: str, device: str) -> None:
        """
        Args:
            run: the output folder of a run, or its ``config.yaml``.
            device: MODEL.DEVICE.

        Raises:
            FileNotFoundError: no such run, or it has no checkpoint.
            ValueError: its model detects nothing.
        """
        from .trained_model import config_path, load  # which loads models that crop faces

        path = config_path(run)
        if not path.is_file():
            raise FileNotFoundError(
                f"INPUT.FACE.DETECTOR is {run!r}, and there is no {path}; legal: '' (a fixed centre crop), {CASCADE!r} "
                "(OpenCV's), or the folder of a run of a detector"
            )
        if embeds_identities(load_config(str(path), datasets=False)):
            raise ValueError(f"INPUT.FACE.DETECTOR is {run!r}, a run of FaceNet; name the run of a detector")
        self._predictor = load(run, device=device)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Boxes of an image, uint8 BGR ``(H, W, 3)``: float64 ``(N, 4)``, XYXY in pixels."""
        return self._predictor(image).pred_boxes.tensor.double().cpu().numpy()


def face_input(cfg: CfgNode) -> FaceInput:
    """What crops the faces of a config, with any detector that INPUT.FACE.DETECTOR may name."""
    name = cfg.INPUT.FACE.DETECTOR
    detector = None if name in ("", CASCADE) else RunFaceDetector(name, cfg.MODEL.DEVICE)
    return FaceInput.from_config(cfg, detector)

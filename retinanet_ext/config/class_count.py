"""Which keys of the config hold the number of classes and the thresholds of its model."""

from typing import Any

# Models whose classes and scores come from a second stage.
TWO_STAGES = ("MaskRCNN", "GeneralizedRCNN", "PanopticFPN")


def _section(cfg: Any) -> str:
    return "ROI_HEADS" if cfg.MODEL.META_ARCHITECTURE in TWO_STAGES else "RETINANET"


def num_classes_key(cfg: Any) -> str:
    """``MODEL.ROI_HEADS.NUM_CLASSES`` for models with two stages, ``MODEL.RETINANET.NUM_CLASSES`` for others."""
    return f"MODEL.{_section(cfg)}.NUM_CLASSES"


def num_classes(cfg: Any) -> int:
    """The number of classes of the model that the config names."""
    return cfg.MODEL[_section(cfg)].NUM_CLASSES


def score_threshold_key(cfg: Any) -> str:
    """The key of the score below which the model that the config names leaves detections out."""
    return f"MODEL.{_section(cfg)}.SCORE_THRESH_TEST"


def score_threshold(cfg: Any) -> float:
    """The score below which the model that the config names leaves detections out."""
    return cfg.MODEL[_section(cfg)].SCORE_THRESH_TEST


def set_score_threshold(cfg: Any, threshold: float) -> None:
    """Set the key of :func:`score_threshold_key`."""
    cfg.MODEL[_section(cfg)].SCORE_THRESH_TEST = threshold


def nms_threshold(cfg: Any) -> float:
    """The IoU above which the model that the config names takes two detections for one object."""
    return cfg.MODEL[_section(cfg)].NMS_THRESH_TEST

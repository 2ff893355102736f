"""Test-time augmentation for dense detectors."""

import torch
from torch import nn

from retinanet_ext.config.class_count import nms_threshold
from retinanet_ext.d2 import Boxes, DatasetMapperTTA, Instances
from retinanet_ext.ops import batched_nms


class DenseDetectorWithTTA(nn.Module):
    """Runs a detector on resized and flipped copies of each image and merges the detections by NMS.

    Detectron2's own wrapper supports only two-stage detectors. The views come from its ``DatasetMapperTTA``, so
    ``TEST.AUG.MIN_SIZES``, ``MAX_SIZE`` and ``FLIP`` have the same meaning. Only boxes are merged: a model with masks,
    keypoints or embeddings is refused.
    """

    def __init__(self, cfg, model: nn.Module, tta_mapper=None, batch_size: int = 3):
        """
        Args:
            cfg: ``TEST.AUG``, the model's ``NMS_THRESH_TEST`` and ``TEST.DETECTIONS_PER_IMAGE`` are read.
            model: maps a list of input dicts to a list of ``{"instances": Instances}``.
            tta_mapper: makes the views of one input; default ``DatasetMapperTTA(cfg)``.
            batch_size: views per forward pass.

        Raises:
            ValueError: the model has masks, keypoints or embeddings.
        """
        super().__init__()
        check_has_boxes_only(cfg)
        self.model = model
        self.tta_mapper = tta_mapper or DatasetMapperTTA(cfg)
        self.batch_size = batch_size
        self.nms_thresh = nms_threshold(cfg)
        self.max_detections = cfg.TEST.DETECTIONS_PER_IMAGE

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Take and return what the wrapped model does at inference. ``height`` and ``width`` default to the image's."""
        return [{"instances": self._merge(inputs)} for inputs in batched_inputs]

    def _merge(self, batched_input: dict) -> Instances:
        image_height, image_width = batched_input["image"].shape[1:]
        size = (batched_input.get("height", image_height), batched_input.get("width", image_width))
        views = self.tta_mapper({**batched_input, "height": size[0], "width": size[1]})
        boxes, scores, classes = (torch.cat(parts) for parts in zip(*self._detect(views)))
        keep = batched_nms(boxes, scores, classes, self.nms_thresh)[: self.max_detections]
        merged = Instances(size)
        merged.pred_boxes = Boxes(boxes[keep])
        merged.pred_boxes.clip(size)
        merged.scores = scores[keep]
        merged.pred_classes = classes[keep]
        return merged

    def _detect(self, views: list[dict]):
        """Boxes, scores and classes of each view, in pixels of the original image."""
        for start in range(0, len(views), self.batch_size):
            batch = views[start : start + self.batch_size]
            # Without height and width the model answers in pixels of the view, which `transforms` can map back.
            inputs = [{"image": view["image"]} for view in batch]
            for view, output in zip(batch, self.model(inputs)):
                found = output["instances"]
                refused = [name for name in ("pred_masks", "pred_keypoints", "embeddings") if found.has(name)]
                if refused:
                    raise ValueError(_refusal(f"the model returns {' and '.join(refused)}"))
                boxes = view["transforms"].inverse().apply_box(found.pred_boxes.tensor.cpu().numpy())
                boxes = torch.as_tensor(boxes, dtype=torch.float32, device=found.scores.device)
                yield boxes, found.scores, found.pred_classes


def check_has_boxes_only(cfg) -> None:
    """Refuse a config whose model has masks, keypoints or embeddings.

    Raises:
        ValueError: the message names the key that switches them on.
    """
    switches = [key for key in ("MASK_ON", "KEYPOINT_ON", "EMBEDDING_ON") if cfg.MODEL[key]]
    # This model has no such branches, whatever the switches say.
    if switches and cfg.MODEL.META_ARCHITECTURE != "FocalRetinaNet":
        raise ValueError(_refusal(" and ".join(f"MODEL.{key} is True" for key in switches)))


def _refusal(reason: str) -> str:
    return (
        f"test-time augmentation merges boxes only, but {reason}; set TEST.AUG.ENABLED False, or switch masks, "
        "keypoints and embeddings off"
    )

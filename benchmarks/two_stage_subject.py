"""Mask R-CNN under measurement: this package's ``MaskRCNN`` and Detectron2's ``GeneralizedRCNN``."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.subject import CONFIGS, Subject
from benchmarks.subject import make_inputs as make_dense_inputs
from retinanet_ext.d2 import Keypoints, PolygonMasks

NUM_KEYPOINTS = 17
# Spread of the class logits: wide enough for some hundred scores above the threshold in an image.
LOGIT_STD = 2.0
# Detectron2's models know only its own heads.
DETECTRON2_NAMES = [
    "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_KEYPOINT_HEAD.NAME", "KRCNNConvDeconvUpsampleHead",
]  # fmt: skip


class TwoStageSubject(Subject):
    """One two-stage model with its optimizer and its fixed inputs."""

    config = CONFIGS / "instance" / "mask_rcnn_R_50_FPN_1x.yaml"
    own_model = "MaskRCNN"

    def options(self, settings) -> list[str]:
        classes = ["MODEL.ROI_HEADS.NUM_CLASSES", str(settings.classes)]
        names = [] if self.row.model == self.own_model else DETECTRON2_NAMES
        on = ["MODEL.MASK_ON", str("masks" in settings.heads), "MODEL.KEYPOINT_ON", str("keypoints" in settings.heads)]
        return [*classes, *names, *on]

    def make_inputs(self, settings) -> list[dict]:
        """The inputs of dense detectors, with an octagon in each box as its mask, and keypoints at random in it."""
        random, inputs = np.random.default_rng(1), make_dense_inputs(settings)
        for image in inputs:
            instances = image["instances"]
            boxes = instances.gt_boxes.tensor.numpy()
            if "masks" in settings.heads:
                instances.gt_masks = PolygonMasks([[_octagon(box)] for box in boxes])
            if "keypoints" in settings.heads:
                points = boxes[:, None, :2] + random.random((len(boxes), NUM_KEYPOINTS, 2)) * (
                    boxes[:, None, 2:] - boxes[:, None, :2]
                )
                visible = np.full((*points.shape[:2], 1), 2.0)
                instances.gt_keypoints = Keypoints(torch.from_numpy(np.concatenate([points, visible], 2)).float())
        return inputs

    def dense_head(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.proposal_generator.rpn_head

    @torch.no_grad()
    def make_weights(self, path: Path) -> None:
        # A random residual network enlarges small differences of its input from block to block: those of bfloat16 to a
        # third of the output. With small residuals, as in a trained network, they stay small.
        for name, scale in self.model.backbone.named_buffers():
            if name.endswith("conv3.norm.weight"):
                scale.fill_(0.2)
        super().make_weights(path)

    def scale_predictions(self) -> None:
        """Give the classes of the 1,000 proposals of an image scores of which some pass the threshold."""
        model, predictor = self.model.eval(), self.model.roi_heads.box_predictor
        images = model.preprocess_image(self.inputs)
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        logits = []
        handle = predictor.register_forward_hook(lambda module, args, outputs: logits.append(outputs[0]))
        model.roi_heads(images, features, proposals, None)
        handle.remove()
        # Proposals of a random network look alike; without their mean the classes differ between proposals.
        logits = torch.cat(logits)
        factor = LOGIT_STD / (logits - logits.mean(dim=0)).std()
        predictor.cls_score.weight.mul_(factor)
        predictor.cls_score.bias.sub_(logits.mean(dim=0)).mul_(factor)
        model.train()

    def state_of_both(self) -> dict:
        return self.model.state_dict()

    def inference_parts(self) -> dict[str, float]:
        """Seconds of each part of one inference, and of the whole."""
        model = self._model_for_inference()
        parts = {"backbone": model.backbone, "proposals": model.proposal_generator}
        for name in ("box_pooler", "box_head", "mask_pooler", "mask_head", "keypoint_pooler", "keypoint_head"):
            if hasattr(model.roi_heads, name):
                parts[name.replace("_", " ")] = getattr(model.roi_heads, name)
        with self._timed(parts) as seconds:
            start = self._now()
            self._infer(model)
            whole = self._now() - start
        return {**seconds, "rest (NMS, pasting)": whole - sum(seconds.values()), "inference": whole}

    @contextmanager
    def _timed(self, parts: dict[str, torch.nn.Module]) -> Iterator[dict[str, float]]:
        seconds, started, handles = defaultdict(float), {}, []

        def begin(name):
            return lambda *_: started.update({name: self._now()})

        def end(name):
            def add(*_):
                seconds[name] += self._now() - started[name]

            return add

        for name, module in parts.items():
            handles += [module.register_forward_pre_hook(begin(name)), module.register_forward_hook(end(name))]
        yield seconds
        for handle in handles:
            handle.remove()


def _octagon(box: np.ndarray) -> np.ndarray:
    """Polygon ``(16,)`` x, y, ...: the box without its corners."""
    x0, y0, x1, y1 = box
    x, y = (x1 - x0) / 4, (y1 - y0) / 4
    points = [(x0 + x, y0), (x1 - x, y0), (x1, y0 + y), (x1, y1 - y)]
    points += [(x1 - x, y1), (x0 + x, y1), (x0, y1 - y), (x0, y0 + y)]
    return np.array(points).reshape(-1)

"""torchvision's RetinaNet with the weights, anchors and inputs of the other models, and the methods of ``Subject``."""

import re
from pathlib import Path

import torch
from torchvision.models import resnet
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from benchmarks.subject import Subject, make_inputs
from benchmarks.workers import Row
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import ShapeSpec, build_anchor_generator

# Pattern in our parameter names -> replacement in theirs; applied in this order.
RENAMED = [
    (r"^backbone\.bottom_up\.stem\.", "backbone.body."),
    (r"^backbone\.bottom_up\.res(\d)\.", lambda match: f"backbone.body.layer{int(match[1]) - 1}."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"^backbone\.fpn_lateral(\d)\.", lambda match: f"backbone.fpn.inner_blocks.{int(match[1]) - 3}.0."),
    (r"^backbone\.fpn_output(\d)\.", lambda match: f"backbone.fpn.layer_blocks.{int(match[1]) - 3}.0."),
    (r"^backbone\.top_block\.", "backbone.fpn.extra_blocks."),
    (r"^head\.cls_subnet\.(\d)\.", lambda match: f"head.classification_head.conv.{int(match[1]) // 2}.0."),
    (r"^head\.bbox_subnet\.(\d)\.", lambda match: f"head.regression_head.conv.{int(match[1]) // 2}.0."),
    (r"^head\.cls_score\.", "head.classification_head.cls_logits."),
    (r"^head\.bbox_pred\.", "head.regression_head.bbox_reg."),
]


class TorchvisionSubject(Subject):
    """See :class:`benchmarks.subject.Subject`."""

    def __init__(self, row: Row, settings):
        torch.set_num_threads(settings.threads)
        torch.backends.cudnn.allow_tf32 = False
        self.row, self.device = row, torch.device(settings.device)
        self.scaler = torch.amp.GradScaler(settings.device, enabled=row.dtype == "float16")
        cfg = load_config("configs/detection/retinanet_R_50_FPN_1x.yaml", datasets=False)
        body = getattr(resnet, f"resnet{settings.depth}")(norm_layer=FrozenBatchNorm2d)
        for name, module in body.named_modules():
            # Detectron2's R-50 strides in the first convolution of a bottleneck.
            if re.fullmatch(r"layer[234]\.0", name) and settings.depth >= 50:
                module.conv1.stride, module.conv2.stride = (2, 2), (1, 1)
        extractor = _resnet_fpn_extractor(
            body, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(2048 if settings.depth >= 50 else 512, 256)
        )
        self.model = RetinaNet(
            extractor,
            num_classes=settings.classes,
            min_size=min(settings.height, settings.width),
            max_size=max(settings.height, settings.width),
            image_mean=cfg.MODEL.PIXEL_MEAN,
            image_std=cfg.MODEL.PIXEL_STD,
        ).to(self.device)
        # torchvision's own cell anchors are rounded to whole pixels.
        shapes = [ShapeSpec(channels=256, stride=2**level) for level in range(3, 8)]
        anchors = build_anchor_generator(cfg, shapes).cell_anchors
        self.model.anchor_generator.cell_anchors = [level.to(self.device) for level in anchors]
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9, weight_decay=1e-4)
        inputs = make_inputs(settings)
        self.images = [item["image"] for item in inputs]
        self.targets = [
            {"boxes": item["instances"].gt_boxes.tensor.float(), "labels": item["instances"].gt_classes}
            for item in inputs
        ]

    def load_weights(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        renamed = {}
        for name, tensor in state.items():
            for pattern, theirs in RENAMED:
                name = re.sub(pattern, theirs, name)
            renamed[name] = tensor
        missing, unexpected = self.model.load_state_dict(renamed, strict=False)
        if missing or any(not name.startswith("anchor_generator") for name in unexpected):
            raise RuntimeError(f"torchvision's RetinaNet got no {missing} and does not know {unexpected}")
        # Freeze the stem and the first stage, as in Detectron2.
        for part in (self.model.backbone.body.conv1, self.model.backbone.body.layer1):
            part.requires_grad_(False)

    def inference_outputs(self) -> dict:
        """A sample of the network's outputs; detections are not comparable, because boxes are clipped before NMS."""
        samples = []

        def take(module, args, outputs):
            with torch.no_grad():
                levels = [9 * feature.shape[2] * feature.shape[3] for feature in args[0]]
                logits = outputs["cls_logits"].split(levels, dim=1)
                deltas = outputs["bbox_regression"].split(levels, dim=1)
                parts = [level.flatten()[::997] for level in logits] + [level.flatten()[::97] for level in deltas]
                samples.append(torch.cat([part.float().cpu() for part in parts]).numpy())

        handle = self.model.head.register_forward_hook(take)
        self._infer(self._model_for_inference())
        handle.remove()
        return {"network": samples[0]}

    def train_step_outputs(self) -> dict:
        """The network's outputs alone, because torchvision divides its losses by each image's foreground anchors."""
        return self.inference_outputs()

    def _loss(self) -> torch.Tensor:
        self.model.train()
        return sum(self.model(*self._to_device()).values())

    def _model_for_inference(self) -> torch.nn.Module:
        return self.model.eval()

    @torch.no_grad()
    def _infer(self, model: torch.nn.Module) -> list[dict]:
        with self._precision():
            return model(self._to_device()[0])

    def _to_device(self) -> tuple[list[torch.Tensor], list[dict]]:
        targets = [{name: value.to(self.device) for name, value in target.items()} for target in self.targets]
        return [image.to(self.device).float() for image in self.images], targets

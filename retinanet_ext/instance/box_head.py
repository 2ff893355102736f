"""The box branch of a two-stage detector: head, predictor, losses, and scores at inference.

M RoIs of all images, C channels, K classes, B = 4 K box columns, or 4 if class-agnostic.
"""

from collections.abc import Sequence

import torch
from torch import nn

from retinanet_ext.d2 import Boxes, Conv2d, Instances, ShapeSpec, configurable, get_norm
from retinanet_ext.ops import Box2BoxTransform

from .box_detections import detect_batch
from .shared_count import average_over_processes
from .stage_losses import RoIBoxes, build_box_stage_losses

HEAD_NAMES = ("FastRCNNConvFCHead",)


class BoxHead(nn.Sequential):
    """Convolutions, then fully connected layers: ``conv1``, ``conv2``, ..., ``fc1``, ``fc2``, ..., each with ReLU.

    Maps RoI features ``(M, C, h, w)`` to ``(M, D)``, or to ``(M, D, h, w)`` if there is no fully connected layer.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, conv_dims: Sequence[int], fc_dims: Sequence[int], conv_norm=""):
        """
        Args:
            input_shape: channels, height and width of the RoI features.
            conv_dims, fc_dims: output channels of each 3x3 convolution, and of each fully connected layer.
            conv_norm: norm after each convolution, see ``get_norm``; without one, the convolution has a bias.
        """
        super().__init__()
        channels, height, width = input_shape.channels, input_shape.height, input_shape.width
        for number, size in enumerate(conv_dims, start=1):
            norm = get_norm(conv_norm, size)
            conv = Conv2d(channels, size, 3, padding=1, bias=not conv_norm, norm=norm, activation=nn.ReLU())
            self.add_module(f"conv{number}", conv)
            channels = size
        self.output_shape = ShapeSpec(channels=channels, height=height, width=width)
        features = channels * height * width
        for number, size in enumerate(fc_dims, start=1):
            if number == 1:
                self.add_module("flatten", nn.Flatten())
            self.add_module(f"fc{number}", nn.Linear(features, size))
            self.add_module(f"fc_relu{number}", nn.ReLU())
            features = size
            self.output_shape = ShapeSpec(channels=size)
        self._initialize()

    def _initialize(self) -> None:
        # Only after all layers are built: PyTorch draws weights for a new layer, and equal seeds shall give
        # Detectron2's weights.
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=1)
            if getattr(layer, "bias", None) is not None:
                nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        head = cfg.MODEL.ROI_BOX_HEAD
        if head.NAME not in HEAD_NAMES:
            raise ValueError(f"MODEL.ROI_BOX_HEAD.NAME is {head.NAME!r}; legal values: {', '.join(HEAD_NAMES)}")
        if not head.NUM_CONV and not head.NUM_FC:
            raise ValueError("MODEL.ROI_BOX_HEAD.NUM_CONV and NUM_FC are both 0; the box head needs at least one layer")
        return {
            "input_shape": input_shape,
            "conv_dims": [head.CONV_DIM] * head.NUM_CONV,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "conv_norm": head.NORM,
        }


class BoxPredictor(nn.Module):
    """Class scores and box offsets of RoIs, their losses, and the detections that follow from them.

    Parameters ``cls_score`` (K + 1 rows, the last one is background) and ``bbox_pred`` (B rows).
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        cls_loss: nn.Module,
        box_loss: nn.Module,
        cls_agnostic_bbox_reg: bool = False,
        prior_prob: float = 0.0,
        loss_weight: float = 1.0,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
    ):
        """
        Args:
            input_shape: of the features of an RoI; height and width are optional.
            num_classes: K, without background.
            cls_loss, box_loss: see ``stage_losses.py``.
            cls_agnostic_bbox_reg: predict one box for all classes.
            prior_prob: score that an untrained predictor gives each class; 0: the biases start at 0.
            loss_weight: factor of the box loss.
            test_score_thresh, test_nms_thresh, test_topk_per_image: see ``detect_batch``.
        """
        super().__init__()
        features = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        self.cls_score = nn.Linear(features, num_classes + 1)
        self.bbox_pred = nn.Linear(features, 4 if cls_agnostic_bbox_reg else 4 * num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        if prior_prob:
            nn.init.constant_(self.cls_score.bias, torch.logit(torch.tensor(prior_prob)).item())
        self.box2box_transform = box2box_transform
        self.num_classes = num_classes
        self.cls_loss, self.box_loss, self.loss_weight = cls_loss, box_loss, loss_weight
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        head = cfg.MODEL.ROI_BOX_HEAD
        if head.USE_FED_LOSS:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.USE_FED_LOSS is True, but MaskRCNN has no federated loss; set it to False, or use "
                "Detectron2's GeneralizedRCNN"
            )
        cls_loss, box_loss = build_box_stage_losses(cfg)
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=head.BBOX_REG_WEIGHTS),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "cls_loss": cls_loss,
            "box_loss": box_loss,
            "cls_agnostic_bbox_reg": head.CLS_AGNOSTIC_BBOX_REG,
            "prior_prob": head.CLS_LOSS.PRIOR_PROB,
            "loss_weight": head.BBOX_REG_LOSS_WEIGHT,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features ``(M, D)`` or ``(M, D, h, w)`` to logits ``(M, K + 1)`` and deltas ``(M, B)``, both float32."""
        x = x.flatten(start_dim=1)
        # Scores and boxes need more digits than half precision has.
        return self.cls_score(x).float(), self.bbox_pred(x).float()

    def losses(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: Sequence[Instances]
    ) -> dict[str, torch.Tensor]:
        """Both losses are sums over the RoIs, divided by the number of RoIs of all images of all processes.

        Args:
            predictions: logits ``(M, K + 1)`` and deltas ``(M, B)``.
            proposals: N, with ``proposal_boxes``, ``gt_classes`` (K is background) and ``gt_boxes``; M in all.
        """
        logits, deltas = predictions
        classes = _classes(proposals, logits)
        count = average_over_processes(len(classes), logits.device)
        rois, gt_boxes = (_boxes(proposals, name, deltas) for name in ("proposal_boxes", "gt_boxes"))
        foreground = torch.nonzero((classes >= 0) & (classes < self.num_classes)).squeeze(1)
        boxes = RoIBoxes(
            counts=[len(x) for x in proposals],
            rois=rois,
            foreground=foreground,
            deltas=self._of_class(deltas, foreground, classes[foreground]),
            gt_boxes=gt_boxes[foreground],
            transform=self.box2box_transform,
        )
        box_loss = self.box_loss(boxes.deltas, rois[foreground], boxes.gt_boxes, self.box2box_transform)
        cls_loss = self.cls_loss(logits, classes, boxes)
        return {"loss_cls": cls_loss / count, "loss_box_reg": box_loss * self.loss_weight / count}

    def inference(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: Sequence[Instances]
    ) -> list[Instances]:
        """Detections of each image: ``pred_boxes`` clipped to it, ``scores``, ``pred_classes``, best first."""
        logits, deltas = predictions
        sizes = [image.image_size for image in proposals]
        found = detect_batch(
            self.cls_loss.scores(logits),
            deltas,
            _boxes(proposals, "proposal_boxes", deltas),
            [len(image) for image in proposals],
            self.box2box_transform.apply_deltas,
            sizes,
            score_thresh=self.test_score_thresh,
            nms_thresh=self.test_nms_thresh,
            max_detections=self.test_topk_per_image,
        )
        return [
            Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
            for size, ((boxes, scores, classes), _) in zip(sizes, found)
        ]

    @torch.no_grad()
    def boxes_of_labels(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: Sequence[Instances]
    ) -> list[Boxes]:
        """The predicted box of each RoI for its class in ``gt_classes``; of background, for any class."""
        deltas = predictions[1]
        classes, rois = _classes(proposals, deltas), _boxes(proposals, "proposal_boxes", deltas)
        rows = torch.arange(len(rois), device=deltas.device)
        deltas = self._of_class(deltas, rows, classes.clamp(0, self.num_classes - 1))
        boxes = self.box2box_transform.apply_deltas(deltas, rois)
        return [Boxes(part) for part in boxes.split([len(x) for x in proposals])]

    def _of_class(self, deltas: torch.Tensor, rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Offsets ``(F, 4)`` that the RoIs ``rows`` ``(F,)`` predict for ``classes`` ``(F,)``."""
        if deltas.shape[1] == 4:
            return deltas[rows]
        return deltas.unflatten(1, (self.num_classes, 4))[rows, classes]


# Each list begins with an empty tensor, like the predictions: `cat` then also works without images.
def _classes(proposals: Sequence[Instances], predictions: torch.Tensor) -> torch.Tensor:
    """``gt_classes`` of the RoIs of all images, ``(M,)`` int64."""
    return torch.cat([predictions.new_zeros(0, dtype=torch.int64), *(x.gt_classes for x in proposals)])


def _boxes(proposals: Sequence[Instances], name: str, predictions: torch.Tensor) -> torch.Tensor:
    """The boxes ``name`` of the RoIs of all images, ``(M, 4)``."""
    return torch.cat([predictions.new_zeros(0, 4), *(x.get(name).tensor for x in proposals)])

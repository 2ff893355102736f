"""The second stage with a head per task: box, mask and keypoint branch, each with its own RoI pooling.

N images, R proposals of an image, M RoIs of all images, C channels, K classes, J keypoints.
"""

from collections.abc import Sequence

import torch
from torch import nn

from retinanet_ext.d2 import ImageList, Instances, ShapeSpec, configurable

from .box_head import BoxHead, BoxPredictor
from .keypoint_head import build_keypoint_head
from .mask_head import build_mask_head
from .pooler import ROIPooler
from .roi_targets import RoISampler, foreground_of, with_visible_keypoints


class RoIHeads(nn.Module):
    """What all second stages share: sampling in training, and the order of the branches.

    A subclass has ``_training_losses(features, sampled, targets)`` and the methods ``detect`` and
    ``forward_with_given_boxes``.
    """

    def __init__(self, *, num_classes: int, sampler: RoISampler, mask_on: bool, keypoint_on: bool):
        """
        Args:
            num_classes: K, without background.
            sampler: chooses the RoIs that train.
            mask_on, keypoint_on: which branches exist besides that of the boxes.
        """
        super().__init__()
        self.num_classes = num_classes
        self.sampler = sampler
        self.mask_on, self.keypoint_on = mask_on, keypoint_on

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: Sequence[Instances],
        targets: Sequence[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """
        Args:
            images: only their number and sizes count.
            features: maps ``(N, C, H, W)`` by name.
            proposals: N, with ``proposal_boxes`` and ``objectness_logits``.
            targets: in training N, with ``gt_boxes``, ``gt_classes``, and ``gt_masks``, ``gt_keypoints`` if there are
                such branches.

        Returns:
            In training the sampled RoIs, and ``loss_cls``, ``loss_box_reg``, ``loss_mask``, ``loss_keypoint`` of the
            branches that exist; else the detections, and an empty dict.
        """
        if self.training:
            sampled = self.sampler(proposals, targets)
            return sampled, self._training_losses(features, sampled, targets)
        return self.forward_with_given_boxes(features, self.detect(features, proposals)), {}

    def detect(self, features: dict[str, torch.Tensor], proposals: Sequence[Instances]) -> list[Instances]:
        """Boxes without masks and keypoints: ``pred_boxes``, ``scores``, ``pred_classes``, best first."""
        raise NotImplementedError

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: Sequence[Instances]
    ) -> list[Instances]:
        """Add ``pred_masks`` ``(D, 1, S, S)`` and ``pred_keypoints`` ``(D, J, 3)`` to instances with ``pred_boxes``."""
        raise NotImplementedError


class StandardROIHeads(RoIHeads):
    """A box, a mask and a keypoint head, each on RoI features pooled from one or more feature maps.

    Parameter names are those of Detectron2's class of this name: ``box_head``, ``box_predictor``, ``mask_head``,
    ``keypoint_head``.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
        keypoint_pooler: ROIPooler | None = None,
        keypoint_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        num_classes: int,
        sampler: RoISampler,
    ):
        """
        Args:
            in_features: names of the feature maps, finest first.
            box_pooler, mask_pooler, keypoint_pooler: RoI features of each branch.
            mask_head, keypoint_head: None: the branch is absent.
            train_on_pred_boxes: train the mask and keypoint branches on the boxes that the box branch predicts, in
                place of the proposals.
            num_classes, sampler: see ``RoIHeads``.
        """
        has_mask, has_keypoints = mask_head is not None, keypoint_head is not None
        super().__init__(num_classes=num_classes, sampler=sampler, mask_on=has_mask, keypoint_on=has_keypoints)
        self.in_features = list(in_features)
        self.box_pooler, self.box_head, self.box_predictor = box_pooler, box_head, box_predictor
        if has_mask:
            self.mask_pooler, self.mask_head = mask_pooler, mask_head
        if has_keypoints:
            self.keypoint_pooler, self.keypoint_head = keypoint_pooler, keypoint_head
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        names = cfg.MODEL.ROI_HEADS.IN_FEATURES
        check_in_features(names, input_shape)
        shapes = [input_shape[name] for name in names]
        box_pooler, pooled = pooler_of(cfg.MODEL.ROI_BOX_HEAD, shapes)
        box_head = BoxHead(cfg, pooled)
        parts = {
            "in_features": names,
            "box_pooler": box_pooler,
            "box_head": box_head,
            "box_predictor": BoxPredictor(cfg, box_head.output_shape),
            "train_on_pred_boxes": cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "sampler": build_sampler(cfg),
        }
        if cfg.MODEL.MASK_ON:
            parts["mask_pooler"], pooled = pooler_of(cfg.MODEL.ROI_MASK_HEAD, shapes)
            parts["mask_head"] = build_mask_head(cfg, pooled)
        if cfg.MODEL.KEYPOINT_ON:
            parts["keypoint_pooler"], pooled = pooler_of(cfg.MODEL.ROI_KEYPOINT_HEAD, shapes)
            parts["keypoint_head"] = build_keypoint_head(cfg, pooled)
        return parts

    def _training_losses(self, features, sampled, targets) -> dict[str, torch.Tensor]:
        maps = [features[name] for name in self.in_features]
        predictions = self._predict(maps, sampled)
        losses = self.box_predictor.losses(predictions, sampled)
        if not (self.mask_on or self.keypoint_on):
            return losses
        if self.train_on_pred_boxes:
            for image, boxes in zip(sampled, self.box_predictor.boxes_of_labels(predictions, sampled)):
                image.proposal_boxes = boxes
        foreground, _ = foreground_of(sampled, targets, self.num_classes)
        if self.mask_on:
            rois = self.mask_pooler(maps, [image.proposal_boxes for image in foreground])
            losses.update(self.mask_head(rois, foreground))
        if self.keypoint_on:
            foreground = with_visible_keypoints(foreground)
            rois = self.keypoint_pooler(maps, [image.proposal_boxes for image in foreground])
            losses.update(self.keypoint_head(rois, foreground))
        return losses

    def detect(self, features, proposals) -> list[Instances]:
        maps = [features[name] for name in self.in_features]
        return self.box_predictor.inference(self._predict(maps, proposals), proposals)

    def forward_with_given_boxes(self, features, instances) -> list[Instances]:
        maps, instances = [features[name] for name in self.in_features], list(instances)
        boxes = [image.pred_boxes for image in instances]
        if self.mask_on:
            instances = self.mask_head(self.mask_pooler(maps, boxes), instances)
        if self.keypoint_on:
            instances = self.keypoint_head(self.keypoint_pooler(maps, boxes), instances)
        return instances

    def _predict(self, maps, proposals) -> tuple[torch.Tensor, torch.Tensor]:
        rois = self.box_pooler(maps, [image.proposal_boxes for image in proposals])
        return self.box_predictor(self.box_head(rois))


def build_sampler(cfg) -> RoISampler:
    """The sampler of ``MODEL.ROI_HEADS``."""
    heads = cfg.MODEL.ROI_HEADS
    return RoISampler(
        num_classes=heads.NUM_CLASSES,
        batch_size_per_image=heads.BATCH_SIZE_PER_IMAGE,
        positive_fraction=heads.POSITIVE_FRACTION,
        iou_thresholds=heads.IOU_THRESHOLDS,
        iou_labels=heads.IOU_LABELS,
        append_gt=heads.PROPOSAL_APPEND_GT,
    )


def pooler_of(branch, shapes: Sequence[ShapeSpec]) -> tuple[ROIPooler, ShapeSpec]:
    """The RoI pooling of a branch, and the shape of an RoI's features.

    Args:
        branch: ``MODEL.ROI_BOX_HEAD``, ``ROI_MASK_HEAD`` or ``ROI_KEYPOINT_HEAD``, with its keys ``POOLER_...``.
        shapes: of the feature maps, finest first.

    Raises:
        ValueError: the maps have different numbers of channels.
    """
    channels = {shape.channels for shape in shapes}
    if len(channels) > 1:
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES names maps with {sorted(channels)} channels; they must have the same number"
        )
    side = branch.POOLER_RESOLUTION
    pooler = ROIPooler(
        output_size=side,
        scales=[1 / shape.stride for shape in shapes],
        sampling_ratio=branch.POOLER_SAMPLING_RATIO,
        pooler_type=branch.POOLER_TYPE,
    )
    return pooler, ShapeSpec(channels=channels.pop(), height=side, width=side)


def check_in_features(names: Sequence[str], input_shape: dict[str, ShapeSpec]) -> None:
    """Refuse names in ``MODEL.ROI_HEADS.IN_FEATURES`` of maps that the backbone does not have."""
    missing = [name for name in names if name not in input_shape]
    if missing or not names:
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES is {list(names)}; the backbone has {', '.join(sorted(input_shape))}"
        )

"""The second stage with a head per task: box, mask and keypoint branch, each with its own RoI pooling.

N images, R proposals of an image, M RoIs of all images, C channels, K classes, J keypoints.
"""

from collections.abc import Sequence

import torch
from torch import nn

from retinanet_ext.d2 import ImageList, Instances, ShapeSpec, configurable

from .box_head import BoxHead, BoxPredictor
from .branches import MaskAndKeypointBranches, pooler_of, shapes_of_rois
from .pooler import ROIPooler
from .roi_targets import RoISampler, foreground_of
from .sampling import build_stage_matcher


class RoIHeads(nn.Module):
    """What all second stages share: sampling in training, and the order of the branches.

    A subclass has ``_training_losses(features, sampled, targets)``, the methods ``detect`` and
    ``forward_with_given_boxes``, and the attributes ``mask_on`` and ``keypoint_on``.
    """

    def __init__(self, *, num_classes: int, sampler: RoISampler, **branches):
        """
        Args:
            num_classes: K, without background.
            sampler: chooses the RoIs that train.
            branches: arguments of the next base class.
        """
        super().__init__(**branches)
        self.num_classes = num_classes
        self.sampler = sampler

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


class StandardROIHeads(RoIHeads, MaskAndKeypointBranches):
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
        train_on_pred_boxes: bool = False,
        num_classes: int,
        sampler: RoISampler,
        **branches,
    ):
        """
        Args:
            in_features: names of the feature maps, finest first.
            box_pooler: RoI features of the box branch.
            train_on_pred_boxes: train the mask and keypoint branches on the boxes that the box branch predicts, in
                place of the proposals.
            num_classes, sampler: see ``RoIHeads``.
            branches: see ``MaskAndKeypointBranches.add_branches``.
        """
        super().__init__(num_classes=num_classes, sampler=sampler, in_features=in_features)
        self.box_pooler, self.box_head, self.box_predictor = box_pooler, box_head, box_predictor
        self.add_branches(**branches)
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        box_pooler, pooled = pooler_of(cfg.MODEL.ROI_BOX_HEAD, shapes_of_rois(cfg, input_shape))
        box_head = BoxHead(cfg, pooled)
        # In this order the heads draw the same initial weights as Detectron2's.
        return {
            "box_pooler": box_pooler,
            "box_head": box_head,
            "box_predictor": BoxPredictor(cfg, box_head.output_shape),
            "train_on_pred_boxes": cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "sampler": build_sampler(cfg),
            **MaskAndKeypointBranches.from_config(cfg, input_shape),
        }

    def _training_losses(self, features, sampled, targets) -> dict[str, torch.Tensor]:
        predictions = self._predict(features, sampled)
        losses = self.box_predictor.losses(predictions, sampled)
        if self.train_on_pred_boxes:
            for image, boxes in zip(sampled, self.box_predictor.boxes_of_labels(predictions, sampled)):
                image.proposal_boxes = boxes
        foreground = foreground_of(sampled, targets, self.num_classes)
        return {**losses, **self.branch_losses(features, foreground)}

    def detect(self, features, proposals) -> list[Instances]:
        return self.box_predictor.inference(self._predict(features, proposals), proposals)

    def _predict(self, features, proposals) -> tuple[torch.Tensor, torch.Tensor]:
        rois = self.box_pooler(self._maps(features), [image.proposal_boxes for image in proposals])
        return self.box_predictor(self.box_head(rois))


def build_sampler(cfg) -> RoISampler:
    """The sampler of ``MODEL.ROI_HEADS``."""
    heads = cfg.MODEL.ROI_HEADS
    return RoISampler(
        num_classes=heads.NUM_CLASSES,
        batch_size_per_image=heads.BATCH_SIZE_PER_IMAGE,
        positive_fraction=heads.POSITIVE_FRACTION,
        matcher=build_stage_matcher(cfg, "ROI_HEADS", low_quality="never"),
        append_gt=heads.PROPOSAL_APPEND_GT,
    )

"""The second stage on a C4 backbone: the last stage of the ResNet runs on every RoI, shared by boxes and masks.

N images, M RoIs of all images, C channels of the feature map, D = 8 * RES2_OUT_CHANNELS channels of the last stage.
"""

from collections.abc import Sequence

import torch
from torch import nn

from retinanet_ext.d2 import BottleneckBlock, Instances, ResNet, ShapeSpec, configurable

from .box_head import BoxPredictor
from .branches import pooler_of, shapes_of_rois
from .mask_head import build_mask_head
from .pooler import ROIPooler
from .roi_heads import RoIHeads, build_sampler
from .roi_targets import RoISampler, foreground_of

NUM_BLOCKS = 3


class Res5ROIHeads(RoIHeads):
    """``res5`` on pooled RoI features; its mean predicts the box, its map the mask.

    Parameter names are those of Detectron2's class of this name: ``res5``, ``box_predictor``, ``mask_head``.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        pooler: ROIPooler,
        res5: nn.Module,
        box_predictor: nn.Module,
        mask_head: nn.Module | None = None,
        num_classes: int,
        sampler: RoISampler,
    ):
        """
        Args:
            in_features: the name of the one feature map.
            pooler: RoI features, for boxes and masks alike.
            res5: maps them ``(M, C, h, w)`` to ``(M, D, h', w')``.
            mask_head: None: no mask branch.
            num_classes, sampler: see ``RoIHeads``.
        """
        super().__init__(num_classes=num_classes, sampler=sampler)
        self.mask_on, self.keypoint_on = mask_head is not None, False
        self.in_features = list(in_features)
        self.pooler, self.res5, self.box_predictor = pooler, res5, box_predictor
        if self.mask_on:
            self.mask_head = mask_head

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        _check(cfg)
        pooler, pooled = pooler_of(cfg.MODEL.ROI_BOX_HEAD, shapes_of_rois(cfg, input_shape))
        res5 = build_res5(cfg, pooled.channels)
        channels, stride = res5[-1].out_channels, cfg.MODEL.ROI_HEADS.RES5_STRIDE
        side = -(-pooled.height // stride)
        parts = {
            "in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "pooler": pooler,
            "res5": res5,
            "box_predictor": BoxPredictor(cfg, ShapeSpec(channels=channels, height=1, width=1)),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "sampler": build_sampler(cfg),
        }
        if cfg.MODEL.MASK_ON:
            parts["mask_head"] = build_mask_head(cfg, ShapeSpec(channels=channels, height=side, width=side))
        return parts

    def _training_losses(self, features, sampled, targets) -> dict[str, torch.Tensor]:
        rois = self._roi_features(features, [image.proposal_boxes for image in sampled])
        losses = self.box_predictor.losses(self.box_predictor(rois.mean(dim=(2, 3))), sampled)
        if self.mask_on:
            foreground = foreground_of(sampled, targets, self.num_classes)
            parts = rois.split([len(image) for image in sampled])
            # In each image the foreground comes first. The empty slice makes `cat` work without images.
            rois = torch.cat([rois[:0], *(part[: len(image)] for part, image in zip(parts, foreground))])
            losses.update(self.mask_head(rois, foreground))
        return losses

    def detect(self, features, proposals) -> list[Instances]:
        rois = self._roi_features(features, [image.proposal_boxes for image in proposals])
        return self.box_predictor.inference(self.box_predictor(rois.mean(dim=(2, 3))), proposals)

    def forward_with_given_boxes(self, features, instances) -> list[Instances]:
        instances = list(instances)
        if self.mask_on:
            rois = self._roi_features(features, [image.pred_boxes for image in instances])
            instances = self.mask_head(rois, instances)
        return instances

    def _roi_features(self, features, boxes) -> torch.Tensor:
        return self.res5(self.pooler([features[name] for name in self.in_features], boxes))


def build_res5(cfg, in_channels: int) -> nn.Sequential:
    """The last stage of a ResNet from ``MODEL.RESNETS``; its first block has the stride ``ROI_HEADS.RES5_STRIDE``."""
    resnets = cfg.MODEL.RESNETS
    groups, width = resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP
    blocks = ResNet.make_stage(
        BottleneckBlock,
        NUM_BLOCKS,
        stride_per_block=[cfg.MODEL.ROI_HEADS.RES5_STRIDE] + [1] * (NUM_BLOCKS - 1),
        in_channels=in_channels,
        out_channels=8 * resnets.RES2_OUT_CHANNELS,
        bottleneck_channels=8 * groups * width,
        num_groups=groups,
        norm=resnets.NORM,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
    )
    return nn.Sequential(*blocks)


def _check(cfg) -> None:
    heads = cfg.MODEL.ROI_HEADS
    if len(heads.IN_FEATURES) != 1:
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES is {list(heads.IN_FEATURES)}; Res5ROIHeads takes one feature map, such as "
            "['res4']"
        )
    for key, branch in (("KEYPOINT_ON", "keypoint"), ("EMBEDDING_ON", "embedding")):
        if cfg.MODEL[key]:
            raise ValueError(
                f"MODEL.{key} is True, but Res5ROIHeads has no {branch} branch; set MODEL.ROI_HEADS.NAME to "
                f"StandardROIHeads, on an FPN or C5 backbone, or MODEL.{key} to False"
            )
    if heads.RES5_STRIDE not in (1, 2):
        raise ValueError(f"MODEL.ROI_HEADS.RES5_STRIDE is {heads.RES5_STRIDE}; legal values: 1, 2")
    if cfg.MODEL.RESNETS.DEPTH < 50:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH is {cfg.MODEL.RESNETS.DEPTH}, but Res5ROIHeads has bottleneck blocks; use 50, 101 or "
            "152"
        )
    if cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE[-1]:
        raise ValueError(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE asks for deformable convolutions in res5, which Res5ROIHeads does not "
            "have; set its last value to False"
        )

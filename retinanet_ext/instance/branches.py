"""Masks, keypoints and embeddings of RoIs: each branch with its own RoI pooling and head, in one stage and in two.

N images, D detections of an image, C channels, J keypoints, S sides of a mask, E numbers of an embedding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from retinanet_ext.d2 import Instances, ShapeSpec, configurable
from retinanet_ext.detection.head import shapes_of_features

from .embedding_head import build_embedding_head
from .keypoint_head import build_keypoint_head
from .mask_head import build_mask_head
from .pooler import ROIPooler
from .roi_targets import with_known_identities, with_visible_keypoints


class MaskAndKeypointBranches(nn.Module):
    """The mask branch, if ``MODEL.MASK_ON``, the keypoint branch, if ``MODEL.KEYPOINT_ON``, and the embedding branch,
    if ``MODEL.EMBEDDING_ON``.

    Attributes:
        mask_on, keypoint_on, embedding_on: which branches exist. Parameters of a branch are named ``mask_head...``,
            ``keypoint_head...``, ``embedding_head...``.
    """

    @configurable
    def __init__(self, *, in_features: Sequence[str], **branches):
        """
        Args:
            in_features: names of the feature maps, finest first.
            branches: see :meth:`add_branches`.
        """
        super().__init__()
        self.in_features = list(in_features)
        self.add_branches(**branches)

    def add_branches(
        self,
        *,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
        keypoint_pooler: ROIPooler | None = None,
        keypoint_head: nn.Module | None = None,
        embedding_pooler: ROIPooler | None = None,
        embedding_head: nn.Module | None = None,
        rois_per_object: int = 2,
    ) -> None:
        """Add the branches after the modules that exist already: the order of parameters is Detectron2's.

        Args:
            mask_pooler, keypoint_pooler, embedding_pooler: RoI features of each branch.
            mask_head, keypoint_head, embedding_head: None: the branch is absent.
            rois_per_object: most RoIs of an object that the embeddings are trained on, at least 1.
        """
        self.mask_on, self.keypoint_on = mask_head is not None, keypoint_head is not None
        self.embedding_on = embedding_head is not None
        if self.mask_on:
            self.mask_pooler, self.mask_head = mask_pooler, mask_head
        if self.keypoint_on:
            self.keypoint_pooler, self.keypoint_head = keypoint_pooler, keypoint_head
        if self.embedding_on:
            self.embedding_pooler, self.embedding_head = embedding_pooler, embedding_head
            self.rois_per_object = rois_per_object

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        shapes = shapes_of_rois(cfg, input_shape)
        parts = {"in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES}
        if cfg.MODEL.MASK_ON:
            parts["mask_pooler"], pooled = pooler_of(cfg.MODEL.ROI_MASK_HEAD, shapes)
            parts["mask_head"] = build_mask_head(cfg, pooled)
        if cfg.MODEL.KEYPOINT_ON:
            parts["keypoint_pooler"], pooled = pooler_of(cfg.MODEL.ROI_KEYPOINT_HEAD, shapes)
            parts["keypoint_head"] = build_keypoint_head(cfg, pooled)
        if cfg.MODEL.EMBEDDING_ON:
            parts["embedding_pooler"], pooled = pooler_of(cfg.MODEL.ROI_EMBEDDING_HEAD, shapes)
            parts["embedding_head"] = build_embedding_head(cfg, pooled)
            parts["rois_per_object"] = cfg.MODEL.ROI_EMBEDDING_HEAD.ROIS_PER_OBJECT
        return parts

    def branch_losses(
        self, features: dict[str, torch.Tensor], foreground: Sequence[Instances]
    ) -> dict[str, torch.Tensor]:
        """``loss_mask``, ``loss_keypoint`` and ``loss_embedding``, of the branches that exist.

        Args:
            features: maps ``(N, C, H, W)`` by name.
            foreground: N, the RoIs that are objects, from ``foreground_of``.
        """
        maps, losses = self._maps(features), {}
        if self.mask_on:
            rois = self.mask_pooler(maps, [image.proposal_boxes for image in foreground])
            losses.update(self.mask_head(rois, foreground))
        if self.keypoint_on:
            visible = with_visible_keypoints(foreground)
            rois = self.keypoint_pooler(maps, [image.proposal_boxes for image in visible])
            losses.update(self.keypoint_head(rois, visible))
        if self.embedding_on:
            known = with_known_identities(foreground, self.rois_per_object)
            rois = self.embedding_pooler(maps, [image.proposal_boxes for image in known])
            losses.update(self.embedding_head(rois, known))
        return losses

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: Sequence[Instances]
    ) -> list[Instances]:
        """Add ``pred_masks`` ``(D, 1, S, S)``, ``pred_keypoints`` ``(D, J, 3)`` and ``embeddings`` ``(D, E)`` to
        instances with ``pred_boxes`` and ``pred_classes``, as far as the branches exist."""
        maps, instances = self._maps(features), list(instances)
        boxes = [image.pred_boxes for image in instances]
        if self.mask_on:
            instances = self.mask_head(self.mask_pooler(maps, boxes), instances)
        if self.keypoint_on:
            instances = self.keypoint_head(self.keypoint_pooler(maps, boxes), instances)
        if self.embedding_on:
            instances = self.embedding_head(self.embedding_pooler(maps, boxes), instances)
        return instances

    def _maps(self, features: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [features[name] for name in self.in_features]


def shapes_of_rois(cfg, input_shape: dict[str, ShapeSpec]) -> list[ShapeSpec]:
    """The shapes of the maps that RoIs are pooled from, ``MODEL.ROI_HEADS.IN_FEATURES``."""
    return shapes_of_features("MODEL.ROI_HEADS.IN_FEATURES", cfg.MODEL.ROI_HEADS.IN_FEATURES, input_shape)


def pooler_of(branch, shapes: Sequence[ShapeSpec]) -> tuple[ROIPooler, ShapeSpec]:
    """The RoI pooling of a branch, and the shape of an RoI's features.

    Args:
        branch: ``MODEL.ROI_BOX_HEAD``, ``ROI_MASK_HEAD``, ``ROI_KEYPOINT_HEAD`` or ``ROI_EMBEDDING_HEAD``, with
            its keys ``POOLER_...``.
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


def maps_without_images(backbone: nn.Module, like: torch.Tensor) -> dict[str, torch.Tensor]:
    """The feature maps of a batch of no images, ``(0, C, 1, 1)`` by name, with dtype and device of ``like``.

    On them a process without images runs all branches, and so takes part in the communication of the others.
    """
    return {name: like.new_zeros(0, shape.channels, 1, 1) for name, shape in backbone.output_shape().items()}


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Within this context, ``module`` and its parts predict; then each part has the mode that it had before."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training

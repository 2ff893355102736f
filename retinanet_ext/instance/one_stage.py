"""RetinaNet with masks, keypoints and embeddings on its detections: all from one model in one pass.

N images per batch, K classes, A anchors per position, R anchors per image over all levels (order: level, H, W, A).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from retinanet_ext.d2 import META_ARCH_REGISTRY, Boxes, Instances, configurable
from retinanet_ext.detection import FocalRetinaNet

from .branches import MaskAndKeypointBranches, in_eval_mode, maps_without_images
from .ground_truth_parts import check_identities, check_masks_and_keypoints
from .micro_batch_shares import MicroBatchShares
from .postprocess import scale_detections
from .roi_heads import build_sampler
from .roi_targets import RoISampler, foreground_of


@META_ARCH_REGISTRY.register()
class InstanceRetinaNet(FocalRetinaNet):
    """One-stage detector of boxes, masks, keypoints and embeddings.

    To the RoI heads of Mask R-CNN, RetinaNet's detections are what proposals are in two stages: in training the
    branches learn on a sample of them, to which the ground truth is added, and at inference they run on the best
    detections. Boxes come from RetinaNet alone; its parameters have the names of ``FocalRetinaNet``, those of the
    branches the names that they have in ``MaskRCNN`` (``roi_heads.mask_head...``). A branch that is off is absent.

    Attributes:
        encode_masks: give masks as ``EncodedMasks`` (run lengths) in place of pixels, at inference.
    """

    @configurable
    def __init__(
        self,
        *,
        roi_heads: MaskAndKeypointBranches,
        roi_sampler: RoISampler,
        roi_nms_thresh: float = 0.8,
        max_rois_per_image: int = 300,
        num_keypoints: int = 0,
        **retinanet,
    ):
        """
        Args:
            roi_heads: the branches that exist.
            roi_sampler: chooses the detections that the branches learn on, in training.
            roi_nms_thresh: IoU above which NMS drops a detection before the sampling; above that of inference, so that
                the branches see several boxes of an object.
            max_rois_per_image: most detections of an image that the sampler sees.
            num_keypoints: keypoints that every object must have in training; 0: no check.
            retinanet: see ``FocalRetinaNet``.
        """
        super().__init__(**retinanet)
        self.roi_heads = roi_heads.to(memory_format=torch.channels_last)
        self.roi_sampler = roi_sampler
        self.roi_nms_thresh, self.max_rois_per_image = roi_nms_thresh, max_rois_per_image
        self.num_keypoints = num_keypoints
        self.encode_masks = False
        self._shares = MicroBatchShares()

    @classmethod
    def from_config(cls, cfg):
        retinanet = super().from_config(cfg)
        _check_num_classes(cfg)
        shapes = retinanet["backbone"].output_shape()
        maps = {name: shapes[name] for name in cfg.MODEL.RETINANET.IN_FEATURES}  # those that `forward` hands on
        return {
            **retinanet,
            "roi_heads": MaskAndKeypointBranches(cfg, maps),
            "roi_sampler": build_sampler(cfg),
            "roi_nms_thresh": cfg.MODEL.RETINANET.ROIS.NMS_THRESH,
            "max_rois_per_image": cfg.MODEL.RETINANET.ROIS.MAX_PER_IMAGE,
            "num_keypoints": cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0,
        }

    def check_ground_truth(self, batched_inputs: list[dict]) -> None:
        """As in ``FocalRetinaNet``, and for what the branches learn from."""
        super().check_ground_truth(batched_inputs)
        heads = self.roi_heads
        check_masks_and_keypoints(batched_inputs, mask_on=heads.mask_on, num_keypoints=self.num_keypoints)
        check_identities(batched_inputs, embedding_on=heads.embedding_on)

    def branch_losses(
        self, features: Sequence[torch.Tensor], outputs: tuple, instances: Sequence[Instances]
    ) -> dict[str, torch.Tensor]:
        """``loss_mask``, ``loss_keypoint`` and ``loss_embedding``, of the branches that exist, on a sample of the
        detections.

        Args:
            features: per level ``(N, C, H, W)``.
            outputs: arguments of :meth:`inference`, without a graph.
            instances: N, with ``gt_boxes``, ``gt_classes``, and ``gt_masks``, ``gt_keypoints``, ``gt_identities`` for
                the branches.
        """
        if not (self.roi_heads.mask_on or self.roi_heads.keypoint_on or self.roi_heads.embedding_on):
            return {}
        rois = self.sample_rois(outputs, instances)
        with self._shares.of_next() as share:
            losses = self.roi_heads.branch_losses(self._maps(features), rois)
        return {name: loss * share for name, loss in losses.items()}

    @torch.no_grad()
    def sample_rois(self, outputs: tuple, instances: Sequence[Instances]) -> list[Instances]:
        """The RoIs that the branches learn on; arguments as for :meth:`branch_losses`.

        Returns:
            For each image ``Instances`` with ``proposal_boxes`` and the ``gt_...`` fields of the object that each box
            has an IoU of at least 0.5 with (``MODEL.ROI_HEADS.IOU_THRESHOLDS``).
        """
        detections = self.inference(*outputs, nms_thresh=self.roi_nms_thresh, max_detections=self.max_rois_per_image)
        proposals = [
            Instances(
                image.image_size,
                # The sampler would take a box with NaN for an object. Such a batch has losses that the step refuses.
                proposal_boxes=Boxes(image.pred_boxes.tensor.nan_to_num(nan=0.0)),
                objectness_logits=image.scores,
            )
            for image in map(_clipped, detections)
        ]
        return foreground_of(self.roi_sampler(proposals, instances), instances, self.num_classes)

    def branch_outputs(self, features: Sequence[torch.Tensor], detections: Sequence[Instances]) -> list[Instances]:
        """The detections with ``pred_masks`` ``(D, 1, S, S)``, ``pred_keypoints`` ``(D, J, 3)`` and ``embeddings``
        ``(D, E)`` of the branches that exist. They look at the part of each box within the image, and masks are those
        of this part."""
        with in_eval_mode(self.roi_heads):
            found = self.roi_heads.forward_with_given_boxes(self._maps(features), list(map(_clipped, detections)))
        # Post-processing clips the boxes after it has scaled them, as for FocalRetinaNet. Clipped before as well, a
        # box would end up to a rounding error away from the border.
        for image, with_boxes in zip(found, detections, strict=True):
            image.pred_boxes = with_boxes.pred_boxes
        return found

    @contextmanager
    def as_one_batch(self, micro_batches: Sequence[list[dict]]) -> Iterator[None]:
        """As in ``FocalRetinaNet`` for ``loss_cls`` and ``loss_box_reg``.

        ``loss_mask`` and ``loss_keypoint`` are the mean over the images of the micro-batches' means: which RoIs a
        micro-batch draws is known only after it has run. ``loss_embedding`` is so too, and compares only objects of one
        micro-batch of one process.
        """
        with super().as_one_batch(micro_batches), self._shares.prepared(micro_batches, self.device):
            yield

    def _maps(self, features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(zip(self.head_in_features, features))

    def postprocess(self, detections: Instances, height: int, width: int) -> Instances:
        """See ``scale_detections``."""
        return scale_detections(detections, height, width, encode_masks=self.encode_masks)

    def _zero_losses(self) -> dict[str, torch.Tensor]:
        losses = super()._zero_losses()
        # The branches run on nothing: their communication must take place in every process.
        zero = losses["loss_cls"]
        with self._shares.of_next():
            branches = self.roi_heads.branch_losses(maps_without_images(self.backbone, zero), [])
        return {**losses, **{name: loss + zero for name, loss in branches.items()}}


def _clipped(detections: Instances) -> Instances:
    """Boxes within the image: the parts of a RoI beyond it have no features, and its mask no pixels."""
    height, width = detections.image_size
    x0, y0, x1, y1 = detections.pred_boxes.tensor.unbind(dim=1)
    # Boxes.clip waits for the device.
    boxes = [x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height)]
    return Instances(
        detections.image_size, **{**detections.get_fields(), "pred_boxes": Boxes(torch.stack(boxes, dim=1))}
    )


def _check_num_classes(cfg) -> None:
    detector, branches = cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if detector != branches:
        raise ValueError(
            f"MODEL.RETINANET.NUM_CLASSES is {detector} and MODEL.ROI_HEADS.NUM_CLASSES is {branches}; the masks need "
            "the classes of the boxes: set both to the same number (retinanet_ext.load_config does so)"
        )

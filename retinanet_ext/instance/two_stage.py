"""Mask R-CNN (He et al., 2017) and Faster R-CNN (Ren et al., 2015), as a Detectron2 meta-architecture.

N images per batch, K classes, R proposals of an image.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from retinanet_ext.d2 import (
    META_ARCH_REGISTRY,
    ImageList,
    Instances,
    build_backbone,
    configurable,
)
from retinanet_ext.detection.class_metadata import publish_class_names
from retinanet_ext.detection.convolutions import avoid_wrong_gradients_of_narrow_maps, fold_frozen_norms
from retinanet_ext.detection.gradient_checkpointing import recompute_in_backward
from retinanet_ext.detection.missing_keys import check_has_our_keys
from retinanet_ext.detection.retinanet import FocalRetinaNet
from retinanet_ext.detection.targets import check_ground_truth
from retinanet_ext.detection.training_picture import MAX_BOXES, draw_training_picture, is_time_for_a_picture
from retinanet_ext.registry import Registry, find_registered

from .branches import in_eval_mode, maps_without_images
from .ground_truth_parts import check_identities, check_masks_and_keypoints
from .micro_batch_shares import MicroBatchShares
from .postprocess import scale_detections
from .res5_roi_heads import Res5ROIHeads
from .roi_heads import StandardROIHeads
from .rpn import RPN

PROPOSAL_GENERATORS = Registry("PROPOSAL_GENERATORS")
PROPOSAL_GENERATORS.register(RPN)
ROI_HEADS = Registry("ROI_HEADS")
ROI_HEADS.register(StandardROIHeads)
ROI_HEADS.register(Res5ROIHeads)


@META_ARCH_REGISTRY.register()
class MaskRCNN(nn.Module):
    """Two-stage detector: an RPN proposes boxes, RoI heads classify and refine them, and add masks and keypoints.

    With Detectron2's settings and weights it computes what Detectron2's ``GeneralizedRCNN`` computes with ``RPN`` and
    ``StandardROIHeads`` or ``Res5ROIHeads``; parameters have the same names, and the keyword arguments of that class
    are accepted.

    Attributes:
        encode_masks: give masks as ``EncodedMasks`` (run lengths) in place of pixels, at inference.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        proposal_generator: nn.Module,
        roi_heads: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str | None = "BGR",
        vis_period: int = 0,
        num_keypoints: int = 0,
        gradient_checkpointing: bool = False,
    ):
        """
        Args:
            backbone: maps ``(N, C, H, W)`` images to a dict of feature maps; see Detectron2's ``Backbone``.
            proposal_generator: see ``RPN``.
            roi_heads: see ``RoIHeads``.
            pixel_mean, pixel_std: per channel, in the order of ``input_format``, in units of 0..255.
            input_format: channel order of the input images, ``BGR`` or ``RGB``.
            vis_period: iterations between two stored pictures of ground truth and predictions; 0: no pictures.
            num_keypoints: keypoints that every object must have in training; 0: no check.
            gradient_checkpointing: keep fewer activations of the backbone in training, and compute them again in the
                backward pass.
        """
        super().__init__()
        self.backbone, self.proposal_generator, self.roi_heads = backbone, proposal_generator, roi_heads
        fold_frozen_norms(self)
        avoid_wrong_gradients_of_narrow_maps(self)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.input_format, self.vis_period = input_format, vis_period
        self.num_keypoints = num_keypoints
        self.encode_masks = False
        self.feature_names = list(backbone.output_shape())
        # Dtype the network computes in, if not the images'; see `inference/fast_copy.py`.
        self.compute_dtype: torch.dtype | None = None
        self._shares = MicroBatchShares()
        self.to(memory_format=torch.channels_last)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            recompute_in_backward(self)

    @classmethod
    def from_config(cls, cfg):
        model = cfg.MODEL
        check_has_our_keys(model.ROI_BOX_HEAD, "CLS_LOSS")
        if model.LOAD_PROPOSALS:
            raise ValueError(
                "MODEL.LOAD_PROPOSALS is True, but MaskRCNN finds its own proposals and reads no files of them; set it "
                "to False, or use Detectron2's GeneralizedRCNN"
            )
        generator, heads = model.PROPOSAL_GENERATOR.NAME, model.ROI_HEADS.NAME
        hint = "; other parts of Detectron2 run in its GeneralizedRCNN"
        build_generator = find_registered("MODEL.PROPOSAL_GENERATOR.NAME", generator, PROPOSAL_GENERATORS, hint)
        build_heads = find_registered("MODEL.ROI_HEADS.NAME", heads, ROI_HEADS, hint)
        publish_class_names(cfg)
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "proposal_generator": build_generator(cfg, shapes),
            "roi_heads": build_heads(cfg, shapes),
            "pixel_mean": model.PIXEL_MEAN,
            "pixel_std": model.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "num_keypoints": model.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if model.KEYPOINT_ON else 0,
            "gradient_checkpointing": model.GRADIENT_CHECKPOINTING,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: one dict per image, as ``DatasetMapper`` makes it: ``image``, a ``(C, H, W)`` tensor in
                ``input_format`` and 0..255; in training ``instances`` with ``gt_boxes``, ``gt_classes`` and, if the
                model has such branches, ``gt_masks``, ``gt_keypoints``; at inference optionally ``height`` and
                ``width``, the size that the detections are scaled to.

        Returns:
            In training the losses: ``loss_rpn_cls``, ``loss_rpn_loc``, ``loss_cls``, ``loss_box_reg``, ``loss_mask``,
            ``loss_keypoint``, as far as there are such branches; at inference see :meth:`inference`. Without images:
            zero losses that still have a graph, or an empty list.

        Raises:
            ValueError: in training, missing, unusable or out-of-range ground truth; names the file.
        """
        if not self.training:
            return self.inference(batched_inputs)
        self._check(batched_inputs)
        with self._shares.of_next() as share:
            losses = self._training_losses(batched_inputs)
        return {name: loss * share for name, loss in losses.items()}

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: Sequence[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list:
        """Detections of images.

        Args:
            batched_inputs: see :meth:`forward`.
            detected_instances: boxes that are known already, N instances with ``pred_boxes`` and ``pred_classes`` in
                pixels of the network's input; only masks and keypoints are then predicted.
            do_postprocess: scale the detections to ``height`` and ``width``, and draw the masks.

        Returns:
            One dict per image with ``instances``, best first: ``pred_boxes`` clipped to the image, ``scores``,
            ``pred_classes``, and ``pred_masks``, ``pred_keypoints`` of the branches that exist, see
            ``scale_detections``. Without post-processing the instances themselves, in pixels of the network's input,
            and masks as probabilities ``(D, 1, S, S)``.
        """
        if not batched_inputs:
            return []
        images = self.preprocess_image(batched_inputs)
        if detected_instances is None:
            maps, *outputs = self.network(images.tensor)
            features = dict(zip(self.feature_names, maps))
            proposals, _ = self.proposal_generator(images, features, None, outputs)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            given = [image.to(self.device) for image in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(self._features(images.tensor), given)
        return self._postprocess(results, batched_inputs) if do_postprocess else results

    def network(self, pixels: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """The part of inference whose shapes depend on the images' size alone.

        Args:
            pixels: ``(N, C, H, W)``, normalised, of a size that the backbone can divide.

        Returns:
            Feature maps ``(N, C, H, W)``, one for each of ``feature_names``; and per level of the proposals their
            logits ``(N, H*W*A)`` and deltas ``(N, H*W*A, 4)``.
        """
        features = self._features(pixels)
        return [features[name] for name in self.feature_names], *self.proposal_generator.dense_outputs(features)

    def _features(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.backbone(pixels if self.compute_dtype is None else pixels.to(self.compute_dtype))

    # They read attributes and methods that both models have.
    preprocess_image, _postprocess = FocalRetinaNet.preprocess_image, FocalRetinaNet._postprocess

    def postprocess(self, detections: Instances, height: int, width: int) -> Instances:
        """See ``scale_detections``."""
        return scale_detections(detections, height, width, encode_masks=self.encode_masks)

    @contextmanager
    def as_one_batch(self, micro_batches: Sequence[list[dict]]) -> Iterator[None]:
        """Within this context, the losses of the micro-batches add up to a mean over all their images.

        Which RoIs a micro-batch draws is known only after it has run. So each micro-batch divides its losses by its own
        counts, and is then weighted by its share of the images of all processes. ``loss_rpn_cls`` and
        ``loss_rpn_loc`` so equal those of the whole batch, and so do ``loss_cls`` and ``loss_box_reg`` if every image
        draws the same number of RoIs (``BATCH_SIZE_PER_IMAGE``, where there are enough proposals). ``loss_mask`` and
        ``loss_keypoint`` are the mean over the micro-batches' means, in which an object of a micro-batch with few
        objects counts more. The draws differ from those of the whole batch, as random numbers are taken in another
        order for the two stages.

        Processes may have different numbers of micro-batches, or no images: they communicate only here, once.

        Args:
            micro_batches: inputs as for :meth:`forward`. Call the model with each of them once, in this order.
        """
        with self._shares.prepared(micro_batches, self.device):
            yield

    def _check(self, batched_inputs: list[dict]) -> None:
        check_ground_truth(batched_inputs, self.roi_heads.num_classes, "MODEL.ROI_HEADS.NUM_CLASSES")
        mask_on = getattr(self.roi_heads, "mask_on", False)
        check_masks_and_keypoints(batched_inputs, mask_on=mask_on, num_keypoints=self.num_keypoints)
        check_identities(batched_inputs, embedding_on=getattr(self.roi_heads, "embedding_on", False))

    def _training_losses(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor]:
        if not batched_inputs:
            return self._losses_without_images()
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        targets = [inputs["instances"].to(self.device) for inputs in batched_inputs]
        proposals, losses = self.proposal_generator(images, features, targets)
        _, roi_losses = self.roi_heads(images, features, proposals, targets)
        if self.vis_period > 0 and is_time_for_a_picture(self.vis_period):
            self._draw_training_picture(features, proposals, batched_inputs)
        return {**roi_losses, **losses}

    @torch.no_grad()
    def _draw_training_picture(self, features, proposals, batched_inputs) -> None:
        features = {name: level[:1] for name, level in features.items()}
        # In evaluation mode, so that batch norms of the heads do not learn from a picture.
        with in_eval_mode(self.roi_heads):
            best = [image[:MAX_BOXES] for image in self.roi_heads.detect(features, proposals[:1])]
            found = self.roi_heads.forward_with_given_boxes(features, best)
        draw_training_picture(batched_inputs[0], found[0], self.postprocess, self.input_format)

    def _losses_without_images(self) -> dict[str, torch.Tensor]:
        # Every parameter joins the graph, and both stages run as always, on nothing: a process without images must
        # take part in the communication of the others, or they wait for it forever.
        zero = sum(parameter.sum() for parameter in self.parameters()) * 0.0
        features = maps_without_images(self.backbone, zero)
        images = ImageList(zero.new_zeros(0, len(self.pixel_mean), 1, 1), [])
        proposals, losses = self.proposal_generator(images, features, [])
        _, roi_losses = self.roi_heads(images, features, proposals, [])
        return {name: loss + zero for name, loss in {**roi_losses, **losses}.items()}

"""RetinaNet (Lin et al., "Focal Loss for Dense Object Detection"), as a Detectron2 meta-architecture.

N images per batch, K classes, A anchors per position, R anchors per image over all levels (order: level, H, W, A).
"""

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from retinanet_ext.d2 import (
    META_ARCH_REGISTRY,
    Boxes,
    ImageList,
    Instances,
    build_anchor_generator,
    build_backbone,
    configurable,
    detector_postprocess,
    get_event_storage,
    has_event_storage,
)
from retinanet_ext.losses import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY, DenseFocalLoss, DensePredictions, DenseTargets
from retinanet_ext.losses.box_losses import box_loss_name, make_box_loss
from retinanet_ext.ops import Box2BoxTransform

from .class_metadata import publish_class_names
from .convolutions import avoid_wrong_gradients_of_narrow_maps, fold_frozen_norms
from .decoding import decode_batch
from .gradient_checkpointing import recompute_in_backward
from .head import DENSE_HEAD_REGISTRY, shapes_of_features
from .matcher import ANCHOR_MATCHER_REGISTRY, MatrixMatcher
from .micro_batches import check_targets_fit, expected_maps
from .missing_keys import check_has_our_keys
from .normalizer import NORMALIZERS
from .targets import check_ground_truth, label_anchors
from .training_picture import MAX_BOXES, draw_training_picture, is_time_for_a_picture


@META_ARCH_REGISTRY.register()
class FocalRetinaNet(nn.Module):
    """One-stage detector: backbone with FPN, two subnets on every level, focal loss over all anchors.

    With Detectron2's default RetinaNet settings and weights it computes what Detectron2's ``RetinaNet`` computes;
    parameters have the same names, and the keyword arguments of that class are accepted too. Head, matcher and losses
    come from registries, so that a config can choose others.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: nn.Module,
        head_in_features: Sequence[str] | None,
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        anchor_matcher: Callable,
        num_classes: int,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        cls_loss: nn.Module | None = None,
        box_loss: nn.Module | None = None,
        normalizer: str = "ema",
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        vis_period: int = 0,
        input_format: str = "BGR",
        gradient_checkpointing: bool = False,
    ):
        """
        Args:
            backbone: maps ``(N, C, H, W)`` images to a dict of feature maps; see Detectron2's ``Backbone``.
            head: see ``DENSE_HEAD_REGISTRY``.
            head_in_features: names of the feature maps that the head sees, finest first; None: all of them.
            anchor_generator: maps the feature maps to a list of anchor ``Boxes``, one per level.
            box2box_transform: encodes and decodes boxes.
            anchor_matcher: see ``ANCHOR_MATCHER_REGISTRY``; Detectron2's ``Matcher`` is accepted as well.
            num_classes: K, without background.
            focal_loss_alpha, focal_loss_gamma: settings of the focal loss that runs if ``cls_loss`` is None.
            smooth_l1_beta, box_reg_loss_type: settings of the box loss that runs if ``box_loss`` is None.
            cls_loss, box_loss: see ``CLS_LOSS_REGISTRY`` and ``BOX_LOSS_REGISTRY``.
            normalizer: what the losses are divided by, ``ema`` or ``foreground``; see ``normalizer.py``.
            test_score_thresh: detections need a score above it.
            test_topk_candidates: candidates taken from each level before NMS.
            test_nms_thresh: IoU above which NMS drops the lower-scored box of a class.
            max_detections_per_image: most detections kept per image after NMS.
            pixel_mean, pixel_std: per channel, in the order of ``input_format``, in units of 0..255.
            vis_period: iterations between two stored pictures of ground truth and predictions; 0: no pictures.
            input_format: channel order of the input images, ``BGR`` or ``RGB``.
            gradient_checkpointing: keep fewer activations in training, and compute them again in the backward pass.
        """
        super().__init__()
        fold_frozen_norms(backbone)
        avoid_wrong_gradients_of_narrow_maps(backbone)
        self.backbone = backbone
        self.head = head
        if head_in_features is None:
            shapes = backbone.output_shape()
            head_in_features = sorted(shapes, key=lambda name: shapes[name].stride)
        self.head_in_features = list(head_in_features)
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        # Detectron2's Matcher takes one argument, the IoU matrix; ours take boxes, so that they can bound their memory.
        wants_matrix = len(inspect.signature(anchor_matcher).parameters) == 1
        self.anchor_matcher = MatrixMatcher(anchor_matcher) if wants_matrix else anchor_matcher
        self.num_classes = num_classes

        self.cls_loss = cls_loss or DenseFocalLoss(alpha=focal_loss_alpha, gamma=focal_loss_gamma)
        self.box_loss = box_loss or make_box_loss(box_reg_loss_type, smooth_l1_beta)
        if normalizer not in NORMALIZERS:
            raise ValueError(
                f"MODEL.RETINANET.NORMALIZER is {normalizer!r}; legal values: {', '.join(sorted(NORMALIZERS))}"
            )
        self.loss_normalizer = NORMALIZERS[normalizer]()
        # Targets and loss weights of the micro-batches that have yet to run, in order; see `as_one_batch`.
        self._targets_of_micro_batches: deque[tuple[DenseTargets, torch.Tensor]] = deque()

        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image

        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.vis_period = vis_period
        self.input_format = input_format
        # Dtype the network computes in, if not the images'; see `inference/fast_copy.py`.
        self.compute_dtype: torch.dtype | None = None
        # Channels-last: convolutions run faster, and logits (N, A*K, H, W) flatten to (N, H*W*A, K) without a copy.
        self.to(memory_format=torch.channels_last)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            recompute_in_backward(self)

    @classmethod
    def from_config(cls, cfg):
        retinanet = cfg.MODEL.RETINANET
        check_has_our_keys(retinanet, "MATCHER")
        publish_class_names(cfg)
        backbone = build_backbone(cfg)
        names = retinanet.IN_FEATURES
        feature_shapes = shapes_of_features("MODEL.RETINANET.IN_FEATURES", names, backbone.output_shape())
        return {
            "backbone": backbone,
            "head": DENSE_HEAD_REGISTRY.get(retinanet.HEAD.NAME)(cfg, feature_shapes),
            "head_in_features": names,
            "anchor_generator": build_anchor_generator(cfg, feature_shapes),
            "box2box_transform": Box2BoxTransform(weights=retinanet.BBOX_REG_WEIGHTS),
            "anchor_matcher": ANCHOR_MATCHER_REGISTRY.get(retinanet.MATCHER.NAME)(cfg),
            "num_classes": retinanet.NUM_CLASSES,
            "cls_loss": CLS_LOSS_REGISTRY.get(retinanet.CLS_LOSS.NAME)(cfg),
            "box_loss": BOX_LOSS_REGISTRY.get(box_loss_name(retinanet, "MODEL.RETINANET"))(cfg),
            "normalizer": retinanet.NORMALIZER,
            "test_score_thresh": retinanet.SCORE_THRESH_TEST,
            "test_topk_candidates": retinanet.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": retinanet.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
            "gradient_checkpointing": cfg.MODEL.GRADIENT_CHECKPOINTING,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: one dict per image, as ``DatasetMapper`` makes it: ``image``, a ``(C, H, W)`` tensor in
                ``input_format`` and 0..255; in training ``instances`` with ``gt_boxes`` and ``gt_classes``; at
                inference optionally ``height`` and ``width``, the size that the detections are scaled to.

        Returns:
            In training ``{"loss_cls": scalar, "loss_box_reg": scalar}``; at inference one dict per image with
            ``instances``: ``pred_boxes`` clipped to the image, ``scores``, ``pred_classes``, best first.
            Without images: zero losses that still have a graph, or an empty list.

        Raises:
            ValueError: in training, missing, unusable or out-of-range ground truth; names the file.
        """
        if not batched_inputs:
            return self._zero_losses() if self.training else []
        if self.training:
            self.check_ground_truth(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features, logits, deltas = self.network(images.tensor)
        anchors = self.anchor_generator(features)
        if not self.training:
            detections = self.inference(logits, deltas, anchors, images)
            return self._postprocess(self.branch_outputs(features, detections), batched_inputs)

        instances = [inputs["instances"].to(self.device) for inputs in batched_inputs]
        # Rebind the names, so that the per-level tensors are freed once concatenated.
        logits, deltas = torch.cat(logits, dim=1), torch.cat(deltas, dim=1)
        losses = self.losses(logits, deltas, anchors, instances)
        levels = [len(level) for level in anchors]
        outputs = (logits.detach().split(levels, dim=1), deltas.detach().split(levels, dim=1), anchors, images)
        losses.update(self.branch_losses(features, outputs, instances))
        if self.vis_period > 0 and is_time_for_a_picture(self.vis_period):
            self._draw_training_picture(features, outputs, batched_inputs)
        return losses

    def check_ground_truth(self, batched_inputs: list[dict]) -> None:
        """Refuse ground truth that cannot be trained on; the ``ValueError`` names the file."""
        check_ground_truth(batched_inputs, self.num_classes)

    def branch_losses(self, features: list[torch.Tensor], outputs: tuple, instances: list[Instances]) -> dict:
        """Losses of further branches. This class has none; subclasses override the method.

        Args:
            features, instances: per level ``(N, C, H, W)``, and the ground truth of the N images.
            outputs: arguments of :meth:`inference`, without a graph.
        """
        return {}

    def branch_outputs(self, features: list[torch.Tensor], detections: list[Instances]) -> list[Instances]:
        """The detections of N images with the predictions of further branches, from maps ``(N, C, H, W)`` per level."""
        return detections

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Move images ``(C, H, W)`` to the device, normalise, and batch, padded to a size the backbone can divide."""
        images = [inputs["image"].to(self.device, non_blocking=True) for inputs in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        images = ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )
        images.tensor = images.tensor.contiguous(memory_format=torch.channels_last)
        return images

    def network(self, pixels: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """
        Args:
            pixels: ``(N, C, H, W)``, normalised, of a size that the backbone can divide.

        Returns:
            Per level the feature map ``(N, C, H, W)``, logits ``(N, H*W*A, K)`` and deltas ``(N, H*W*A, 4)``.
        """
        features = self.backbone(pixels if self.compute_dtype is None else pixels.to(self.compute_dtype))
        features = [features[name] for name in self.head_in_features]
        logits, deltas = self.head(features)
        return features, self._flatten(logits), self._flatten(deltas)

    def losses(
        self,
        logits: torch.Tensor,
        deltas: torch.Tensor,
        anchors: Sequence[Boxes],
        instances: Sequence[Instances],
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            logits, deltas: ``(N, R, K)`` and ``(N, R, 4)``.
            anchors: per level, H*W*A boxes.
            instances: N, with ``gt_boxes`` and ``gt_classes``.
        """
        all_anchors = torch.cat([level.tensor for level in anchors])
        if self._targets_of_micro_batches:
            targets, weights = self._targets_of_micro_batches.popleft()
            check_targets_fit(targets, len(instances), len(all_anchors))
        else:
            targets = self._make_targets(anchors, instances)
            weights = self._loss_weights([targets])
        predictions = DensePredictions(
            logits=logits,
            # Boxes need more digits than half precision has. Losses raise the logits themselves, with less memory.
            deltas=deltas.to(torch.promote_types(deltas.dtype, torch.float32)),
            anchors=all_anchors,
            encode=self.box2box_transform.get_deltas,
            decode=self.box2box_transform.apply_deltas,
        )
        return {
            "loss_cls": (self.cls_loss(predictions, targets) * weights).sum(),
            "loss_box_reg": (self.box_loss(predictions, targets) * weights).sum(),
        }

    @contextmanager
    def as_one_batch(self, micro_batches: Sequence[list[dict]]) -> Iterator[None]:
        """Within this context, the losses of the micro-batches add up to the losses of all their images as one batch.

        The anchors of all images are matched first, so that the normaliser is called once, for all images. Processes
        may have different numbers of micro-batches, or no images: each of them calls the normaliser here, once.

        Args:
            micro_batches: inputs as for :meth:`forward`. Call the model with each of them once, in this order.

        Raises:
            ValueError: as :meth:`forward`; also if the backbone's feature maps have another size than
                ``ceil(input / stride)``: the size must be known before the backbone runs.
        """
        targets = [self._targets_ahead(batch) if batch else None for batch in micro_batches]
        weights = self._loss_weights([part for part in targets if part is not None])
        self._targets_of_micro_batches.extend(zip(targets, weights.split([len(batch) for batch in micro_batches])))
        try:
            yield
        finally:
            self._targets_of_micro_batches.clear()

    def _targets_ahead(self, batch: list[dict]) -> DenseTargets:
        """Targets of a micro-batch, without its feature maps."""
        self.check_ground_truth(batch)
        maps = expected_maps(batch, self.backbone, self.head_in_features, self.device)
        instances = [inputs["instances"].to(self.device) for inputs in batch]
        return self._make_targets(self.anchor_generator(maps), instances)

    def inference(
        self,
        logits: Sequence[torch.Tensor],
        deltas: Sequence[torch.Tensor],
        anchors: Sequence[Boxes],
        images: ImageList,
        **limits,
    ) -> list[Instances]:
        """Detections of each image in pixels of the network's input.

        Args:
            logits, deltas: per level ``(N, H*W*A, K)`` and ``(N, H*W*A, 4)``.
            anchors: per level, H*W*A boxes.
            images: the batch of N images, with the size of each before padding.
            limits: replace the limits of inference, such as ``nms_thresh``; see ``decode_batch``.
        """
        defaults = {"score_thresh": self.test_score_thresh, "topk": self.test_topk_candidates}
        defaults |= {"nms_thresh": self.test_nms_thresh, "max_detections": self.max_detections_per_image}
        batch = decode_batch(
            logits,
            deltas,
            [level.tensor for level in anchors],
            self.box2box_transform.apply_deltas,
            **{**defaults, **limits},
        )
        return [
            Instances(size, pred_boxes=Boxes(found.boxes), scores=found.scores, pred_classes=found.classes)
            for size, found in zip(images.image_sizes, batch)
        ]

    def _make_targets(self, anchors: Sequence[Boxes], instances: Sequence[Instances]) -> DenseTargets:
        gt = [[x.gt_boxes.tensor for x in instances], [x.gt_classes for x in instances]]
        return label_anchors([level.tensor for level in anchors], *gt, self.anchor_matcher, self.num_classes)

    def _loss_weights(self, targets: Sequence[DenseTargets]) -> torch.Tensor:
        """Factors ``(N,)`` of the losses of each image, from the targets of all N images of a step."""
        if not targets:
            return self.loss_normalizer(torch.zeros(0, dtype=torch.int64, device=self.device))
        if has_event_storage():
            num_foreground = sum(len(part.image_index) for part in targets)
            num_images = sum(len(part.labels) for part in targets)
            num_anchors = sum(part.labels.numel() for part in targets)
            get_event_storage().put_scalar("num_pos_anchors", num_foreground / num_images)
            get_event_storage().put_scalar("num_anchors", num_anchors / num_images)
        return self.loss_normalizer(torch.cat([part.num_foreground for part in targets]))

    def _flatten(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Per level ``(N, A*D, H, W) -> (N, H*W*A, D)``: a view if the outputs are channels-last in memory."""
        num_anchors = self.anchor_generator.num_cell_anchors
        return [
            output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, output.shape[1] // anchors)
            for output, anchors in zip(outputs, num_anchors)
        ]

    postprocess = staticmethod(detector_postprocess)
    """Scales the detections of an image to another height and width."""

    def _postprocess(self, results: Sequence[Instances], batched_inputs: list[dict]) -> list[dict]:
        """Scale the detections to the size that each input asks for."""
        outputs = []
        for result, inputs in zip(results, batched_inputs):
            height, width = inputs.get("height", result.image_size[0]), inputs.get("width", result.image_size[1])
            outputs.append({"instances": self.postprocess(result, height, width)})
        return outputs

    @torch.no_grad()
    def _draw_training_picture(self, features, outputs, batched_inputs) -> None:
        best = [detections[:MAX_BOXES] for detections in self.inference(*outputs)[:1]]
        (found,) = self.branch_outputs([level[:1] for level in features], best)
        draw_training_picture(batched_inputs[0], found, self.postprocess, self.input_format)

    def _zero_losses(self) -> dict[str, torch.Tensor]:
        # Every parameter joins the graph and the normaliser is called as always: a process without images must take
        # part in the communication of the others, or they wait for it forever. `as_one_batch` has called it already.
        if self._targets_of_micro_batches:
            self._targets_of_micro_batches.popleft()
        else:
            self._loss_weights([])
        zero = sum(parameter.sum() for parameter in self.parameters()) * 0.0
        return {"loss_cls": zero, "loss_box_reg": zero}

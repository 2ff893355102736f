"""The region proposal network: the first stage, which says where there may be an object of any class.

Source: Ren et al., "Faster R-CNN", section 3.1; on several levels, Lin et al., "Feature Pyramid Networks", section 4.1.
It is a dense detector with one class, so matching and losses are those of ``detection`` and ``losses``.

N images, R anchors per image (all levels, order: level, row, column, anchor), A anchors per position.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from retinanet_ext.d2 import (
    Boxes,
    Conv2d,
    ImageList,
    Instances,
    ShapeSpec,
    build_anchor_generator,
    configurable,
    get_event_storage,
    has_event_storage,
)
from retinanet_ext.detection.head import shapes_of_features
from retinanet_ext.detection.matcher import IoUMatcher
from retinanet_ext.detection.targets import label_anchors
from retinanet_ext.losses import DensePredictions, DenseTargets
from retinanet_ext.losses.loss_interface import upcast
from retinanet_ext.ops import Box2BoxTransform
from retinanet_ext.registry import Registry

from .proposals import proposals_of_batch
from .sampling import IGNORED, build_stage_matcher, subsample_batch
from .shared_count import average_over_processes
from .stage_losses import build_rpn_losses

RPN_HEAD_REGISTRY = Registry("RPN_HEAD", config_key="MODEL.RPN.HEAD_NAME")
RPN_HEAD_REGISTRY.__doc__ = """
Heads of the region proposal network, named by ``MODEL.RPN.HEAD_NAME``.

A registered object is called as ``obj(cfg, input_shape)``, where ``input_shape`` is a list of ``ShapeSpec``, one per
level. It returns a module that is called with the list of feature maps ``(N, C, H, W)`` and returns two lists: logits
``(N, A, H, W)`` and deltas ``(N, A*4, H, W)``.
"""

OBJECT, BACKGROUND = 0, 1  # labels of an anchor; the only class is "object"


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """3x3 convolutions with ReLU, then a 1x1 convolution for logits and one for deltas; the levels share all weights.

    Parameters ``conv`` (or ``conv.conv0``, ``conv.conv1``, ... if there are several), ``objectness_logits`` and
    ``anchor_deltas``.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_anchors: int,
        box_dim: int = 4,
        conv_dims: Sequence[int] = (-1,),
        prior_prob: float = 0.0,
    ):
        """
        Args:
            in_channels: channels of the feature maps, the same on every level.
            num_anchors: A.
            box_dim: numbers per box.
            conv_dims: output channels of each 3x3 convolution; -1: as many as come in.
            prior_prob: foreground probability that the untrained head predicts; 0: its bias is 0.

        Raises:
            ValueError: ``conv_dims`` is empty or has a value that is neither -1 nor positive.
        """
        super().__init__()
        if not conv_dims or any(dim != -1 and dim <= 0 for dim in conv_dims):
            raise ValueError(f"MODEL.RPN.CONV_DIMS is {list(conv_dims)}; it needs entries, each of them -1 or above 0")
        convs = []
        for dim in conv_dims:
            out_channels = in_channels if dim == -1 else dim
            convs.append(Conv2d(in_channels, out_channels, 3, padding=1, activation=F.relu_))
            in_channels = out_channels
        self.conv = convs[0]
        if len(convs) > 1:
            self.conv = nn.Sequential()
            for index, conv in enumerate(convs):
                self.conv.add_module(f"conv{index}", conv)
        self.objectness_logits = nn.Conv2d(in_channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(in_channels, num_anchors * box_dim, 1)
        for layer in (*convs, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        if prior_prob:
            nn.init.constant_(self.objectness_logits.bias, math.log(prior_prob / (1 - prior_prob)))

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        channels = {shape.channels for shape in input_shape}
        if len(channels) != 1:
            raise ValueError(
                f"the levels of MODEL.RPN.IN_FEATURES have {sorted(channels)} channels; StandardRPNHead shares its "
                "weights among the levels, which needs the same number on all"
            )
        generator = build_anchor_generator(cfg, input_shape)
        num_anchors = set(generator.num_cell_anchors)
        if len(num_anchors) != 1:
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR gives the levels {generator.num_cell_anchors} anchors per position; "
                "StandardRPNHead needs the same number on all"
            )
        return {
            "in_channels": channels.pop(),
            "num_anchors": num_anchors.pop(),
            "box_dim": generator.box_dim,
            "conv_dims": cfg.MODEL.RPN.CONV_DIMS,
            "prior_prob": cfg.MODEL.RPN.CLS_LOSS.PRIOR_PROB,
        }

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Feature maps ``(N, C, H, W)`` to logits ``(N, A, H, W)`` and deltas ``(N, A*4, H, W)`` of each level."""
        hidden = [self.conv(feature) for feature in features]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


class RPN(nn.Module):
    """Proposals, and in training the losses of the first stage. Parameters are below ``rpn_head``."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: IoUMatcher,
        box2box_transform: Box2BoxTransform,
        cls_loss: nn.Module,
        box_loss: nn.Module,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float = 1.0,
        box_loss_weight: float = 1.0,
    ):
        """
        Args:
            in_features: names of the feature maps, finest first.
            head: see ``RPN_HEAD_REGISTRY``.
            anchor_generator: maps the feature maps to the anchors of each level.
            anchor_matcher: see ``ANCHOR_MATCHER_REGISTRY``.
            box2box_transform: encodes and decodes boxes.
            cls_loss, box_loss: see ``build_rpn_losses``.
            batch_size_per_image: anchors of an image that are sampled for the losses; 0: all anchors take part, and
                the losses are divided by the number of foreground anchors.
            positive_fraction: largest fraction of foreground in the sample.
            pre_nms_topk, post_nms_topk: in training and at inference, see ``proposals_of_batch``.
            nms_thresh, min_box_size: see ``proposals_of_batch``.
            anchor_boundary_thresh: training ignores anchors that reach this many pixels or more beyond the image;
                negative: no anchor is ignored.
            loss_weight: factor of both losses.
            box_loss_weight: further factor of the box loss.
        """
        super().__init__()
        self.in_features = list(in_features)
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.cls_loss, self.box_loss = cls_loss, box_loss
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.pre_nms_topk = {True: pre_nms_topk[0], False: pre_nms_topk[1]}
        self.post_nms_topk = {True: post_nms_topk[0], False: post_nms_topk[1]}
        self.nms_thresh = nms_thresh
        self.min_box_size = min_box_size
        self.anchor_boundary_thresh = anchor_boundary_thresh
        self.loss_weights = {"loss_rpn_cls": loss_weight, "loss_rpn_loc": loss_weight * box_loss_weight}

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        rpn = cfg.MODEL.RPN
        if cfg.MODEL.PROPOSAL_GENERATOR.NAME != "RPN":
            raise ValueError(
                f"MODEL.PROPOSAL_GENERATOR.NAME is {cfg.MODEL.PROPOSAL_GENERATOR.NAME!r}; legal value: 'RPN'. Other "
                "proposals need a model of Detectron2's own"
            )
        shapes = shapes_of_features("MODEL.RPN.IN_FEATURES", rpn.IN_FEATURES, input_shape)
        cls_loss, box_loss = build_rpn_losses(cfg)
        return {
            "in_features": rpn.IN_FEATURES,
            "head": RPN_HEAD_REGISTRY.get(rpn.HEAD_NAME)(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": build_stage_matcher(cfg, "RPN", low_quality="always"),
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "cls_loss": cls_loss,
            "box_loss": box_loss,
            "batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "nms_thresh": rpn.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "anchor_boundary_thresh": rpn.BOUNDARY_THRESH,
            "loss_weight": rpn.LOSS_WEIGHT,
            "box_loss_weight": rpn.BBOX_REG_LOSS_WEIGHT,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        gt_instances: Sequence[Instances] | None = None,
        outputs: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """
        Args:
            images: the batch of N images, with the size of each before padding.
            features: by name, ``(N, C, H, W)``; N may be 0.
            gt_instances: in training N, with ``gt_boxes``.
            outputs: what :meth:`dense_outputs` gives for ``features``, if it has run already.

        Returns:
            For each image ``Instances`` with ``proposal_boxes`` and ``objectness_logits``, without gradient, best
            first; and in training the losses ``loss_rpn_cls`` and ``loss_rpn_loc``, scalars, otherwise ``{}``.

        Raises:
            ValueError: no ground truth in training.
        """
        maps = [features[name] for name in self.in_features]
        anchors = [level.tensor for level in self.anchor_generator(maps)]
        logits, deltas = self.dense_outputs(features) if outputs is None else outputs
        losses = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("the region proposal network needs gt_instances in training")
            losses = self.losses(logits, deltas, anchors, images.image_sizes, gt_instances)
        return self.proposals(logits, deltas, anchors, images.image_sizes), losses

    def proposals(
        self,
        logits: Sequence[torch.Tensor],
        deltas: Sequence[torch.Tensor],
        anchors: Sequence[torch.Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """Proposals from the outputs of each level: ``(N, R_l)``, ``(N, R_l, 4)``; anchors ``(R_l, 4)``."""
        found = proposals_of_batch(
            logits,
            deltas,
            anchors,
            self.box2box_transform.apply_deltas,
            image_sizes,
            pre_nms_topk=self.pre_nms_topk[self.training],
            nms_thresh=self.nms_thresh,
            post_nms_topk=self.post_nms_topk[self.training],
            min_box_size=self.min_box_size,
        )
        return [
            Instances(size, proposal_boxes=Boxes(image.boxes), objectness_logits=image.logits)
            for size, image in zip(image_sizes, found)
        ]

    def losses(
        self,
        logits: Sequence[torch.Tensor],
        deltas: Sequence[torch.Tensor],
        anchors: Sequence[torch.Tensor],
        image_sizes: Sequence[tuple[int, int]],
        gt_instances: Sequence[Instances],
    ) -> dict[str, torch.Tensor]:
        """Sums over the sampled anchors, divided by the size of full samples of all images of all processes; without
        sampling, by the number of foreground anchors.

        Args:
            logits, deltas, anchors: per level ``(N, R_l)``, ``(N, R_l, 4)`` and ``(R_l, 4)``.
            image_sizes: height and width of each of the N images before padding.
            gt_instances: N, with ``gt_boxes``.
        """
        predictions = DensePredictions(
            logits=torch.cat(list(logits), dim=1)[..., None],
            # Boxes need more digits than half precision has. Losses raise the logits themselves, with less memory.
            deltas=upcast(torch.cat(list(deltas), dim=1)),
            anchors=torch.cat(list(anchors)),
            encode=self.box2box_transform.get_deltas,
            decode=self.box2box_transform.apply_deltas,
        )
        targets = self.label_and_sample(anchors, image_sizes, gt_instances)
        if self.batch_size_per_image:
            count = self.batch_size_per_image * average_over_processes(len(image_sizes), predictions.logits.device)
        else:
            count = average_over_processes(len(targets.image_index), predictions.logits.device)
        losses = {
            "loss_rpn_cls": self.cls_loss(predictions, targets),
            "loss_rpn_loc": self.box_loss(predictions, targets),
        }
        # A prediction that is not finite makes the loss NaN also where its anchor is not in the sample: the step then
        # stops all processes together. An error here would stop one, and the others would wait for it.
        poison = sum((level.detach().float() * 0).sum() for level in (*logits, *deltas))
        return {name: loss.sum() * (self.loss_weights[name] / count) + poison for name, loss in losses.items()}

    @torch.no_grad()
    def label_and_sample(
        self,
        anchors: Sequence[torch.Tensor],
        image_sizes: Sequence[tuple[int, int]],
        gt_instances: Sequence[Instances],
    ) -> DenseTargets:
        """What the sampled anchors should predict; all others are ignored.

        Args:
            anchors: per level ``(R_l, 4)``.
            image_sizes: height and width of each of the N images before padding.
            gt_instances: N, with ``gt_boxes``.
        """
        all_anchors = torch.cat(list(anchors))
        if not len(image_sizes):
            nothing = torch.zeros(0, dtype=torch.int64, device=all_anchors.device)
            return DenseTargets(nothing.new_zeros(0, len(all_anchors)), nothing, nothing, all_anchors[:0])
        gt_boxes = [instances.gt_boxes.tensor for instances in gt_instances]
        gt_classes = [torch.full((len(boxes),), OBJECT, dtype=torch.int64, device=boxes.device) for boxes in gt_boxes]
        targets = label_anchors(anchors, gt_boxes, gt_classes, self.anchor_matcher, num_classes=1)
        labels = targets.labels
        if self.anchor_boundary_thresh >= 0:
            labels = labels.masked_fill(~self._is_near_image(all_anchors, image_sizes), IGNORED)
        if self.batch_size_per_image:
            labels = subsample_batch(labels, self.batch_size_per_image, self.positive_fraction, BACKGROUND)
        # One wait for the device: a bool index would wait in each use.
        kept = torch.nonzero(labels[targets.image_index, targets.anchor_index] == OBJECT).squeeze(1)
        index = targets.image_index[kept], targets.anchor_index[kept]
        if has_event_storage():
            num_background = int((labels == BACKGROUND).sum())
            get_event_storage().put_scalar("rpn/num_pos_anchors", len(index[0]) / len(labels))
            get_event_storage().put_scalar("rpn/num_neg_anchors", num_background / len(labels))
        return DenseTargets(labels, *index, targets.gt_boxes[kept])

    def _is_near_image(self, anchors: torch.Tensor, image_sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Whether anchors ``(R, 4)`` end less than ``anchor_boundary_thresh`` beyond each of N images: ``(N, R)``."""
        limit = self.anchor_boundary_thresh
        sizes = torch.tensor([[w, h] for h, w in image_sizes], dtype=anchors.dtype, device=anchors.device)
        return ((anchors[:, :2] >= -limit) & (anchors[:, 2:] < sizes[:, None] + limit)).all(dim=2)

    def dense_outputs(self, features: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Logits ``(N, R_l)`` and deltas ``(N, R_l, 4)`` of each level, of feature maps by name."""
        logits, deltas = self.rpn_head([features[name] for name in self.in_features])
        # (N, A*D, H, W) to (N, H*W*A, D): views, where the outputs are channels-last in memory.
        logits = [level.permute(0, 2, 3, 1).flatten(1) for level in logits]
        deltas = [level.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)) for level in deltas]
        return logits, deltas

"""Losses of the two stages of a two-stage detector, chosen by the config among the losses of a dense detector.

The proposals (``MODEL.RPN``) are a dense detector with one class, so their losses are called as registered. The box
head (``MODEL.ROI_BOX_HEAD``) sees regions of interest (RoIs), which differ from image to image:
:class:`SigmoidClassLoss` and :class:`RoIBoxLoss` show them to a registered loss as the anchors of an image.

Every loss here is a sum, which the caller divides by a count, in at least float32. K classes; M RoIs of all N images,
of which F are foreground.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from retinanet_ext.d2 import CfgNode
from retinanet_ext.losses import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY, DensePredictions, DenseTargets
from retinanet_ext.losses.box_losses import box_loss_name
from retinanet_ext.losses.loss_interface import upcast
from retinanet_ext.ops import Box2BoxTransform
from retinanet_ext.registry import find_registered

SOFTMAX = "softmax"


def build_rpn_losses(cfg: CfgNode) -> tuple[nn.Module, nn.Module]:
    """Classification and box loss of the proposals, with one class.

    Both are called with ``DensePredictions`` and ``DenseTargets`` and return ``(N,)``, see ``CLS_LOSS_REGISTRY``. They
    read ``MODEL.RPN``: ``CLS_LOSS``, ``BOX_LOSS.NAME``, ``BBOX_REG_LOSS_TYPE`` and ``SMOOTH_L1_BETA``.

    Raises:
        KeyError: no loss has the name.
        ValueError: a value that the loss refuses; names the section.
    """
    return _build_cls_loss(cfg, "RPN", 1), _build_box_loss(cfg, "RPN", 1)


def build_box_stage_losses(cfg: CfgNode) -> tuple[nn.Module, nn.Module]:
    """Classification and box loss of the box head, from ``MODEL.ROI_BOX_HEAD``; see the classes below.

    Detectron2's ``USE_SIGMOID_CE`` means the loss ``cross_entropy``.

    Returns:
        :class:`SoftmaxClassLoss` or :class:`SigmoidClassLoss`, and :class:`RoIBoxLoss`.

    Raises:
        KeyError: no loss has the name.
        ValueError: a value that the loss refuses, or two keys contradict each other; names the section.
    """
    head, num_classes = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    name = head.CLS_LOSS.NAME
    if head.USE_SIGMOID_CE:
        if name not in (SOFTMAX, "cross_entropy"):
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE is True and CLS_LOSS.NAME is {name!r}; set only one of them"
            )
        name = "cross_entropy"
    box_loss = RoIBoxLoss(_build_box_loss(cfg, "ROI_BOX_HEAD", num_classes))
    if name != SOFTMAX:
        return SigmoidClassLoss(_build_cls_loss(cfg, "ROI_BOX_HEAD", num_classes, name)), box_loss
    if head.CLS_LOSS.PRIOR_PROB:
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.CLS_LOSS.PRIOR_PROB is {head.CLS_LOSS.PRIOR_PROB}, but CLS_LOSS.NAME is 'softmax', "
            "which has no prior; set it to 0.0, or choose a sigmoid loss such as 'focal'"
        )
    return SoftmaxClassLoss(), box_loss


class RoIBoxes(NamedTuple):
    """The boxes of a batch of RoIs, for losses that look at them.

    Attributes:
        counts: RoIs of each image, N numbers whose sum is M; RoIs are in the order of the images.
        rois: ``(M, 4)``, xyxy in pixels of the network's input.
        foreground: ``(F,)`` int64, ascending: which of the M RoIs have a foreground class.
        deltas: ``(F, 4)``, the offsets that each of them predicts for its class.
        gt_boxes: ``(F, 4)``, xyxy, the ground truth box of each of them.
        transform: encodes and decodes offsets.
    """

    counts: Sequence[int]
    rois: torch.Tensor
    foreground: torch.Tensor
    deltas: torch.Tensor
    gt_boxes: torch.Tensor
    transform: Box2BoxTransform


class SoftmaxClassLoss(nn.Module):
    """Cross entropy over K classes and background (Fast R-CNN, eq. 1)."""

    def forward(self, logits: torch.Tensor, classes: torch.Tensor, boxes: RoIBoxes | None = None) -> torch.Tensor:
        """The sum over the RoIs, a scalar: logits ``(M, K + 1)``; classes ``(M,)``, K background, -1 ignored."""
        return F.cross_entropy(upcast(logits), classes, ignore_index=-1, reduction="sum")

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits ``(M, K + 1)`` to probabilities of the K classes ``(M, K)``."""
        return upcast(logits).softmax(dim=1)[:, :-1]


class SigmoidClassLoss(nn.Module):
    """A loss of ``CLS_LOSS_REGISTRY`` on the first K logits of each RoI; the last one, background, is not used."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, logits: torch.Tensor, classes: torch.Tensor, boxes: RoIBoxes) -> torch.Tensor:
        """The sum over the RoIs, a scalar.

        The loss is called once for each image, since it may choose among the anchors of an image, as ``ohem`` does.

        Args:
            logits: ``(M, K + 1)``.
            classes: ``(M,)`` int64, K background, -1 ignored.
            boxes: of the same RoIs.
        """
        total = logits[:0].sum()  # joins the graph also without images
        if not len(boxes.counts):
            return upcast(total)
        counts = list(boxes.counts)
        # Gradients of losses on boxes flow through this copy.
        deltas = boxes.deltas.new_zeros(len(boxes.rois), 4).index_put((boxes.foreground,), boxes.deltas)
        # One wait for the device, not one for each image.
        is_foreground = torch.zeros_like(classes).index_fill(0, boxes.foreground, 1)
        num_foreground = torch.stack([image.sum() for image in is_foreground.split(counts)]).tolist()
        images = zip(*(x.split(counts) for x in (logits[:, :-1], classes, deltas, boxes.rois)))
        foreground = zip(*(x.split(num_foreground) for x in (boxes.foreground, boxes.gt_boxes)))
        first = 0
        for (image_logits, image_classes, image_deltas, rois), (index, gt_boxes) in zip(images, foreground):
            predictions = _as_dense(image_logits, image_deltas, rois, boxes.transform)
            targets = DenseTargets(image_classes[None], torch.zeros_like(index), index - first, gt_boxes)
            total = total + self.loss(predictions, targets).sum()
            first += len(rois)
        return total

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits ``(M, K + 1)`` to probabilities of the K classes ``(M, K)``."""
        return upcast(logits[:, :-1]).sigmoid()


class RoIBoxLoss(nn.Module):
    """A loss of ``BOX_LOSS_REGISTRY`` on foreground RoIs."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(
        self, deltas: torch.Tensor, rois: torch.Tensor, gt_boxes: torch.Tensor, transform: Box2BoxTransform
    ) -> torch.Tensor:
        """The sum over F foreground RoIs, a scalar with a graph also where F is 0.

        Args:
            deltas: ``(F, 4)``, the offsets that each RoI predicts for its class.
            rois, gt_boxes: ``(F, 4)``, xyxy in pixels.
            transform: encodes and decodes offsets.
        """
        # RoIs add up independently of each other, so those of all images may count as one image.
        index = torch.arange(len(rois), device=rois.device)
        labels = torch.zeros_like(index)
        predictions = _as_dense(deltas[:, :1], deltas, rois, transform)
        return self.loss(predictions, DenseTargets(labels[None], labels, index, gt_boxes)).sum()


def _as_dense(
    logits: torch.Tensor, deltas: torch.Tensor, rois: torch.Tensor, transform: Box2BoxTransform
) -> DensePredictions:
    """RoIs of one image, ``(R, ...)``, as the anchors of a batch of one image."""
    return DensePredictions(
        logits=logits[None],
        deltas=upcast(deltas)[None],
        anchors=rois,
        encode=transform.get_deltas,
        decode=transform.apply_deltas,
    )


def _build_cls_loss(cfg: CfgNode, stage: str, num_classes: int, name: str | None = None) -> nn.Module:
    section = cfg.MODEL[stage].CLS_LOSS
    name = name or section.NAME
    hint = f"; and {SOFTMAX}" if stage == "ROI_BOX_HEAD" else ""
    builder = find_registered(f"MODEL.{stage}.CLS_LOSS.NAME", name, CLS_LOSS_REGISTRY, hint)
    if not 0 <= section.PRIOR_PROB < 1:
        raise ValueError(
            f"MODEL.{stage}.CLS_LOSS.PRIOR_PROB is {section.PRIOR_PROB}; it must be a probability in [0, 1), 0 for none"
        )
    return _build(builder, cfg, stage, num_classes, "CLS_LOSS")


def _build_box_loss(cfg: CfgNode, stage: str, num_classes: int) -> nn.Module:
    name = box_loss_name(cfg.MODEL[stage], f"MODEL.{stage}")
    return _build(BOX_LOSS_REGISTRY.get(name), cfg, stage, num_classes, "BOX_LOSS")


def _build(builder: Callable, cfg: CfgNode, stage: str, num_classes: int, section: str) -> nn.Module:
    try:
        return builder(_config_of_stage(cfg, stage, num_classes))
    except ValueError as error:
        raise ValueError(f"MODEL.{stage}.{section}, which stands for MODEL.RETINANET's here: {error}") from error


def _config_of_stage(cfg: CfgNode, stage: str, num_classes: int) -> CfgNode:
    """``cfg`` as a loss reads it: the keys of RetinaNet's losses have the values of the stage."""
    section = cfg.MODEL[stage]
    values = {
        "NUM_CLASSES": lambda: num_classes,
        "FOCAL_LOSS_ALPHA": lambda: section.CLS_LOSS.ALPHA,
        "FOCAL_LOSS_GAMMA": lambda: section.CLS_LOSS.GAMMA,
        "CLS_LOSS.CLASS_ALPHAS": lambda: section.CLS_LOSS.CLASS_ALPHAS,
        "BBOX_REG_LOSS_TYPE": lambda: section.BBOX_REG_LOSS_TYPE,
        "SMOOTH_L1_LOSS_BETA": lambda: section.SMOOTH_L1_BETA,
        "BBOX_REG_WEIGHTS": lambda: section.BBOX_REG_WEIGHTS,
    }
    return _View(cfg, {f"MODEL.RETINANET.{key}": value for key, value in values.items()})


class _View(CfgNode):
    """A config of which some keys have other values.

    Values are looked up when they are read, so that reading a view reads only the key asked for: keys that nothing
    reads are reported to the user.
    """

    def __init__(self, node: CfgNode, replaced: Mapping[str, Callable[[], object]], prefix: str = ""):
        super().__init__()
        self.__dict__["_node"], self.__dict__["_replaced"], self.__dict__["_prefix"] = node, replaced, prefix
        for key, value in dict.items(node):  # not node.items(), which may record a read
            is_section = isinstance(value, CfgNode)
            dict.__setitem__(self, key, _View(value, replaced, f"{prefix}{key}.") if is_section else value)

    def __getitem__(self, key):  # attribute access comes here too
        value = super().__getitem__(key)
        if isinstance(value, _View):
            return value
        replacement = self.__dict__["_replaced"].get(self.__dict__["_prefix"] + key)
        return replacement() if replacement else self.__dict__["_node"][key]

    def get(self, key, default=None):
        return self[key] if key in self else default  # noqa: SIM401  (that would call this method)

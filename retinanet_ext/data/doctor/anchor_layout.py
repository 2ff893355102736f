"""Where the model of a config places its anchors, and which overlap makes an anchor an object's: without the model."""

import dataclasses
import logging
from collections.abc import Sequence

import torch
from torch import nn

from retinanet_ext.d2 import CfgNode, ShapeSpec, build_anchor_generator, build_backbone

# Models whose anchors are those of MODEL.RETINANET.IN_FEATURES, and of MODEL.RPN.IN_FEATURES.
ONE_STAGE = ("FocalRetinaNet", "InstanceRetinaNet", "RetinaNet")
WITH_RPN = ("MaskRCNN", "GeneralizedRCNN", "PanopticFPN", "ProposalNetwork")
# IoU from which on an anchor counts as one that an object can be learned with.
USUAL_IOU = 0.5

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class AnchorLayout:
    """The anchors of a model.

    Attributes:
        cells: for each level the anchors around (0, 0), ``(A, 4)`` float32, xyxy in pixels.
        shapes: of the feature maps, finest first.
        offset: place of the first position, as a fraction of the stride.
        size_divisibility, square_size: how the model pads images; see ``ImageList.from_tensors``.
        threshold: IoU from which on an anchor is foreground: of the matcher of a model with one stage; None if the
            matcher has no fixed one (ATSS).
        two_stages: whether the anchors are those of a region proposal network.
        boundary: an anchor that ends this many pixels beyond the image is not trained; negative: all are.
    """

    cells: tuple[torch.Tensor, ...]
    shapes: tuple[ShapeSpec, ...]
    offset: float
    size_divisibility: int
    square_size: int
    threshold: float | None
    two_stages: bool
    boundary: float

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The IoUs that coverage is stated at: 0.5, and the matcher's if it differs."""
        return tuple(sorted({USUAL_IOU, self.threshold or USUAL_IOU}))

    @property
    def main_threshold(self) -> float:
        """The IoU that says whether an object can be learned: a proposal network also trains the best anchor of each
        object, so 0.5 counts for it whatever its threshold."""
        return USUAL_IOU if self.two_stages else self.threshold or USUAL_IOU

    def with_anchors_of(self, cfg: CfgNode) -> "AnchorLayout":
        """The same model with the anchors that MODEL.ANCHOR_GENERATOR of ``cfg`` describes."""
        return dataclasses.replace(self, **_anchors(cfg, self.shapes))


def anchor_layout(cfg: CfgNode, backbone: nn.Module | None = None) -> AnchorLayout | None:
    """The anchors of the config's model.

    Args:
        cfg: MODEL says which.
        backbone: the model's, if there is one already; otherwise it is built, to learn its strides.

    Returns:
        None for a model without anchors, or with anchors that this package does not know: rotated ones, or of a
        meta-architecture or generator of the user's own.

    Raises:
        KeyError, ValueError: the config describes no model.
    """
    section = anchor_section(cfg)
    if section is None:
        return None
    shapes, divisibility, square_size = _feature_shapes(cfg, section, backbone or _backbone(cfg))
    anchors = _anchors(cfg, shapes)
    if anchors is None:
        logger.info("anchors of MODEL.ANCHOR_GENERATOR.NAME %s are not examined", cfg.MODEL.ANCHOR_GENERATOR.NAME)
        return None
    return AnchorLayout(
        shapes=shapes,
        size_divisibility=divisibility,
        square_size=square_size,
        threshold=_threshold(cfg, section),
        two_stages=section == "RPN",
        boundary=cfg.MODEL.RPN.BOUNDARY_THRESH if section == "RPN" else -1,
        **anchors,
    )


def anchor_section(cfg: CfgNode) -> str | None:
    """``RETINANET`` or ``RPN``, the section of ``cfg.MODEL`` whose features have anchors; None if there are none."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name in ONE_STAGE:
        return "RETINANET"
    return "RPN" if name in WITH_RPN and cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN" else None


def _feature_shapes(cfg: CfgNode, section: str, backbone: nn.Module) -> tuple[tuple[ShapeSpec, ...], int, int]:
    shapes = backbone.output_shape()
    names = cfg.MODEL[section].IN_FEATURES
    missing = [name for name in names if name not in shapes]
    if missing:
        raise ValueError(
            f"MODEL.{section}.IN_FEATURES names {', '.join(missing)}; the backbone has {', '.join(sorted(shapes))}"
        )
    constraints = backbone.padding_constraints or {}
    divisibility = constraints.get("size_divisibility", backbone.size_divisibility)
    return tuple(shapes[name] for name in names), max(divisibility, 1), constraints.get("square_size", 0)


def _backbone(cfg: CfgNode) -> nn.Module:
    # The run's own random numbers stay as they are. (On the device "meta" this would be no faster: its first use
    # imports PyTorch's compiler.)
    with torch.random.fork_rng(devices=[]):
        return build_backbone(cfg)


def _anchors(cfg: CfgNode, shapes: Sequence[ShapeSpec]) -> dict | None:
    generator = build_anchor_generator(cfg, list(shapes))
    cells = getattr(generator, "cell_anchors", None)
    if cells is None or getattr(generator, "box_dim", 4) != 4 or not hasattr(generator, "offset"):
        return None
    return {"cells": tuple(cell.detach().cpu().float() for cell in cells), "offset": float(generator.offset)}


def _threshold(cfg: CfgNode, section: str) -> float | None:
    if section == "RETINANET" and cfg.MODEL.RETINANET.MATCHER.NAME != "IoUMatcher":
        return None
    node = cfg.MODEL[section]
    foreground = [value for value, label in zip(node.IOU_THRESHOLDS, node.IOU_LABELS[1:]) if label == 1]
    return float(min(foreground)) if foreground else None

"""The older model, v1, of a HarmonicFaceNet: loaded from its run, attached; and the weights that v2 starts from."""

import copy
import logging
import os

from torch import nn

from retinanet_ext.checkpoint.weights import LoadReport, load_weights
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import CfgNode, build_model
from retinanet_ext.data.identity_datasets import embeds_identities
from retinanet_ext.embedding import HarmonicFaceNet
from retinanet_ext.embedding.face_input import CROP_KEYS
from retinanet_ext.embedding.harmonic import FrozenV1
from retinanet_ext.inference.fingerprint import fingerprint
from retinanet_ext.inference.trained_model import config_path, find_weights
from retinanet_ext.machine.processes import bare_model

_KEY = "MODEL.EMBEDDING.HARMONIC.V1"

logger = logging.getLogger(__name__)


def attach_v1(cfg: CfgNode, model: nn.Module) -> None:
    """Load v1 and attach it, if ``model`` is a HarmonicFaceNet; see :func:`load_v1`."""
    if isinstance(model, HarmonicFaceNet):
        model.attach_v1(load_v1(cfg))


def load_v1(cfg: CfgNode) -> FrozenV1:
    """The model that MODEL.EMBEDDING.HARMONIC.V1 and HARMONIC.V1_WEIGHTS name, on MODEL.DEVICE.

    Raises:
        FileNotFoundError: no such run, config or checkpoint.
        ValueError: no v1 is named; it is no FaceNet; its checkpoint does not fit or is the one that v2 starts from; it
            crops faces in another way; its images cannot be made from v2's.
    """
    v1_cfg, weights = _config_and_weights(cfg)
    _check_differs(cfg.MODEL.WEIGHTS, weights)
    _check_crops(cfg, v1_cfg)
    v1 = build_model(v1_cfg)
    load_weights(v1, weights, strict=True)
    digits = fingerprint(v1)
    logger.info("v1, which stays as it is: %s, fingerprint %s", weights, digits)
    return FrozenV1(
        v1, size=v1_cfg.INPUT.FACE.SIZE, image_format=v1_cfg.INPUT.FORMAT, input_format=cfg.INPUT.FORMAT,
        fingerprint=digits,
    )  # fmt: skip


def _config_and_weights(cfg: CfgNode) -> tuple[CfgNode, str]:
    harmonic = cfg.MODEL.EMBEDDING.HARMONIC
    if not harmonic.V1:
        raise ValueError(
            f"{_KEY} is empty, but HarmonicFaceNet is trained against an older model; set it to the folder of a "
            "FaceNet run or to its config file"
        )
    path = config_path(harmonic.V1)
    try:
        v1_cfg = load_config(str(path), datasets=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{_KEY} is {harmonic.V1!r}: {error}") from error
    if not embeds_identities(v1_cfg):
        raise ValueError(
            f"{_KEY} is {harmonic.V1!r}, whose META_ARCHITECTURE is {v1_cfg.MODEL.META_ARCHITECTURE}, which does not "
            "embed faces; name a run of FaceNet"
        )
    v1_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
    try:
        return v1_cfg, find_weights(path, v1_cfg, harmonic.V1_WEIGHTS or None)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{_KEY} is {harmonic.V1!r}, whose checkpoint was not found: {error} Or set {_KEY}_WEIGHTS."
        ) from error


def load_start_weights(model: nn.Module, path: str) -> LoadReport | None:
    """``load_weights``, for the start of a run.

    In the stage "embedding" of a HarmonicFaceNet the projection keeps its random values.

    Raises:
        ValueError: see ``load_weights``; the stage "embedding" starts from nothing, or v2 from v1.
    """
    bare = bare_model(model)
    if not isinstance(bare, HarmonicFaceNet):
        return load_weights(model, path)
    is_first = bare.stage == "embedding"
    if is_first and not path:
        raise ValueError(
            "MODEL.WEIGHTS is empty, but MODEL.EMBEDDING.HARMONIC.STAGE 'embedding' trains only the projection on the "
            "fixed network of a v2 that was trained by itself; name the checkpoint of that FaceNet run"
        )
    # All processes have the values of the first one since the model was wrapped, so none may draw new ones.
    projection = copy.deepcopy(bare.projection.state_dict())
    report = load_weights(model, path)
    if bare.v1 is not None and fingerprint(bare) == bare.v1.fingerprint:
        raise ValueError(_same_model(path))
    if is_first:
        bare.projection.load_state_dict(projection)
        logger.info("MODEL.EMBEDDING.HARMONIC.STAGE embedding: the projection starts at random values")
    return report


def _check_differs(weights: str, v1_weights: str) -> None:
    if weights and os.path.exists(weights) and os.path.exists(v1_weights) and os.path.samefile(weights, v1_weights):
        raise ValueError(_same_model(weights))


def _same_model(path: str) -> str:
    return (
        f"MODEL.WEIGHTS {path} is v1 itself ({_KEY}): their embeddings are the same already; start v2 from a model "
        "that was trained by itself"
    )


def _check_crops(cfg: CfgNode, v1_cfg: CfgNode) -> None:
    found, of_v1 = cfg.INPUT.FACE, v1_cfg.INPUT.FACE
    # v1 sees v2's crop, so how a face is cut out of its photo must agree; sizes may differ.
    differing = [key for key in CROP_KEYS if key != "SIZE" and found[key] != of_v1[key]]
    # A detector's box is widened to the shape of the input; without one the whole centre is squeezed into any shape.
    if found.DETECTOR and found.SIZE[0] * of_v1.SIZE[1] != found.SIZE[1] * of_v1.SIZE[0]:
        differing.append("SIZE")
    if differing:
        pairs = ", ".join(f"INPUT.FACE.{key} is {found[key]!r} and {of_v1[key]!r} for v1" for key in differing)
        raise ValueError(
            f"v1 sees the crop of v2, resized, but its own crop is another part of the photo or has other pixels: "
            f"{pairs}. Set them to v1's values (of SIZE only the ratio must agree)"
        )
    if found.SIZE[0] < of_v1.SIZE[0] or found.SIZE[1] < of_v1.SIZE[1]:
        logger.warning(
            "v1 takes images of %s pixels and sees those of v2, %s pixels, enlarged: with less detail than in its "
            "own crops. A larger INPUT.FACE.SIZE avoids this.",
            tuple(of_v1.SIZE), tuple(found.SIZE),
        )  # fmt: skip

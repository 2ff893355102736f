"""A trained model from the folder of its run: a predictor, or the embedder of a FaceNet."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from retinanet_ext.config.class_count import score_threshold as read_score_threshold
from retinanet_ext.config.class_count import score_threshold_key, set_score_threshold
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import CfgNode
from retinanet_ext.data.identity_datasets import embeds_identities

from .class_thresholds import Thresholds, class_thresholds
from .embedder import Embedder
from .predictor import Predictor, class_names

WEIGHT_FILES = ("model_best.pth", "model_final.pth")
DEFAULT_SCORE_THRESHOLD = 0.5
_DEVICE_KEY, _WEIGHTS_KEY = "MODEL.DEVICE", "MODEL.WEIGHTS"

logger = logging.getLogger(__name__)


def load(
    run: str | Path,
    weights: str | Path | None = None,
    *,
    score_threshold: float | None = None,
    thresholds: Thresholds | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    overrides: Sequence[str] = (),
) -> Predictor | Embedder:
    """Load a trained model, ready to predict::

        predictor = retinanet_ext.load("output/quick")
        result = predictor("photo.jpg")
        result.save("out.jpg")

    A FaceNet is loaded as an :class:`Embedder`, ready to embed::

        embedder = retinanet_ext.load("output/facenet")
        embeddings = embedder(["a.jpg", "b.jpg"])  # (2, D)

    Args:
        run: the output folder of a run, or a config file, ideally the ``config.yaml`` of a run.
        weights: the checkpoint. None: MODEL.WEIGHTS if it is among the overrides, else ``model_best.pth`` or
            ``model_final.pth`` beside the config or in its OUTPUT_DIR, else the config's MODEL.WEIGHTS.
        score_threshold: detections below it are left out, 0 to 1. None: that of the overrides, else the lowest of
            `thresholds`, else 0.5. Not for a FaceNet.
        thresholds: one for each class: class name -> number, a JSON file with them, or ``"model"``, the operating
            thresholds that the run stored in the checkpoint. Classes without one get `score_threshold`, by default
            0.5. Not for a FaceNet.
        device: ``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto`` for CUDA if there is a device. None: that of the
            overrides, else ``auto``.
        batch_size: images per forward pass. None: 4, for a FaceNet 32.
        overrides: alternating config keys and values, as on the command line.

    Raises:
        FileNotFoundError: no such config or checkpoint.
        KeyError, TypeError, ValueError: an argument or a key of the config is not legal, or the weights do not fit.
    """
    if score_threshold is not None and not 0.0 <= score_threshold <= 1.0:
        raise ValueError(f"the score threshold is {score_threshold}; legal: 0 to 1")
    path = config_path(run)
    cfg = _load_config(path, overrides)
    _set_device(cfg, device, overrides)
    cfg.MODEL.WEIGHTS = find_weights(path, cfg, weights, overrides)
    if embeds_identities(cfg):
        return _load_embedder(cfg, score_threshold if thresholds is None else thresholds, batch_size)
    thresholds = _set_thresholds(cfg, score_threshold, thresholds, overrides)
    cfg.freeze()
    predictor = Predictor(cfg, batch_size=4 if batch_size is None else batch_size, thresholds=thresholds)
    names = ", ".join(predictor.class_names)
    logger.info("Weights: %s; device: %s; classes: %s.", cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, names)
    return predictor


def load_embedder(
    run: str | Path,
    weights: str | Path | None = None,
    *,
    device: str | None = None,
    batch_size: int | None = None,
    overrides: Sequence[str] = (),
) -> Embedder:
    """:func:`load` for what needs a FaceNet.

    Raises:
        ValueError: the run is of another model; and what :func:`load` raises.
    """
    cfg = load_config(str(config_path(run)), overrides, datasets=False)
    if not embeds_identities(cfg):
        found = cfg.MODEL.META_ARCHITECTURE
        raise ValueError(f"{run} is the run of a {found}, which gives no embeddings; name the run of a FaceNet")
    return load(run, weights, device=device, batch_size=batch_size, overrides=overrides)


def _set_thresholds(
    cfg: CfgNode, score_threshold: float | None, thresholds: Thresholds | None, overrides: Sequence[str]
) -> dict[str, float] | None:
    """Set the model's score threshold; return the thresholds by class name, if any are given."""
    is_given = score_threshold is not None or score_threshold_key(cfg) in overrides[::2]
    if score_threshold is not None:
        set_score_threshold(cfg, score_threshold)
    elif not is_given:
        set_score_threshold(cfg, DEFAULT_SCORE_THRESHOLD)
    if thresholds is None:
        return None
    names = class_names(cfg)
    found = class_thresholds(thresholds, names, read_score_threshold(cfg), cfg.MODEL.WEIGHTS)
    if not is_given:
        set_score_threshold(cfg, min(found))
    return dict(zip(names, found, strict=True))


def _load_embedder(cfg: CfgNode, score_threshold: float | None, batch_size: int | None) -> Embedder:
    if score_threshold is not None:
        raise ValueError(f"the score threshold is {score_threshold}, but a FaceNet detects nothing; leave it out")
    cfg.freeze()
    embedder = Embedder(cfg, batch_size=32 if batch_size is None else batch_size)
    logger.info("Weights: %s; device: %s; %d numbers per face.", cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, embedder.dim)
    return embedder


def config_path(run: str | Path) -> Path:
    """The config of a run: that in its output folder, or the file that is named."""
    return Path(run) / "config.yaml" if Path(run).is_dir() else Path(run)


def _load_config(path: Path, overrides: Sequence[str]) -> CfgNode:
    cfg = load_config(str(path), overrides, datasets=False)
    if cfg.MODEL.CLASS_NAMES or embeds_identities(cfg):
        return cfg
    # Only the config of a run holds the class names; otherwise the training data have them.
    try:
        return load_config(str(path), overrides)
    except OSError as error:
        logger.warning("The training data cannot be read, so classes have numbers instead of names. %s", error)
        return cfg


def _set_device(cfg: CfgNode, device: str | None, overrides: Sequence[str]) -> None:
    if device not in (None, "auto"):
        cfg.MODEL.DEVICE = device
    elif device == "auto" or _DEVICE_KEY not in overrides[::2]:
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"The device is {cfg.MODEL.DEVICE}, but PyTorch finds no CUDA device here; use cpu.")


def find_weights(config: Path, cfg: CfgNode, weights: str | Path | None, overrides: Sequence[str] = ()) -> str:
    """The checkpoint to use; see :func:`load`. The config's MODEL.WEIGHTS comes last: for a run, training started
    from these weights.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    folders = [config.parent, Path(cfg.OUTPUT_DIR)]
    found = [str(folder / name) for folder in folders for name in WEIGHT_FILES if (folder / name).is_file()]
    if weights is not None or _WEIGHTS_KEY in overrides[::2]:
        path = str(weights or cfg.MODEL.WEIGHTS)
    else:
        path = found[0] if found else cfg.MODEL.WEIGHTS
    if not path:
        raise FileNotFoundError(
            f"No {' or '.join(WEIGHT_FILES)} in {folders[0]} or {folders[1]}; name the checkpoint (--weights FILE)."
        )
    if "://" not in path and not Path(path).is_file():
        raise FileNotFoundError(f"The weights {path} do not exist.")
    return path

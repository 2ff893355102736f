"""Finds keys of a config that differ from their defaults and that nothing in the run reads.

The classic is ``MODEL.ROI_HEADS.SCORE_THRESH_TEST`` on a RetinaNet, whose threshold is another key. Keys of MODEL are
found by building the model from a config that records what is read. The other keys are read in a known place under a
known condition, which :data:`_CONDITIONS` lists.
"""

import difflib
import functools
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from retinanet_ext.config.class_count import TWO_STAGES, num_classes
from retinanet_ext.config.key_reads import is_read_by_models_only, keys_read_by_model
from retinanet_ext.config.keys import add_retinanet_ext_config
from retinanet_ext.config.loading import load_config
from retinanet_ext.config.yaml_files import flat_items, own_keys, shipped_configs
from retinanet_ext.d2 import CfgNode, get_cfg
from retinanet_ext.data.identity_datasets import embeds_identities

logger = logging.getLogger(__name__)

_MOST_MEANT = 3  # more keys of one name than this say nothing


@dataclass(frozen=True)
class UnreadKey:
    """A key whose value changes nothing in this run, and what was probably meant."""

    key: str
    value: object
    default: object
    hint: str

    def __str__(self) -> str:
        return f"{self.key} is {self.value!r} (default {self.default!r}), and nothing in this run reads it; {self.hint}"


def _equals(key: str, *values) -> tuple[Callable[[CfgNode], bool], str]:
    """The condition that a key has one of these values, in code and in words."""
    return (lambda cfg: _value(cfg, key) in values), " or ".join(f"`{key} {value}`" for value in values)


_DETECTS = (lambda cfg: not embeds_identities(cfg)), "a model that detects (MODEL.META_ARCHITECTURE)"
_EMBEDS = embeds_identities, "`MODEL.META_ARCHITECTURE FaceNet`"
_TESTS = (lambda cfg: bool(cfg.DATASETS.TEST)), "a dataset in DATASETS.TEST"
_BEST = (lambda cfg: bool(cfg.TEST.BEST_METRIC)), "a metric in TEST.BEST_METRIC"
_STEPS, _FIXED_STEPS, _COSINE = "WarmupMultiStepLR", "WarmupStepWithFixedGammaLR", "WarmupCosineLR"
_SCHEDULE = "SOLVER.LR_SCHEDULER_NAME"
# A key or section outside of what the model reads -> when it is read, and in words what turns that on.
_CONDITIONS = {
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": (
        (lambda cfg: "smooth_l1" in (cfg.MODEL.RETINANET.BOX_LOSS.NAME or cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE,)),
        "`MODEL.RETINANET.BBOX_REG_LOSS_TYPE smooth_l1`",
    ),
    "SOLVER.STEPS": _equals(_SCHEDULE, _STEPS),
    "SOLVER.GAMMA": _equals(_SCHEDULE, _STEPS, _FIXED_STEPS),
    "SOLVER.NUM_DECAYS": _equals(_SCHEDULE, _FIXED_STEPS),
    "SOLVER.BASE_LR_END": _equals(_SCHEDULE, _COSINE),
    "SOLVER.WARMUP_FACTOR": ((lambda cfg: cfg.SOLVER.WARMUP_ITERS > 0), "SOLVER.WARMUP_ITERS above 0"),
    "SOLVER.WARMUP_METHOD": ((lambda cfg: cfg.SOLVER.WARMUP_ITERS > 0), "SOLVER.WARMUP_ITERS above 0"),
    "SOLVER.MOMENTUM": _equals("SOLVER.OPTIMIZER", "SGD"),
    "SOLVER.NESTEROV": _equals("SOLVER.OPTIMIZER", "SGD"),
    "SOLVER.CLIP_GRADIENTS": _equals("SOLVER.CLIP_GRADIENTS.ENABLED", True),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": _equals("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
    "SOLVER.AMP": _equals("SOLVER.AMP.ENABLED", True),
    "INPUT.CROP": _equals("INPUT.CROP.ENABLED", True),
    "INPUT.MASK_FORMAT": _equals("MODEL.MASK_ON", True),
    "INPUT.FACE": _EMBEDS,
    "INPUT.MIN_SIZE_TRAIN": _DETECTS,
    "INPUT.MAX_SIZE_TRAIN": _DETECTS,
    "INPUT.MIN_SIZE_TEST": _DETECTS,
    "INPUT.MAX_SIZE_TEST": _DETECTS,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": _DETECTS,
    "DATALOADER.REPEAT_THRESHOLD": _equals("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
    "DATALOADER.REPEAT_SQRT": _equals("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
    "DATALOADER.RANDOM_SUBSET_RATIO": _equals("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"),
    "DATALOADER.IMAGES_PER_IDENTITY": _EMBEDS,
    "DATALOADER.RANDOM_NEGATIVES": _EMBEDS,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": _DETECTS,
    "DATALOADER.ASPECT_RATIO_GROUPING": _DETECTS,
    "DATASETS.ON_MISSING_PAIR": _EMBEDS,
    "DATASETS.PROPOSAL_FILES_TRAIN": _equals("MODEL.LOAD_PROPOSALS", True),
    "DATASETS.PROPOSAL_FILES_TEST": _equals("MODEL.LOAD_PROPOSALS", True),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": _equals("MODEL.LOAD_PROPOSALS", True),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": _equals("MODEL.LOAD_PROPOSALS", True),
    "TEST.AUG": _equals("TEST.AUG.ENABLED", True),
    "TEST.PRECISE_BN": _equals("TEST.PRECISE_BN.ENABLED", True),
    "TEST.KEYPOINT_OKS_SIGMAS": _equals("MODEL.KEYPOINT_ON", True),
    "TEST.DETECTIONS_PER_IMAGE": _DETECTS,
    "TEST.EVAL_PERIOD": _TESTS,
    "TEST.BEST_METRIC": _TESTS,
}


def unread_keys(cfg: CfgNode, keys: Collection[str] | None = None) -> list[UnreadKey]:
    """Keys that differ from their defaults and that nothing in a run of this config reads, in order of their names.

    Values of the base configs of this package are left out: they serve several models.

    Args:
        cfg: a config of :func:`load_config`. Its model is built, without memory, weights or data.
        keys: look at these only, such as those that the user wrote; None: at all.
    """
    defaults = get_cfg()
    add_retinanet_ext_config(defaults)
    default_of = dict(flat_items(defaults))
    changed = {key: value for key, value in flat_items(cfg) if key in default_of and value != default_of[key]}
    wanted = [key for key in sorted(changed) if (keys is None or key in keys) and not _is_of_a_base(key, changed[key])]
    read = keys_read_by_model(cfg) if any(map(is_read_by_models_only, wanted)) else set()
    found = []
    for key in wanted:
        hint = _model_hint(cfg, key, read) if is_read_by_models_only(key) else _hint(cfg, key)
        if hint is not None:
            found.append(UnreadKey(key, changed[key], default_of[key], hint))
    return found


def check_keys_are_read(cfg: CfgNode, config_file: str | None, opts: Sequence[str], *, strict: bool) -> None:
    """Warn of keys of a config file (not of its bases) and of overrides that nothing reads.

    Args:
        cfg: what :func:`load_config` made of the file and the overrides.
        config_file, opts: as given to it.
        strict: refuse such keys.

    Raises:
        ValueError: ``strict``, and there are such keys.
    """
    written = {*opts[::2], *(own_keys(config_file) if config_file else ())}
    found = unread_keys(cfg, written)
    if not found:
        return
    text = "\n".join(f"  {entry}" for entry in found)
    if strict:
        raise ValueError(f"--strict: the config has {len(found)} keys that change nothing:\n{text}")
    logger.warning("the config has %d keys that change nothing (--strict makes this an error):\n%s", len(found), text)


@functools.cache
def _base_values() -> list[tuple[str, object]]:
    """Keys and values of the base configs of this package, as a config holds them."""
    values = []
    for file in map(str, sorted(shipped_configs().glob("Base-*.yaml"))):
        cfg, own = load_config(file, datasets=False), set(own_keys(file))
        values += [(key, value) for key, value in flat_items(cfg) if key in own]
    return values


def _is_of_a_base(key: str, value: object) -> bool:
    return (key, value) in _base_values()


def _hint(cfg: CfgNode, key: str) -> str | None:
    """What turns on the reading of a key outside of MODEL; None if it is read."""
    for prefix, (is_read, switch) in _CONDITIONS.items():
        inside = key == prefix or key.startswith(f"{prefix}.")
        if inside and not is_read(cfg):
            return f"it is read with {switch}"
    return None


def _model_hint(cfg: CfgNode, key: str, read: set[str]) -> str | None:
    """The key of the model that was probably meant, or what turns on the reading; None if the key is read."""
    if key in read or _is_filled_from_data(cfg, key):
        return None
    if _hint(cfg, key) is not None:
        return _hint(cfg, key)
    section, _, name = key.rpartition(".")
    model = f"the model {cfg.MODEL.META_ARCHITECTURE}"
    if name in ("MASK_ON", "KEYPOINT_ON", "EMBEDDING_ON"):
        return f"{model} has no such branch; use `MODEL.META_ARCHITECTURE InstanceRetinaNet` or MaskRCNN"
    if switches := _switches(cfg, section):
        return f"it is read with `{switches[0]} True`"
    choice = f"{section.rpartition('.')[0]}.NAME"  # of OHEM.BATCH and its like
    if choice in read:
        return f"another part is chosen: {choice} is {_value(cfg, choice)!r}"
    values = sorted(other for other in read if other.startswith("MODEL.") and not _is_section(cfg, other))
    same = [other for other in values if other.rpartition(".")[2] == name]
    near = same or difflib.get_close_matches(key, values, n=2, cutoff=0.85)
    if near and len(near) <= _MOST_MEANT:
        return f"{model} reads {', '.join(near)}"
    return f"{model} has no part that reads it; remove it"


def _switches(cfg: CfgNode, section: str) -> list[str]:
    """Keys that are off and turn a section on."""
    branches = {"MODEL.ROI_MASK_HEAD": "MODEL.MASK_ON", "MODEL.ROI_KEYPOINT_HEAD": "MODEL.KEYPOINT_ON"}
    branches["MODEL.ROI_EMBEDDING_HEAD"] = "MODEL.EMBEDDING_ON"
    can_have_branches = cfg.MODEL.META_ARCHITECTURE in (*TWO_STAGES, "InstanceRetinaNet")
    switch = branches.get(section) if can_have_branches else f"{section}.ENABLED"
    return [switch] if switch and _value(cfg, switch) is False else []


def _is_filled_from_data(cfg: CfgNode, key: str) -> bool:
    """Whether a key that the model does not read holds what loading took from the data."""
    if key in ("MODEL.RETINANET.NUM_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES"):
        return bool(cfg.MODEL.CLASS_NAMES) and _value(cfg, key) == num_classes(cfg)
    return key == "MODEL.EMBEDDING.NUM_IDENTITIES"


def _is_section(cfg: CfgNode, key: str) -> bool:
    return isinstance(_value(cfg, key), CfgNode)


def _value(cfg: CfgNode, key: str):
    for part in key.split("."):
        cfg = cfg.get(part) if isinstance(cfg, CfgNode) else None
    return cfg

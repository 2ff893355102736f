"""The keys that take one of a few values. An illegal value is refused before anything is built, on both engines.

Names of registered objects (META_ARCHITECTURE, HEAD.NAME, ...) are not listed, because users may register their own.
"""

from collections.abc import Iterator

from retinanet_ext.d2 import CfgNode
from retinanet_ext.data.doctor.record_checks import ANNOTATION_POLICIES, IMAGE_CHECKS, IMAGE_POLICIES
from retinanet_ext.embedding.pairs import MISSING_POLICIES

from .yaml_files import flat_items

# All values that either engine accepts. If `lite` lacks one of them, it refuses that value itself.
_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
LEGAL_VALUES = {
    "DATASETS.ON_BAD_ANNOTATION": ANNOTATION_POLICIES,
    "DATASETS.ON_BAD_IMAGE": IMAGE_POLICIES,
    "DATASETS.CHECK_IMAGES": IMAGE_CHECKS,
    "DATASETS.ON_MISSING_PAIR": MISSING_POLICIES,
    "DATALOADER.SAMPLER_TRAIN": (
        "TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler",
    ),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.FORMAT": ("BGR", "RGB", "L", "YUV-BT.601"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "MODEL.EMBEDDING.HARMONIC.STAGE": ("embedding", "network"),
    "MODEL.FACENET.NORM": _NORMS,
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.FPN.NORM": _NORMS,
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.NORM": _NORMS,
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "MODEL.RETINANET.NORM": _NORMS,
    "MODEL.ROI_BOX_HEAD.NORM": _NORMS,
    "MODEL.ROI_EMBEDDING_HEAD.NORM": _NORMS,
    "MODEL.ROI_MASK_HEAD.NORM": _NORMS,
    "SOLVER.AMP.DTYPE": ("", "float16", "bfloat16"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "SOLVER.NONFINITE.POLICY": ("stop", "skip", "rollback"),
    "SOLVER.OPTIMIZER": ("SGD", "AdaGrad", "AdamW"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "TEST.DTYPE": ("float32", "bfloat16", "float16"),
    "FLOAT32_PRECISION": ("", "highest", "high", "medium"),
}  # fmt: skip
_LARGEST = 1e300
_HEADS = ("MODEL.ROI_BOX_HEAD", "MODEL.ROI_MASK_HEAD", "MODEL.ROI_KEYPOINT_HEAD")
_RPN_COUNTS = [f"MODEL.RPN.{when}_NMS_TOPK_{split}" for when in ("PRE", "POST") for split in ("TRAIN", "TEST")]
# Keys whose numbers have bounds: what is legal, a test for it, the keys.
LEGAL_RANGES = (
    (
        "an integer above 0",
        lambda value: value > 0,
        (
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_BOX_HEAD.CONV_DIM", "MODEL.ROI_BOX_HEAD.FC_DIM",
            "MODEL.ROI_MASK_HEAD.CONV_DIM", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
            "MODEL.ROI_EMBEDDING_HEAD.CONV_DIM", "MODEL.ROI_EMBEDDING_HEAD.ROIS_PER_OBJECT",
            "MODEL.ROI_EMBEDDING_HEAD.POOLER_RESOLUTION",
            *_RPN_COUNTS, *(f"{head}.POOLER_RESOLUTION" for head in _HEADS), "MODEL.EMBEDDING.WARMUP.ITERS",
            "MODEL.RETINANET.TOPK_CANDIDATES_TEST", "MODEL.FPN.OUT_CHANNELS", "MODEL.RESNETS.NUM_GROUPS",
            "MODEL.RESNETS.WIDTH_PER_GROUP", "INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST",
            "SOLVER.CHECKPOINT_PERIOD", "INPUT.MAX_PIXELS",
            "TEST.BEST_KEPT",
        ),
    ),
    (
        "an integer from 0",
        lambda value: value >= 0,
        (
            "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_BOX_HEAD.NUM_CONV", "MODEL.ROI_BOX_HEAD.NUM_FC",
            "MODEL.ROI_MASK_HEAD.NUM_CONV", "MODEL.ROI_EMBEDDING_HEAD.NUM_CONV",
            "MODEL.ROI_EMBEDDING_HEAD.POOLER_SAMPLING_RATIO", "MODEL.EMBEDDING.NUM_IDENTITIES",
            *(f"{head}.POOLER_SAMPLING_RATIO" for head in _HEADS), "MODEL.RETINANET.NUM_CONVS",
            "MODEL.BACKBONE.FREEZE_AT", "INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST", "DATALOADER.NUM_WORKERS",
            "SOLVER.MAX_ITER",
            "SOLVER.STEPS", "SOLVER.WARMUP_ITERS", "TEST.EVAL_PERIOD",
            "SOLVER.CHECKPOINTS_KEPT", "SOLVER.NONFINITE.BUDGET", "SOLVER.REFERENCE_IMS_PER_BATCH",
            "TEST.EARLY_STOP.PATIENCE",
        ),
    ),
    (
        "a number from 0",
        lambda value: value >= 0,
        (
            "SOLVER.BASE_LR", "SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM", "SOLVER.BIAS_LR_FACTOR",
            "DATALOADER.REPEAT_THRESHOLD", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
            "TEST.EARLY_STOP.MIN_DELTA",
        ),
    ),
    (
        "a number from 0 to below 1",
        lambda value: 0 <= value < 1,
        ("MODEL.EMA.DECAY",),
    ),
    (
        "0, a share below 1, or a whole number of images",
        lambda value: 0 <= value < 1 or (value >= 1 and float(value).is_integer()),
        ("DATASETS.BAD_IMAGE_BUDGET",),
    ),
    (
        "a number above 0",
        lambda value: value > 0,
        (
            "MODEL.EMBEDDING.LOSS.MARGIN", "MODEL.EMBEDDING.LOSS.SCALE", "MODEL.ANCHOR_GENERATOR.SIZES",
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "MODEL.PIXEL_STD", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
            "SOLVER.CLIP_GRADIENTS.NORM_TYPE", "SOLVER.GAMMA",
        ),
    ),
    ("a number above 0, up to 1", lambda value: 0 < value <= 1, ("SOLVER.NONFINITE.LR_FACTOR",)),
    (
        "a number from 0 to 1",
        lambda value: 0 <= value <= 1,
        (
            "MODEL.RPN.POSITIVE_FRACTION", "MODEL.RPN.NMS_THRESH", "MODEL.ROI_HEADS.POSITIVE_FRACTION",
            "MODEL.ROI_HEADS.NMS_THRESH_TEST", "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
            "MODEL.EMBEDDING.LOSS.COSINE_MARGIN", "MODEL.RETINANET.SCORE_THRESH_TEST",
            "MODEL.RETINANET.NMS_THRESH_TEST", "MODEL.RETINANET.IOU_THRESHOLDS", "SOLVER.MOMENTUM",
            "SOLVER.WARMUP_FACTOR", "MODEL.ANCHOR_GENERATOR.OFFSET",
            "DATASETS.MIN_ANCHOR_COVERAGE",
        ),
    ),
)  # fmt: skip


def check_values(cfg: CfgNode, defaults: CfgNode) -> None:
    """Refuse values that neither engine knows, and numbers out of range.

    Numbers inside of lists are checked one by one.

    Args:
        cfg: the config.
        defaults: the same keys with their defaults. Only keys whose default is null may be null.

    Raises:
        ValueError: names every such key, its value and the legal values.
    """
    problems = []
    default_of = dict(flat_items(defaults))
    for key, value in flat_items(cfg):
        if value is None and default_of.get(key) is not None:
            problems.append(f"{key} is empty (null); legal: a value like its default, {default_of[key]!r}")
        # An integer in a file may have thousands of digits, which no float holds.
        if not all(abs(number) < _LARGEST for number in _numbers(value)):
            problems.append(f"{key} is {value}; legal: finite numbers")
    if not problems:
        problems = [*_unknown_values(cfg), *_out_of_range(cfg)]
    if problems:
        raise ValueError("\n".join(problems))


def _unknown_values(cfg: CfgNode) -> Iterator[str]:
    for key, legal in LEGAL_VALUES.items():
        value = _value(cfg, key)
        if value not in legal:
            yield f"{key} is {value!r}; legal values: {', '.join(map(repr, legal))}"


def _out_of_range(cfg: CfgNode) -> Iterator[str]:
    for legal, is_legal, keys in LEGAL_RANGES:
        for key in keys:
            value = _value(cfg, key)
            entries = list(_entries(value))
            numbers = list(_numbers(value))
            if len(numbers) < len(entries) or not all(map(is_legal, numbers)):
                each = " each" if isinstance(value, (list, tuple)) else ""
                yield f"{key} is {value}; legal: {legal}{each}"


def _entries(value: object) -> Iterator[object]:
    """A value, or everything inside of a list of lists."""
    if isinstance(value, (list, tuple)):
        for entry in value:
            yield from _entries(entry)
    else:
        yield value


def _numbers(value: object) -> Iterator[float]:
    return (entry for entry in _entries(value) if isinstance(entry, (int, float)) and not isinstance(entry, bool))


def _value(cfg: CfgNode, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg

"""The keys that take one of a few values. An illegal value is refused before anything is built, on both engines.

Names of registered objects (META_ARCHITECTURE, HEAD.NAME, ...) are not listed, because users may register their own.
"""

from retinanet_ext.d2 import CfgNode
from retinanet_ext.data.doctor.record_checks import ANNOTATION_POLICIES, IMAGE_CHECKS, IMAGE_POLICIES

# All values that either engine accepts. If `lite` lacks one of them, it refuses that value itself.
_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
LEGAL_VALUES = {
    "DATASETS.ON_BAD_ANNOTATION": ANNOTATION_POLICIES,
    "DATASETS.ON_BAD_IMAGE": IMAGE_POLICIES,
    "DATASETS.CHECK_IMAGES": IMAGE_CHECKS,
    "DATALOADER.SAMPLER_TRAIN": (
        "TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler",
    ),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.FORMAT": ("BGR", "RGB", "L", "YUV-BT.601"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.FPN.NORM": _NORMS,
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.NORM": _NORMS,
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "MODEL.RETINANET.NORM": _NORMS,
    "MODEL.ROI_BOX_HEAD.NORM": _NORMS,
    "MODEL.ROI_MASK_HEAD.NORM": _NORMS,
    "SOLVER.AMP.DTYPE": ("", "float16", "bfloat16"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "TEST.DTYPE": ("float32", "bfloat16", "float16"),
    "FLOAT32_PRECISION": ("", "highest", "high", "medium"),
}  # fmt: skip


def check_values(cfg: CfgNode) -> None:
    """Refuse values that neither engine knows.

    Raises:
        ValueError: names every such key, its value and the legal values.
    """
    problems = []
    for key, legal in LEGAL_VALUES.items():
        value = cfg
        for part in key.split("."):
            value = value[part]
        if value not in legal:
            problems.append(f"{key} is {value!r}; legal values: {', '.join(map(repr, legal))}")
    if problems:
        raise ValueError("\n".join(problems))

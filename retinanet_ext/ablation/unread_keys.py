"""Finds overrides that change nothing, because no code reads them."""

from collections.abc import Iterator

import torch

from retinanet_ext.d2 import CfgNode, build_model

from .study import Study, arm_config, errors_name_arm

# Read outside the model, by training or evaluation.
_READ_ELSEWHERE = ("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.CLASS_NAMES", "MODEL.KEYPOINT_NAMES", "MODEL.KEYPOINT_LINES")


class _RecordingNode(CfgNode):
    """A copy of a config that records the full name of every value that is read from it, in whichever way."""

    def __init__(self, node: CfgNode, read: set[str], prefix: str = ""):
        super().__init__()
        self.__dict__["_read"], self.__dict__["_prefix"] = read, prefix
        for key, value in node.items():
            is_section = isinstance(value, CfgNode)
            super().__setitem__(key, _RecordingNode(value, read, f"{prefix}{key}.") if is_section else value)

    def __getitem__(self, key):  # attribute access comes here too
        self._note(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self._note(key)
        return super().get(key, default)

    def items(self):
        return [(key, self[key]) for key in self]

    def values(self):
        return [self[key] for key in self]

    def __iter__(self) -> Iterator[str]:
        # This override makes `dict(node)` and `**node` call `__getitem__`; without it they copy the values directly.
        return super().__iter__()

    def _note(self, key: str) -> None:
        self.__dict__["_read"].add(self.__dict__["_prefix"] + key)


def keys_read_by_model(cfg: CfgNode) -> set[str]:
    """Full names of the values and sections that are read while the model is built. No weights are loaded."""
    try:
        with torch.device("meta"):  # no memory is allocated and no random number drawn
            return _keys_read_on("meta", cfg)
    except Exception:  # any exception: a module that inspects tensor values fails, because there are none
        return _keys_read_on("cpu", cfg)


def _keys_read_on(device: str, cfg: CfgNode) -> set[str]:
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = device
    # The data would fill it in, but they are not read here.
    cfg.MODEL.EMBEDDING.NUM_IDENTITIES = cfg.MODEL.EMBEDDING.NUM_IDENTITIES or 1
    read: set[str] = set()
    build_model(_RecordingNode(cfg, read))
    return read


def check_overrides_are_read(study: Study) -> None:
    """Build the model of every arm, and refuse overrides of ``MODEL`` that are not read.

    The model of an arm must read each key that the arm overrides. At least one model must read each key that is
    overridden for all arms. Keys of other sections are not checked: loaders, solver and evaluators read them later.

    Raises:
        ValueError: an override is not read; names arm and keys.
    """
    unread_by_all = set(study.overrides)
    for arm in study.arms:
        cfg = arm_config(study, arm, datasets=False)
        with errors_name_arm(study, arm):
            read = keys_read_by_model(cfg)
        unread = [key for key in arm.overrides if is_checked(key) and key not in read]
        if unread:
            raise ValueError(
                f"study {study.name}, arm {arm.name!r}: nothing reads {', '.join(unread)} in the model of this arm, so "
                "the override changes nothing; remove it, or select the part that reads it (CLS_LOSS.NAME, "
                "MATCHER.NAME and so on)"
            )
        unread_by_all -= read
    unread = [key for key in study.overrides if key in unread_by_all and is_checked(key)]
    if unread:
        raise ValueError(
            f"study {study.name}: nothing reads {', '.join(unread)} in the model of any arm, so the override changes "
            "nothing; remove it"
        )


def is_checked(key: str) -> bool:
    """Whether only the model could read the key."""
    return key.startswith("MODEL.") and key not in _READ_ELSEWHERE

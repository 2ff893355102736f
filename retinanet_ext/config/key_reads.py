"""Which keys of a config its model reads, found by building the model from a config that records."""

from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode

from retinanet_ext.d2 import CfgNode, build_model

# Keys of MODEL that training, evaluation or prediction read, and the model itself need not.
_READ_ELSEWHERE = (
    "MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.CLASS_NAMES", "MODEL.CLASS_IDS", "MODEL.KEYPOINT_NAMES",
    "MODEL.KEYPOINT_LINES", "MODEL.EMBEDDING.HARMONIC.V1",
)  # fmt: skip

_DRAWS = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.fill_, torch.Tensor.zero_, torch.Tensor.erfinv_}


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


class _NoInitialValues(TorchFunctionMode):
    """Leaves out the initial values of parameters: to draw them on ``meta``, torch imports its compiler for seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _DRAWS or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def keys_read_by_model(cfg: CfgNode) -> set[str]:
    """Full names of the values and sections that are read while the model is built. No weights are loaded."""
    try:
        with torch.device("meta"), _NoInitialValues():  # no memory is allocated and no random number drawn
            return _keys_read_on("meta", cfg)
    except Exception:  # any exception: a module that inspects tensor values fails, because there are none
        return _keys_read_on("cpu", cfg)


def _keys_read_on(device: str, cfg: CfgNode) -> set[str]:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    # The data would fill it in, but they are not read here.
    cfg.MODEL.EMBEDDING.NUM_IDENTITIES = cfg.MODEL.EMBEDDING.NUM_IDENTITIES or 1
    read: set[str] = set()
    build_model(_RecordingNode(cfg, read))
    return read


def is_read_by_models_only(key: str) -> bool:
    """Whether only the model could read the key."""
    return key.startswith("MODEL.") and key not in _READ_ELSEWHERE

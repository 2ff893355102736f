"""Config keys of detectors and tasks that `lite` does not have.

A config that a run on Detectron2 has written holds these keys too, and no model of this package reads them. They are
kept, so that the config stays whole; only a value that would change what is built or trained is refused.
"""

import logging
from collections.abc import Iterable
from typing import Any

from yacs.config import CfgNode as _YacsCfgNode

SECTIONS = (
    "GLOBAL",
    "MODEL.PANOPTIC_FPN",
    "MODEL.ROI_BOX_CASCADE_HEAD",
    "MODEL.SEM_SEG_HEAD",
    "TEST.PRECISE_BN",
)
# Switches of parts that `lite` lacks: with any of them on, Detectron2 would build or train something else.
_SWITCHES = ("MODEL.LOAD_PROPOSALS", "TEST.PRECISE_BN.ENABLED")
REMEDY = "or install Detectron2 and set the environment variable RETINANET_EXT_ENGINE=detectron2"

logger = logging.getLogger(__name__)


def is_of_other_detectors(full_key: str) -> bool:
    """Whether a key, or section of keys, belongs to parts that `lite` does not have."""
    return any(f"{full_key}.".startswith(f"{section}.") for section in SECTIONS)


def keep_keys_of_other_detectors(cfg: _YacsCfgNode, loaded: dict) -> None:
    """Add the keys of other detectors in ``loaded``, nested by section, to ``cfg``, and say which ones in the log."""
    kept = [name for name in SECTIONS if _keep(cfg, loaded, name)]
    if kept:
        logger.info("kept, without effect on the engine `lite`: %s", ", ".join(kept))


def _keep(cfg: _YacsCfgNode, loaded: dict, name: str) -> bool:
    *sections, last = name.split(".")
    for section in sections:
        if not isinstance(loaded.get(section), dict) or section not in cfg:
            return False
        loaded, cfg = loaded[section], cfg[section]
    if last not in loaded or last in cfg:
        return False
    # A section whose lines are all commented out reads as None.
    cfg[last] = type(cfg)(loaded[last] or {})
    return True


def refuse_other_detectors(items: Iterable[tuple[str, Any]]) -> None:
    """Refuse values that ask for a part that `lite` does not have.

    Args:
        items: full names of keys, with their values.

    Raises:
        ValueError: names the key, its value, and what to do.
    """
    for key, value in items:
        if key in _SWITCHES and value:
            raise ValueError(f"{key} is {value!r}, but the engine `lite` does not have that; set it to False, {REMEDY}")

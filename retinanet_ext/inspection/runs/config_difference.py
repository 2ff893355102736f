"""What the config of a run changes: against the config file of its command, and against the defaults."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from retinanet_ext.config.keys import add_retinanet_ext_config
from retinanet_ext.config.loading import load_config
from retinanet_ext.config.yaml_files import find_config, flat_items
from retinanet_ext.d2 import ENGINE, get_cfg

from .run_folder import RunFolder

# Keys that a run fills in from its data, or that name a place.
FILLED_IN = (
    "MODEL.RETINANET.NUM_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.CLASS_NAMES", "MODEL.CLASS_IDS",
    "MODEL.KEYPOINT_NAMES", "MODEL.KEYPOINT_LINES", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
    "MODEL.EMBEDDING.NUM_IDENTITIES",
)  # fmt: skip
MISSING = "(no such key)"


@dataclass(frozen=True)
class Change:
    """A key with its value in the base and in the run; `MISSING` where it does not exist."""

    key: str
    base: Any
    run: Any

    @property
    def filled_in(self) -> bool:
        """Whether the data decide the value, so that nobody has changed it."""
        return self.key in FILLED_IN


@dataclass(frozen=True)
class ConfigDifference:
    """
    Attributes:
        base: the config file of the run's command; None: the command names none, or it cannot be read any more.
        from_base: what differs from that file, by overrides, the data, or because the file was changed since.
        from_defaults: what differs from the defaults of the engine that writes the report.
        problem: why there is no base; else empty.
    """

    base: str | None
    from_base: Sequence[Change]
    from_defaults: Sequence[Change]
    problem: str


def config_difference(run: RunFolder) -> ConfigDifference:
    """Compare ``config.yaml`` of a run, which must have one."""
    cfg = get_cfg()
    add_retinanet_ext_config(cfg)
    from_defaults = _changes(_plain(cfg), run.config)
    try:
        base = _base_file(run)
        if base is None:
            return ConfigDifference(None, [], from_defaults, "The run's record names no config file.")
        named = config_argument(list(map(str, run.record["command"])))
        return ConfigDifference(
            named, _changes(_plain(load_config(base, datasets=False)), run.config), from_defaults, ""
        )
    except Exception as error:  # any type: a file that was changed since may be wrong in any way
        text = f"The config file of the run's command cannot be read any more: {error}"
        return ConfigDifference(None, [], from_defaults, text)


def config_argument(command: Sequence[str]) -> str | None:
    """The value of --config-file in a command."""
    for index, word in enumerate(command):
        if word == "--config-file" and index + 1 < len(command):
            return command[index + 1]
        if word.startswith("--config-file="):
            return word.partition("=")[2]
    return None


def _base_file(run: RunFolder) -> str | None:
    named = config_argument([str(word) for word in run.record.get("command") or ()])
    if not named:
        return None
    there = Path(str(run.record.get("working_directory") or ".")) / named
    return str(there) if there.is_file() else find_config(named)


def _plain(cfg) -> dict[str, Any]:
    """Full key -> value, as reading the config's YAML gives it."""
    return dict(flat_items(yaml.safe_load(cfg.dump())))


def _changes(base: Mapping[str, Any], run: Mapping[str, Any]) -> list[Change]:
    # Keys of other detectors, which a base file keeps on one engine only, say nothing about the run.
    keys = [key for key in run if key in base] + [key for key in run if key not in base and _is_ours(key)]
    changes = [Change(key, base.get(key, MISSING), run[key]) for key in keys]
    return sorted((change for change in changes if not _same(change.base, change.run)), key=lambda c: c.key)


def _is_ours(key: str) -> bool:
    return ENGINE == "detectron2" or not key.startswith("MODEL.")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str) and one != other:
        return bool(one) and bool(other) and os.path.normpath(one) == os.path.normpath(other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other

"""The training commands of a study at full size, for a cluster. They may be run from any working directory."""

from pathlib import Path
from typing import Any

from retinanet_ext.config.yaml_files import shipped_configs
from retinanet_ext.d2 import CfgNode

from .study import Study, arm_config, arm_options, run_folder

# The paper's schedule, and so the base configs on COCO, assume this number of GPUs.
_FULL_SCHEDULE_GPUS = 8
_PATH_KEYS = ("JSON", "IMAGES", "ROOT")


def full_schedule_commands(study: Study, output: Path) -> list[list[str]]:
    """For each run, the words of its `retinanet-ext train` command line; all arms of a seed before the next seed."""
    commands = []
    for seed in study.seeds:
        for arm in study.arms:
            cfg = arm_config(study, arm, datasets=False)
            command = ["retinanet-ext", "train"]
            if cfg.MODEL.DEVICE.startswith("cuda"):
                command += ["--num-gpus", str(_FULL_SCHEDULE_GPUS)]
            command += ["--config-file", config_name(study.base), *arm_options(study, arm), *_data_options(cfg)]
            folder = run_folder(output.absolute(), arm.name, seed)
            commands.append([*command, "SEED", str(seed), "OUTPUT_DIR", str(folder)])
    return commands


def config_name(path: Path) -> str:
    """A name by which `find_config` finds a config from any folder: that of the package, else the absolute path."""
    try:
        return path.resolve().relative_to(shipped_configs().resolve()).as_posix()
    except ValueError:
        return str(path.absolute())


def _data_options(cfg: CfgNode) -> list[str]:
    """An override with the data sets' absolute paths; empty if no relative path exists in the working directory."""
    found = [dict(item) for item in cfg.DATASETS.CUSTOM]
    absolute = [
        {key: _absolute(value) if key in _PATH_KEYS else value for key, value in item.items()} for item in found
    ]
    return ["DATASETS.CUSTOM", repr(absolute)] if absolute != found else []


def _absolute(path: Any) -> Any:
    return str(Path(path).absolute()) if isinstance(path, str) and Path(path).exists() else path

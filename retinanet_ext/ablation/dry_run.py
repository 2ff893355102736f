"""The training commands of a study at full size, for a cluster. They may be run from any working directory."""

from pathlib import Path
from typing import Any

from retinanet_ext.config.yaml_files import shipped_configs
from retinanet_ext.d2 import CfgNode
from retinanet_ext.data.registration import PATH_KEYS

from .study import Arm, Study, arm_config, arm_options, run_folder

# The paper's schedule, and so the base configs on COCO, assume this number of GPUs.
_FULL_SCHEDULE_GPUS = 8


def full_schedule_commands(study: Study, output: Path) -> list[list[str]]:
    """For each run, the words of its `retinanet-ext train` command line; all arms of a seed before the next seed."""
    of_arms = {arm.name: _arm_command(study, arm) for arm in study.arms}
    return [
        [*command, "SEED", str(seed), "OUTPUT_DIR", str(run_folder(output.absolute(), name, seed))]
        for seed in study.seeds
        for name, command in of_arms.items()
    ]


def _arm_command(study: Study, arm: Arm) -> list[str]:
    cfg = arm_config(study, arm, datasets=False)
    gpus = ["--num-gpus", str(_FULL_SCHEDULE_GPUS)] if cfg.MODEL.DEVICE.startswith("cuda") else []
    data = ["--config-file", config_name(study.base), *arm_options(study, arm), *_data_options(cfg)]
    return ["retinanet-ext", "train", *gpus, *data]


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
        {key: _absolute(value) if key in PATH_KEYS.get(item["FORMAT"], ()) else value for key, value in item.items()}
        for item in found
    ]
    return ["DATASETS.CUSTOM", repr(absolute)] if absolute != found else []


def _absolute(path: Any) -> Any:
    return str(Path(path).absolute()) if isinstance(path, str) and Path(path).exists() else path

"""The training commands of a study at full size, for a cluster."""

import os
from pathlib import Path

from .study import Study, arm_config, arm_options, run_folder

# The paper's schedule, and so the base configs on COCO, assume this number of GPUs.
_FULL_SCHEDULE_GPUS = 8


def full_schedule_commands(study: Study, output: Path) -> list[list[str]]:
    """For each run, the words of its `train_net.py` command line; all arms of a seed before the next seed."""
    commands = []
    for seed in study.seeds:
        for arm in study.arms:
            command = ["python", "train_net.py"]
            if arm_config(study, arm, datasets=False).MODEL.DEVICE.startswith("cuda"):
                command += ["--num-gpus", str(_FULL_SCHEDULE_GPUS)]
            command += ["--config-file", os.path.relpath(study.base), *arm_options(study, arm)]
            commands.append([*command, "SEED", str(seed), "OUTPUT_DIR", str(run_folder(output, arm.name, seed))])
    return commands

"""What a run was: written next to its results, so that a number can be traced."""

import json
import logging
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from retinanet_ext import d2

logger = logging.getLogger(__name__)


def write_run_record(cfg, num_processes: int) -> None:
    """Write ``run.json`` to the output folder: engine, versions, git state, seed, command."""
    import retinanet_ext

    record = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "working_directory": os.getcwd(),
        "engine": d2.ENGINE,
        "seed": cfg.SEED,
        "processes": num_processes,
        "versions": {
            "retinanet_ext": retinanet_ext.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        },
        "machine": {
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
            "torch_threads": torch.get_num_threads(),
        },
        "git": _git_state(Path(retinanet_ext.__file__).parent),
    }
    logger.info("engine %s, seed %d, %d process(es)", d2.ENGINE, cfg.SEED, num_processes)
    _write(Path(cfg.OUTPUT_DIR) / "run.json", record)


def write_results(output_dir: str, results: dict) -> None:
    """Write the final metrics to ``results.json``; AP in 0-100, undefined values as null."""
    finite = {
        task: {name: value if value == value else None for name, value in metrics.items()}
        for task, metrics in results.items()
    }
    _write(Path(output_dir) / "results.json", finite)


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _git_state(folder: Path) -> dict | None:
    """Commit and uncommitted diff of the code; None when it does not run from a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "diff": git("diff", "HEAD", "--", str(folder))}
    except (OSError, subprocess.SubprocessError):
        return None

"""Records how a run was made, next to its results, so that every number can be traced."""

import importlib.metadata
import json
import logging
import math
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from retinanet_ext import d2
from retinanet_ext.machine.cpu import processor_name

logger = logging.getLogger(__name__)


def write_run_record(cfg, num_processes: int) -> None:
    """Write ``run.json`` to the output folder: engine, versions, git state, seed, command.

    A run that is started again, to resume it or to repeat it, keeps the earlier records under ``earlier_starts``.
    """
    path = Path(cfg.OUTPUT_DIR) / "run.json"
    earlier = []
    if path.exists():
        last = json.loads(path.read_text())
        earlier = [*last.pop("earlier_starts", []), last]
    logger.info("engine %s, seed %d, %d process(es)", d2.ENGINE, cfg.SEED, num_processes)
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    record = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "working_directory": os.getcwd(),
        "engine": d2.ENGINE,
        "seed": cfg.SEED,
        "processes": num_processes,
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda, **_package_versions()},
        "machine": {
            "platform": platform.platform(),
            "processor": processor_name(),
            "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        },
        "git": _git_state(Path(__file__).parent),
        "earlier_starts": earlier,
    }
    _write(path, record)


def write_results(output_dir: str, results: dict, add: bool = False) -> None:
    """Write metrics to ``results.json``; AP in 0-100, undefined values as null. With ``add``, keep earlier entries."""
    path = Path(output_dir) / "results.json"
    earlier = json.loads(path.read_text()) if add and path.exists() else {}
    _write(path, {**earlier, **_undefined_as_null(results)})


def _undefined_as_null(value):
    if isinstance(value, dict):
        return {name: _undefined_as_null(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def _package_versions() -> dict[str, str | None]:
    versions = {}
    for name in ("retinanet_ext", "detectron2", "torch", "torchvision", "numpy", "fvcore"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None  # not installed, or imported from a folder
    return versions


def _git_state(folder: Path) -> dict | None:
    """Commit and uncommitted diff of the code; None if it does not run from its own checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout

    try:
        # Fails for an installation inside another repository, which does not track it.
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": git("rev-parse", "HEAD").strip(), "diff": git("diff", "HEAD", "--", str(folder))}
    except (OSError, subprocess.SubprocessError):
        return None

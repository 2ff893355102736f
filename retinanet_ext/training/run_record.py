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
from retinanet_ext.machine.atomic_file import write_atomically
from retinanet_ext.machine.cpu import processor_name

logger = logging.getLogger(__name__)


def write_run_record(cfg, num_processes: int) -> None:
    """Write ``run.json`` to the output folder: engine, versions, git state, seed, command.

    A run that is started again, to resume it or to repeat it, keeps the earlier records under ``earlier_starts``.

    Raises:
        ValueError: an earlier ``run.json`` cannot be read.
    """
    path = Path(cfg.OUTPUT_DIR) / "run.json"
    earlier = []
    if path.exists():
        last = _read(path)
        earlier = [*last.pop("earlier_starts", []), last]
    logger.info("engine %s, seed %d, %d process(es)", d2.ENGINE, cfg.SEED, num_processes)
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
            "device": _device_name(torch.device(cfg.MODEL.DEVICE)),
        },
        "git": _git_state(Path(__file__).parent),
        "earlier_starts": earlier,
    }
    _write(path, record)


def write_results(output_dir: str, results: dict, add: bool = False) -> None:
    """Write metrics to ``results.json``; AP in 0-100, undefined values as null. With ``add``, keep earlier entries."""
    path = Path(output_dir) / "results.json"
    earlier = _read(path) if add and path.exists() else {}
    _write(path, {**earlier, **_undefined_as_null(results)})


def add_to_run_record(output_dir: str, entries: dict) -> None:
    """Add entries to ``run.json``, or replace them; without that file, nothing happens."""
    path = Path(output_dir) / "run.json"
    if path.exists():
        _write(path, {**_read(path), **_undefined_as_null(entries)})


def _undefined_as_null(value):
    if isinstance(value, dict):
        return {name: _undefined_as_null(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found {type(content).__name__}")
    except ValueError as error:  # of the decoder too
        raise ValueError(f"{path} cannot be read: {error}. Repair it, or move it away; then start again") from error
    return content


def _write(path: Path, content: dict) -> None:
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _device_name(device: torch.device) -> str:
    on_gpu = device.type == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"


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

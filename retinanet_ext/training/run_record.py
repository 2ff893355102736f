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

    A run that is started again, to resume it or to repeat it, keeps the earlier records under ``earlier_starts``. A
    damaged ``run.json`` is moved aside, and so is a damaged end of ``metrics.json``.
    """
    path = Path(cfg.OUTPUT_DIR) / "run.json"
    _repair_metrics(path.with_name("metrics.json"))
    earlier = []
    last = _read_or_set_aside(path)
    if last:
        earlier = [*last.pop("earlier_starts", []), last]
    logger.info("engine %s, seed %d, %d process(es)", d2.ENGINE, cfg.SEED, num_processes)
    record = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "working_directory": os.getcwd(),
        "engine": d2.ENGINE,
        "seed": cfg.SEED,
        "processes": num_processes,
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda, **package_versions()},
        "machine": {
            "platform": platform.platform(),
            "processor": processor_name(),
            "device": _device_name(torch.device(cfg.MODEL.DEVICE)),
        },
        "git": git_state(),
        "earlier_starts": earlier,
    }
    _write(path, record)


def write_results(output_dir: str, results: dict, add: bool = False) -> None:
    """Write metrics to ``results.json``; AP in 0-100, undefined values as null.

    With ``add``, keep earlier entries, and add to those that hold further entries themselves. A damaged file is moved
    aside.
    """
    path = Path(output_dir) / "results.json"
    earlier = _read_or_set_aside(path) if add else {}
    _write(path, _merged(earlier, _undefined_as_null(results)))


def _merged(earlier: dict, new: dict) -> dict:
    """New metrics replace the earlier ones of their task; what holds tasks (a dataset, ``reasons``) is merged."""
    merged = {**earlier, **new}
    for name in earlier.keys() & new.keys():
        if _holds_tasks(earlier[name]) and _holds_tasks(new[name]):
            merged[name] = _merged(earlier[name], new[name])
    return merged


def _holds_tasks(entry: object) -> bool:
    return isinstance(entry, dict) and any(isinstance(value, dict) for value in entry.values())


def add_to_run_record(output_dir: str, entries: dict) -> None:
    """Add entries to ``run.json``, or replace them; without that file, nothing happens."""
    path = Path(output_dir) / "run.json"
    if path.exists():
        _write(path, {**_read_or_set_aside(path), **_undefined_as_null(entries)})


def _undefined_as_null(value):
    if isinstance(value, dict):
        return {name: _undefined_as_null(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_record(path: str | os.PathLike) -> dict:
    """Read one of the JSON files of a run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not JSON, or holds no object.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {type(content).__name__}")
    return content


def set_aside(path: str | os.PathLike, fault: str) -> None:
    """Rename a damaged file to ``<path>.damaged``, so that a run can go on without it and nothing is lost."""
    aside = f"{path}.damaged"
    os.replace(path, aside)
    logger.warning("%s cannot be read (%s); it is now %s, and the run goes on with a new one", path, fault, aside)


def _read_or_set_aside(path: Path) -> dict:
    try:
        return read_record(path)
    except FileNotFoundError:
        pass
    except ValueError as error:  # of the decoder too
        set_aside(path, str(error))
    return {}


def _repair_metrics(path: Path) -> None:
    """Cut an unfinished row of a killed process off the end of ``metrics.json``; the next row would be glued to it."""
    if not path.is_file():
        return
    content = path.read_bytes()
    rows = content.splitlines(keepends=True)
    whole = len(content)
    while rows and not _is_row(rows[-1]):
        whole -= len(rows.pop())
    # In place, because a writer may have opened the file already.
    if whole < len(content):
        with open(f"{path}.damaged", "ab") as aside:
            aside.write(content[whole:])
        os.truncate(path, whole)
        cut = len(content) - whole
        logger.warning("%s ended with %d bytes that are no row; they are now in %s.damaged", path, cut, path)
    if rows and not rows[-1].endswith(b"\n"):
        with open(path, "ab") as file:
            file.write(b"\n")


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _write(path: Path, content: dict) -> None:
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _device_name(device: torch.device) -> str:
    on_gpu = device.type == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that results depend on; None if one is not installed, or imported from a folder."""
    versions = {}
    for name in ("retinanet_ext", "detectron2", "torch", "torchvision", "numpy", "fvcore"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_state() -> dict | None:
    """``commit`` and uncommitted ``diff`` of the code; None if it does not run from its own checkout."""
    folder = Path(__file__).parent

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

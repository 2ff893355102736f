"""Reads the runs of a study from its output folder."""

import hashlib
import json
import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retinanet_ext.config.yaml_files import flat_items, read_config_file

from .status import DIVERGED, DONE, FAILED, RUNNING, STATUS_FILE, STOPPED, Status, is_locked, read_status, steps_done
from .study import STUDY_FILE, Study, run_folder, study_from_dict

logger = logging.getLogger(__name__)

STATES = (RUNNING, STOPPED, DONE, DIVERGED, FAILED)
MISSING = "missing"
"""State of a run that the study asks for but the folder does not hold."""
OUTCOMES = (DONE, DIVERGED)
"""States of a run that has ended and says something about its arm."""


@dataclass(frozen=True)
class Start:
    """Code, engine and machine of one start of a run, from its record in ``run.json``.

    Args:
        time: ISO 8601, in UTC.
        code: "git COMMIT", with a hash of the uncommitted changes if any; outside git, the package's version.
        engine: "detectron2" or "lite".
        torch: its version.
        machine: device, processor and platform.
    """

    time: str
    code: str
    engine: str
    torch: str
    machine: str


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Args:
        state: one of `STATES`, or `MISSING`.
        reason: why it diverged, failed or is missing; else empty.
        seconds: wall time, over all starts.
        iterations: number of finished training iterations.
        metrics: "bbox/AP" and so on, AP in 0-100, None where undefined; empty unless the state is "done".
        starts: the first start, then each resumed or repeated one.
        config: full key -> value; None if the run has written no config.
    """

    arm: str
    seed: int
    folder: Path
    state: str
    reason: str = ""
    seconds: float = 0.0
    iterations: int = 0
    metrics: dict[str, float | None] = field(default_factory=dict)
    starts: tuple[Start, ...] = ()
    config: dict[str, Any] | None = None


def read_study_folder(directory: str | Path) -> tuple[Study, tuple[Run, ...]]:
    """The study that a folder holds, and a run for each of its arms and seeds, in the study's order.

    Raises:
        FileNotFoundError: no such folder, no ``study.json`` in it, or a finished run lacks one of its files.
        ValueError: the folder is empty, a file in it cannot be read, or it has runs that the study does not ask for.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a folder; give the output folder of a study")
    if not any(directory.iterdir()):
        raise ValueError(f"{directory} is empty: no study has written to it")
    study = _read_study(directory / STUDY_FILE)
    _refuse_foreign_runs(directory, study)
    runs = (_read_run(run_folder(directory, arm.name, s), arm.name, s) for arm in study.arms for s in study.seeds)
    return study, tuple(runs)


def read_curve(run: Run, name: str) -> list[tuple[int, float]]:
    """Points (iteration, value) of a metric in a run's ``metrics.json``, by iteration; non-finite values are left out.

    A run that was interrupted and resumed has some iterations twice; the later value counts. A line that is torn,
    because the run was killed while writing it, is skipped with a warning.
    """
    path = run.folder / "metrics.json"
    if not path.exists():
        return []
    values = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            logger.warning("%s, line %d is not JSON and is left out of the curves.", path, number)
            continue
        value = record.get(name)
        if isinstance(value, (int, float)) and math.isfinite(value):
            values[int(record["iteration"])] = float(value)
    return sorted(values.items())


def _read_study(path: Path) -> Study:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, so {path.parent} is not the output folder of a study")
    content = _read_json(path)
    try:
        return study_from_dict(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a study: {error}") from error


def _refuse_foreign_runs(directory: Path, study: Study) -> None:
    expected = {(arm.name, f"seed_{seed}") for arm in study.arms for seed in study.seeds}
    found = {(path.parent.name, path.name) for path in directory.glob("*/seed_*") if path.is_dir()}
    foreign = sorted("/".join(run) for run in found - expected)
    if foreign:
        raise ValueError(
            f"{directory} mixes runs of several studies: {', '.join(foreign)} is not among the arms "
            f"({', '.join(arm.name for arm in study.arms)}) and seeds ({', '.join(map(str, study.seeds))}) of its "
            f"{STUDY_FILE} ({study.name}); move it to another folder"
        )


def _read_run(folder: Path, arm: str, seed: int) -> Run:
    status = read_status(folder)
    if status is None:
        reason = f"no {STATUS_FILE}" if folder.exists() else "not started"
        return Run(arm, seed, folder, MISSING, reason)
    if status.state not in STATES:
        raise ValueError(f"{folder / STATUS_FILE}: state is {status.state!r}; legal: {', '.join(STATES)}")
    if status.state == RUNNING:
        status = _running_or_stopped(folder, status)
    record, config = folder / "run.json", folder / "config.yaml"
    for needed in (record, config):
        if status.state in OUTCOMES and not needed.exists():
            raise FileNotFoundError(
                f"{needed} is missing, although the run is {status.state}; delete {folder} and repeat the run"
            )
    return Run(
        arm, seed, folder, status.state,
        reason=" ".join((status.reason or "").split()),
        seconds=status.seconds,
        iterations=status.iterations,
        metrics=status.metrics,
        starts=_read_starts(record) if record.exists() else (),
        config=dict(flat_items(read_config_file(str(config)))) if config.exists() else None,
    )  # fmt: skip


def _running_or_stopped(folder: Path, status: Status) -> Status:
    """A run whose process was killed together with the study could not write that it stopped."""
    # Before a run had a lock of its own, only the study's lock was held.
    held = is_locked(folder)
    held = is_locked(folder.parents[1]) if held is None else held
    status = replace(status, iterations=steps_done(folder))
    return status if held else replace(status, state=STOPPED, reason="no process runs it")


def _read_starts(path: Path) -> tuple[Start, ...]:
    last = _read_json(path)
    try:
        return tuple(_start(record) for record in [*last.get("earlier_starts", []), last])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the record of a run: {error!r}") from error


def _start(record: dict) -> Start:
    versions, machine = record["versions"], record["machine"]
    described = machine.get("processor"), machine["platform"]  # older records have no processor
    return Start(
        time=record["started"],
        code=_code_identity(record["git"], versions.get("retinanet_ext")),
        engine=record["engine"],
        torch=str(versions["torch"]),
        machine=f"{machine['device']} ({', '.join(part for part in described if part)})",
    )


def _code_identity(git: dict | None, version: str | None) -> str:
    if git is None:
        return f"retinanet_ext {version}" if version else "unknown (neither installed nor in a git repository)"
    commit = f"git {git['commit'][:12]}"
    if not git["diff"]:
        return commit
    return f"{commit} with uncommitted changes {hashlib.sha256(git['diff'].encode()).hexdigest()[:8]}"


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, found {type(content).__name__}")
    return content

"""Reads the folder of a run, of this package or of Detectron2, also of a run that never ended."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retinanet_ext.config.yaml_files import flat_items, read_config_file

from .log_summary import LogSummary, read_logs
from .metric_history import History, read_history

FILES = ("config.yaml", "metrics.json", "results.json", "run.json", "log.txt")
_FINAL = "model_final.pth"
# Entries of results.json that hold an object for each task, as a dataset does.
_NESTED = ("intervals", "reasons")


@dataclass(frozen=True)
class RunFolder:
    """What a run has left.

    Attributes:
        config: full key -> value; None: no readable ``config.yaml``.
        record: ``run.json``; empty for a run of Detectron2's own trainer.
        results: dataset -> entry (``bbox``, ``segm``, ``bbox_TTA``, ``data``, ...) -> metric -> value or None.
        problems: files that could not be read, and why.
    """

    path: Path
    config: Mapping[str, Any] | None
    record: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Mapping[str, Any]]]
    history: History
    log: LogSummary
    problems: Sequence[str]

    @property
    def test_names(self) -> list[str]:
        """The datasets of DATASETS.TEST, or those of the folder ``inference`` if the config is unknown."""
        if self.config is not None:
            return [str(name) for name in self.config.get("DATASETS.TEST") or ()]
        folder = self.path / "inference"
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []

    @property
    def resumes(self) -> list[int]:
        """Iterations at which the run went on after a stop, by the log and by iterations that were logged again."""
        return sorted({*self.log.resumes, *self.history.resumes})

    @property
    def max_iter(self) -> int | None:
        value = (self.config or {}).get("SOLVER.MAX_ITER")
        return value if isinstance(value, int) else None

    @property
    def is_trained(self) -> bool:
        """Whether any training step was logged."""
        return self.history.last_iteration is not None

    @property
    def is_finished(self) -> bool:
        """Whether training came to its end."""
        if (self.path / _FINAL).is_file():
            return True
        last = self.history.last_iteration
        return last is not None and self.max_iter is not None and last + 1 >= self.max_iter


def read_run_folder(folder: str | Path) -> RunFolder:
    """Read what is there.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the folder holds no file of a run; the message says which were looked for.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; give the output folder of a run (its OUTPUT_DIR)")
    if not any((path / name).is_file() for name in FILES) and not (path / "inference").is_dir():
        raise ValueError(
            f"{path} holds no run: found none of {', '.join(FILES)}, and no folder inference. Give the OUTPUT_DIR of a "
            "run of train_net.py or of Detectron2"
        )
    problems: list[str] = []
    config = _read_config(path / "config.yaml", problems)
    record = _read_object(path / "run.json", problems)
    history = read_history(path / "metrics.json")
    if history.damaged_lines:
        problems.append(f"metrics.json: {history.damaged_lines} damaged line(s) are left out; a killed run leaves one")
    run = RunFolder(path, config, record, {}, history, read_logs(path), problems)
    results = _read_object(path / "results.json", problems) if (path / "results.json").is_file() else None
    found = history.last_results() if results is None else results
    return RunFolder(path, config, record, _by_dataset(found, run.test_names), history, run.log, problems)


def _read_config(path: Path, problems: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return dict(flat_items(read_config_file(str(path))))
    except (OSError, ValueError, TypeError) as error:
        problems.append(f"config.yaml cannot be read: {error}")
        return None


def _read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found {type(content).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    return content


def _by_dataset(results: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, dict]]:
    """Entries by dataset: the engines leave the name out if there is only one, and TTA appends to it."""
    names = list(names) or [""]
    by_dataset: dict[str, dict[str, dict]] = {name: {} for name in names}
    for key, value in results.items():
        if not isinstance(value, dict):
            continue
        if key in _NESTED or not any(isinstance(entry, dict) for entry in value.values()):
            by_dataset[names[0]][key] = value
            continue
        owner = max((name for name in names if key == name or key.startswith(f"{name}_")), key=len, default=None)
        suffix = key.removeprefix(owner) if owner else ""
        target = by_dataset.setdefault(owner or key or names[0], {})
        target.update({f"{task}{suffix}": entry for task, entry in value.items() if isinstance(entry, dict)})
    return {name: entries for name, entries in by_dataset.items() if entries}

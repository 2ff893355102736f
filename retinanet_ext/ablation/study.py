"""Studies: YAML files that name a base config, arms as overrides of it, seeds, a metric and the paper's numbers."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from retinanet_ext.config.loading import load_config
from retinanet_ext.config.yaml_files import find_config, read_config_file, shipped_configs
from retinanet_ext.d2 import CfgNode

BUILT_IN_STUDIES = shipped_configs() / "ablations"
STUDY_FILE = "study.json"
ARM_NAME = re.compile(r"(?!\.+$)[A-Za-z0-9._=+-]+")
PAPER_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "ms")
"""Values that a paper may state for an arm: AP in 0-100, and milliseconds per image."""

_REQUIRED = ("TITLE", "SOURCE", "BASE", "METRIC", "SEEDS", "BASELINE", "ARMS")
_OPTIONAL = ("NOTE", "OVERRIDES")
_ARM_REQUIRED = ("NAME", "OVERRIDES")
_ARM_OPTIONAL = ("PAPER", "NOTE")
# The runner sets these keys for each run; a study cannot override them.
_SET_BY_RUNNER = ("SEED", "OUTPUT_DIR")


@dataclass(frozen=True)
class Arm:
    """One setting that a study compares.

    Args:
        name: also the name of its folder.
        overrides: full config key -> value, as on the command line: a number, text or list.
        paper: column -> the paper's value; may be empty. Legal are `PAPER_COLUMNS` and the last part of the metric.
        note: what differs from the paper; may be empty.
    """

    name: str
    overrides: dict[str, Any]
    paper: dict[str, float]
    note: str


@dataclass(frozen=True)
class Origin:
    """How a study was called for, so that a report can say how to repeat it.

    Args:
        file: name of a built-in study, or absolute path of the study's file.
        arms: names of all arms in the file.
        base: absolute path of the base config that replaces the file's; None: the file's.
        overrides: key -> text, from the command line.
    """

    file: str
    arms: tuple[str, ...]
    base: str | None = None
    overrides: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Arms, each to be run with every seed.

    Args:
        name: name of the study file, without suffix.
        base: absolute path of the config that all overrides are applied to.
        metric: the value by which arms are compared, "task/metric" of the evaluator.
        baseline: name of the arm that the other arms are compared with.
        overrides: for all arms; if an arm sets the same key, the arm's value counts.
        origin: None if it is not known.
    """

    name: str
    title: str
    source: str
    note: str
    base: Path
    metric: str
    seeds: tuple[int, ...]
    baseline: str
    overrides: dict[str, Any]
    arms: tuple[Arm, ...]
    origin: Origin | None = None


def built_in_studies() -> list[str]:
    """Names of the studies that come with this package, in ``configs/ablations``."""
    return sorted(path.stem for path in BUILT_IN_STUDIES.glob("*.yaml"))


def load_study(name_or_path: str | Path) -> Study:
    """Read a study and load the config of each of its arms, so that all mistakes in it show now.

    Args:
        name_or_path: name of a built-in study, or path of a study file (``.yaml`` or ``.yml``).

    Raises:
        FileNotFoundError: no such study or file, or no base config; lists the built-in studies, the nearest first.
        KeyError: an unknown key, in the study or in an override.
        TypeError, ValueError: a missing or ill-typed entry, an illegal value, or arms or seeds that collide.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        names = built_in_studies()
        if str(name_or_path) not in names:
            near = difflib.get_close_matches(str(name_or_path), names, n=max(1, len(names)), cutoff=0.0)
            raise FileNotFoundError(
                f"there is no built-in study {str(name_or_path)!r}; there are: "
                f"{', '.join(near) or f'none in {BUILT_IN_STUDIES}'}. For a study of your own, give its .yaml file."
            )
        path = BUILT_IN_STUDIES / f"{name_or_path}.yaml"
    study = read_study_file(path)
    check_arms(study)
    return study


def read_study_file(path: Path) -> Study:
    """The study in a file. Configs are not loaded; errors are those of `load_study` about the file itself."""
    study = _parse(read_config_file(str(path)), path)
    built_in = path.parent.resolve() == BUILT_IN_STUDIES.resolve()
    file = path.stem if built_in else str(path.absolute())
    return replace(study, origin=Origin(file, tuple(arm.name for arm in study.arms)))


def with_changes(
    study: Study,
    *,
    base: str | Path | None = None,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
) -> Study:
    """The study with another base config, fewer arms, other seeds, and overrides for all arms.

    Args:
        base: config file; None: the study's own.
        arms: names of the arms to keep; empty: all. If the baseline is not among them, the first one becomes it.
        seeds: empty: the study's own.
        overrides: alternating keys and values, as on the command line.

    Raises:
        As `load_study`; ValueError also for an override of a key that an arm sets.
    """
    if len(overrides) % 2:
        raise ValueError(f"overrides come as KEY VALUE pairs, but there are {len(overrides)} words: {overrides}")
    study = _with_arms(study, arms) if arms else study
    keys = list(overrides[::2])
    _refuse_repeated("the overrides", keys)
    _check_override_keys("the overrides", keys)
    collisions = [f"arm {arm.name!r} sets {key}" for arm in study.arms for key in arm.overrides if key in keys]
    if collisions:
        raise ValueError(
            f"study {study.name}: an override for all arms collides with overrides of single arms, which the study "
            f"compares: {'; '.join(collisions)}. Leave it out, or write a study of your own."
        )
    given = dict(zip(keys, overrides[1::2]))
    new_base = Path(find_config(str(base))).absolute() if base else None
    changed = replace(
        study,
        base=new_base or study.base,
        seeds=_checked_seeds(list(seeds), "--seeds") if seeds else study.seeds,
        overrides={**study.overrides, **given},
        origin=_changed_origin(study.origin, new_base, given),
    )
    check_arms(changed)
    return changed


def _changed_origin(origin: Origin | None, base: Path | None, overrides: dict[str, str]) -> Origin | None:
    if origin is None:
        return None
    return replace(origin, base=str(base) if base else origin.base, overrides={**origin.overrides, **overrides})


def _with_arms(study: Study, names: Sequence[str]) -> Study:
    legal = [arm.name for arm in study.arms]
    unknown = [name for name in names if name not in legal]
    if unknown:
        raise ValueError(f"study {study.name} has no arm {', '.join(unknown)}; its arms: {', '.join(legal)}")
    kept = tuple(arm for arm in study.arms if arm.name in names)
    return replace(study, arms=kept, baseline=study.baseline if study.baseline in names else kept[0].name)


def arm_options(study: Study, arm: Arm) -> list[str]:
    """Overrides of the study and of an arm, as words of a command line: KEY VALUE KEY VALUE ..."""
    merged = {**study.overrides, **arm.overrides}
    return [word for key, value in merged.items() for word in (key, value if isinstance(value, str) else repr(value))]


def arm_config(study: Study, arm: Arm, options: Sequence[str] = (), *, datasets: bool = True) -> CfgNode:
    """The config of an arm; ``options`` come last. Raises the errors of `load_config`, with study and arm named."""
    with errors_name_arm(study, arm):
        return load_config(str(study.base), [*arm_options(study, arm), *options], datasets=datasets)


@contextmanager
def errors_name_arm(study: Study, arm: Arm) -> Iterator[None]:
    """Add the names of study and arm to errors of a config or of a model."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise type(error)(f"study {study.name}, arm {arm.name!r}: {error.args[0]}") from error


def check_arms(study: Study) -> None:
    """Load the config of every arm, without its data.

    Raises:
        FileNotFoundError: the base config does not exist.
        KeyError, TypeError, ValueError: overrides do not fit the config; two arms have the same config.
    """
    seen: dict[str, str] = {}
    for arm in study.arms:
        content = arm_config(study, arm, datasets=False).dump()
        if content in seen:
            raise ValueError(
                f"study {study.name}: the arms {seen[content]!r} and {arm.name!r} have the same config, so there is "
                "nothing to compare; remove one of them, or correct its OVERRIDES"
            )
        seen[content] = arm.name


def run_folder(output_dir: Path, arm: str, seed: int) -> Path:
    return Path(output_dir) / arm / f"seed_{seed}"


def study_to_dict(study: Study) -> dict[str, Any]:
    """The content of ``study.json``; `study_from_dict` reads it."""
    return {**asdict(study), "base": str(study.base)}


def study_from_dict(content: Mapping[str, Any]) -> Study:
    """The study that `study_to_dict` wrote. Configs are not loaded, because they may be on another machine.

    Raises:
        KeyError, TypeError: `content` does not describe a study.
    """
    fields = dict(content)
    fields["base"] = Path(fields["base"])
    fields["seeds"] = tuple(fields["seeds"])
    fields["arms"] = tuple(Arm(**arm) for arm in fields["arms"])
    origin = fields.get("origin")
    fields["origin"] = None if origin is None else Origin(**{**origin, "arms": tuple(origin["arms"])})
    return Study(**fields)


def _parse(content: dict[str, Any], path: Path) -> Study:
    where = str(path)
    _check_keys(content, _REQUIRED, _OPTIONAL, where)
    for key in ("TITLE", "SOURCE", "BASE", "METRIC", "BASELINE", "NOTE"):
        _check_text(content.get(key, ""), f"{where}: {key}")
    if not re.fullmatch(r"[^/]+(/[^/]+)+", content["METRIC"]):
        raise ValueError(f"{where}: METRIC is {content['METRIC']!r}; it must be 'task/metric', such as 'bbox/AP'")
    seeds = _checked_seeds(content["SEEDS"], f"{where}: SEEDS")
    if not isinstance(content["ARMS"], list) or not content["ARMS"]:
        raise TypeError(f"{where}: ARMS must be a list of arms, at least one, found {content['ARMS']!r}")
    columns = dict.fromkeys([*PAPER_COLUMNS, content["METRIC"].split("/")[-1]])
    arms = tuple(_parse_arm(arm, f"{where}: ARMS[{i}]", columns) for i, arm in enumerate(content["ARMS"]))
    # Arm names become folder names; some file systems ignore case.
    _refuse_repeated(f"{where}: ARMS", [arm.name.lower() for arm in arms])
    names = [arm.name for arm in arms]
    if content["BASELINE"] not in names:
        raise ValueError(f"{where}: BASELINE is {content['BASELINE']!r}, but the arms are {', '.join(names)}")
    return Study(
        name=path.stem,
        title=content["TITLE"],
        source=content["SOURCE"],
        note=content.get("NOTE", ""),
        base=_find_base(path, content["BASE"]),
        metric=content["METRIC"],
        seeds=seeds,
        baseline=content["BASELINE"],
        overrides=_checked_overrides(content.get("OVERRIDES", {}), f"{where}: OVERRIDES"),
        arms=arms,
    )


def _find_base(path: Path, base: str) -> Path:
    """The base config, relative to the study's file; or the one of that name that comes with this package."""
    beside = (path.absolute().parent / base).resolve()
    if beside.is_file():
        return beside
    try:
        return Path(find_config(base)).resolve()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: BASE: there is no {beside}: {error}") from None


def _parse_arm(arm: Any, where: str, columns: Iterable[str]) -> Arm:
    if not isinstance(arm, dict):
        raise TypeError(f"{where} must be {{NAME: ..., OVERRIDES: {{KEY: value}}}}, found {arm!r}")
    _check_keys(arm, _ARM_REQUIRED, _ARM_OPTIONAL, where)
    name = arm["NAME"]
    _check_text(name, f"{where}: NAME")
    if not ARM_NAME.fullmatch(name):
        raise ValueError(f"{where}: NAME is {name!r}; it names a folder and may hold A-Z a-z 0-9 . _ = + - only")
    where = f"{where} ({name})"
    _check_text(arm.get("NOTE", ""), f"{where}: NOTE")
    paper = arm.get("PAPER", {})
    if not isinstance(paper, dict):
        raise TypeError(f"{where}: PAPER must be {{METRIC: number}}, found {paper!r}")
    for column, value in paper.items():
        if column not in columns:
            raise KeyError(f"{where}: PAPER has no column {column!r}; legal: {', '.join(columns)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise TypeError(f"{where}: PAPER {column} must be a number, found {value!r}")
    return Arm(name, _checked_overrides(arm["OVERRIDES"], f"{where}: OVERRIDES"), dict(paper), arm.get("NOTE", ""))


def _check_keys(content: Mapping, required: Sequence[str], optional: Sequence[str], where: str) -> None:
    legal = (*required, *optional)
    for key in content:
        if key not in legal:
            near = difflib.get_close_matches(str(key).upper(), legal, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise KeyError(f"{where}: unknown key {key!r}; legal: {', '.join(legal)}{hint}")
    missing = [key for key in required if key not in content]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}; a study needs {', '.join(required)}")


def _check_text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{where} must be text, found {value!r}; put it into quotes")


def _checked_seeds(seeds: Any, where: str) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(f"{where} must be integers from 0 on, at least one, found {seeds!r}")
    _refuse_repeated(where, seeds)
    return tuple(seeds)


def _checked_overrides(overrides: Any, where: str) -> dict[str, Any]:
    if not isinstance(overrides, dict):
        raise TypeError(f"{where} must be {{KEY: value}}, {{}} for none, found {overrides!r}")
    _check_override_keys(where, overrides)
    for key, value in overrides.items():
        if isinstance(value, dict):
            raise TypeError(f"{where}: {key} holds a section; write the full key of each value, such as {key}.NAME")
    return dict(overrides)


def _check_override_keys(where: str, keys: Iterable[str]) -> None:
    reserved = [key for key in keys if key in _SET_BY_RUNNER]
    if reserved:
        raise ValueError(f"{where}: {', '.join(reserved)} cannot be set there; the runner sets it for each run")


def _refuse_repeated(where: str, values: Iterable) -> None:
    repeated = [str(value) for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"{where}: {', '.join(repeated)} occurs more than once")

"""The same arms under several levels of imbalance: one study folder for each level."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .comparison import config_differences, differing_runs, unfinished_runs, values_of
from .results import Run, read_curve, read_study_folder
from .statistics import Summary, paired_difference
from .study import Study

# Keys in which levels may differ: the data.
_DATA_KEYS = ("DATASETS.",)


@dataclass(frozen=True)
class Level:
    """One study folder.

    Args:
        name: the folder's name.
        imbalance: anchors for each foreground anchor in training, over all logged steps of all runs.
        values: arm -> seed -> the metric, for all arms of the study.
    """

    name: str
    study: Study
    runs: tuple[Run, ...]
    imbalance: float
    values: dict[str, dict[int, float]]


@dataclass(frozen=True)
class Trend:
    """Levels in the order of their imbalance.

    Args:
        arms: those that at least two levels have, in the order of the first folder that was given.
        left_out: the other arms.
        reference: the arm that all others are compared with.
    """

    levels: tuple[Level, ...]
    arms: tuple[str, ...]
    left_out: tuple[str, ...]
    reference: str
    metric: str

    def difference(self, arm: str, level: Level) -> Summary:
        """The arm minus the reference at a level, seed by seed."""
        return paired_difference(level.values.get(arm, {}), level.values.get(self.reference, {}))


def read_trend(directories: Sequence[str | Path], reference: str | None = None) -> Trend:
    """Read the study folders of a trend; runs without a value are left out.

    Args:
        directories: output folders of ``retinanet-ext ablate run``.
        reference: None: the baseline of the studies.

    Raises:
        FileNotFoundError, ValueError: a folder holds no study, see `read_study_folder`; fewer than two folders; a
            folder given twice, or two of the same name; studies of different metrics; a level without logged numbers
            of anchors; no arm in two levels; or the reference is not among the arms.
    """
    folders = [Path(directory).resolve() for directory in directories]
    if len(folders) < 2 or len({folder.name for folder in folders}) < len(folders):
        raise ValueError(
            "a trend needs two or more study folders of different names, because the names stand for the levels; found "
            + ", ".join(map(str, directories))
        )
    levels = [_read_level(directory) for directory in directories]
    metrics = {level.name: level.study.metric for level in levels}
    if len(set(metrics.values())) > 1:
        raise ValueError(f"the studies compare different metrics: {metrics}; a trend needs one")
    counts: dict[str, int] = defaultdict(int)
    for level in levels:
        for arm in level.values:
            counts[arm] += 1
    arms = tuple(arm for arm, count in counts.items() if count > 1)
    if not arms:
        raise ValueError(f"no arm is in two of the folders; their arms: {', '.join(counts)}")
    reference = reference or levels[0].study.baseline
    if reference not in arms:
        raise ValueError(f"the reference arm {reference!r} is not among the arms of two folders: {', '.join(arms)}")
    left_out = tuple(arm for arm in counts if arm not in arms)
    ordered = tuple(sorted(levels, key=lambda level: level.imbalance))
    return Trend(ordered, arms, left_out, reference, levels[0].study.metric)


def _read_level(directory: str | Path) -> Level:
    study, runs = read_study_folder(directory)
    values = {arm.name: values_of((run for run in runs if run.arm == arm.name), study.metric) for arm in study.arms}
    return Level(Path(directory).resolve().name, study, runs, anchors_per_foreground(directory, runs), values)


def anchors_per_foreground(directory: str | Path, runs: Iterable[Run]) -> float:
    """All anchors divided by all foreground anchors, summed over the logged steps of the runs.

    The ratio of the sums, because a single step may have no foreground at all.

    Raises:
        ValueError: no run has logged them, or there was no foreground.
    """
    anchors = foreground = 0.0
    for run in runs:
        total = dict(read_curve(run, "num_anchors"))
        for iteration, count in read_curve(run, "num_pos_anchors"):
            if iteration in total:
                anchors, foreground = anchors + total[iteration], foreground + count
    if not foreground:
        raise ValueError(
            f"{directory}: no run has logged num_anchors and num_pos_anchors above 0 in its metrics.json, so the "
            "imbalance of this level is unknown; leave the folder out, or wait for its first run"
        )
    return anchors / foreground


def missing_runs(trend: Trend) -> list[str]:
    """A line for each arm of a level that lacks runs: level, arm, seeds and states."""
    lines = []
    for level in trend.levels:
        for arm in trend.arms:
            without = [
                run for run in level.runs if run.arm == arm and unfinished_runs([run], trend.metric)
            ]  # fmt: skip
            if without:
                states = ", ".join(f"seed {run.seed} {run.state}" for run in without)
                lines.append(f"{level.name}, arm {arm}: {states}")
    return lines


def mixed_runs(trend: Trend) -> list[str]:
    """A line for each difference that is not one of the data: in code, engine, torch, or config."""
    of_arms = [(level, run) for level in trend.levels for run in level.runs if run.arm in trend.arms]
    lines = differing_runs([replace(run, arm=f"{run.arm} of {level.name}") for level, run in of_arms])
    for arm in trend.arms:
        firsts = [(level, run) for level, run in of_arms if run.arm == arm and run.config is not None]
        per_level = {level.name: run for level, run in reversed(firsts)}
        if not firsts:
            continue
        first_level, first = firsts[0]
        for name, run in reversed(per_level.items()):
            changes = config_differences(first, run).items() if name != first_level.name else ()
            lines += [
                f"{name}, arm {arm}: {key} is {new}, but {old} in {first_level.name}"
                for key, (old, new) in changes
                if not key.startswith(_DATA_KEYS)
            ]
    return lines


@dataclass(frozen=True)
class Lead:
    """At which levels the reference and another arm are clearly ahead of one another: the interval excludes zero.

    Args:
        start: the level from which on the reference is ahead, at every level; None if it is not ahead at the last one.
        reference_ahead, arm_ahead: levels at which the one or the other is ahead.
        unknown: levels without an interval.
    """

    arm: str
    start: Level | None
    reference_ahead: tuple[Level, ...]
    arm_ahead: tuple[Level, ...]
    unknown: tuple[Level, ...]


def leads(trend: Trend) -> list[Lead]:
    """For each other arm, where the reference is ahead. A level without an interval ends the range in `start`."""
    found = []
    for arm in trend.arms:
        if arm == trend.reference:
            continue
        differences = [(level, trend.difference(arm, level)) for level in trend.levels]
        ahead = tuple(level for level, entry in differences if entry.excludes_zero and entry.mean < 0)
        behind = tuple(level for level, entry in differences if entry.excludes_zero and entry.mean > 0)
        unknown = tuple(level for level, entry in differences if entry.interval is None)
        start = None
        for level in reversed(trend.levels):
            if level not in ahead:
                break
            start = level
        found.append(Lead(arm, start, ahead, behind, unknown))
    return found

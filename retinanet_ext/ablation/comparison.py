"""The arms of a study side by side: what was measured, what differs between their configs, and what was not run."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from retinanet_ext.config.key_reads import is_read_by_models_only, keys_read_by_model
from retinanet_ext.config.loading import load_config
from retinanet_ext.report.formats import shortened

from .results import OUTCOMES, Run
from .statistics import Summary, paired_difference, summarize
from .status import DONE
from .study import Arm, Study

logger = logging.getLogger(__name__)

ABSENT = "absent"
"""Shown in place of the value of a key that a config does not have."""
_KEYS_OF_A_RUN = ("SEED", "OUTPUT_DIR")  # differ between any two runs, so they say nothing about an arm


@dataclass(frozen=True)
class ArmResult:
    """The results of one arm.

    Args:
        values: seed -> the study's metric, for the runs that have it.
        difference: this arm minus the baseline, over the common seeds; None for the baseline itself.
        paper: the paper's value of the metric; None if the paper states none.
        paper_difference: `paper` minus the paper's value of the baseline; None for the baseline or if one is missing.
        changes: full key -> (the baseline's value, this arm's value), for keys in which the two configs differ and that
            the model of this arm reads.
    """

    arm: Arm
    runs: tuple[Run, ...]
    values: dict[int, float]
    summary: Summary
    difference: Summary | None
    paper: float | None
    paper_difference: float | None
    changes: dict[str, tuple[Any, Any]]

    @property
    def name(self) -> str:
        return self.arm.name

    def count(self, *states: str) -> int:
        return sum(run.state in states for run in self.runs)

    @property
    def seconds(self) -> float | None:
        """Mean wall time of the finished runs."""
        return summarize(run.seconds for run in self.runs if run.state == DONE).mean


def compare_arms(study: Study, runs: Sequence[Run]) -> tuple[ArmResult, ...]:
    """The results of all arms, in the study's order. Runs that did not end with a metric enter no mean."""
    runs_of = defaultdict(list)
    for run in runs:
        runs_of[run.arm].append(run)
    by_name = {arm.name: arm for arm in study.arms}
    paper_name = study.metric.rpartition("/")[2]
    baseline = values_of(runs_of[study.baseline], study.metric)
    paper_baseline = by_name[study.baseline].paper.get(paper_name)
    results = []
    for arm in study.arms:
        values = values_of(runs_of[arm.name], study.metric)
        paper = arm.paper.get(paper_name)
        has_difference = None not in (paper, paper_baseline) and arm.name != study.baseline
        results.append(
            ArmResult(
                arm, tuple(runs_of[arm.name]), values, summarize(values.values()),
                difference=None if arm.name == study.baseline else paired_difference(values, baseline),
                paper=paper,
                paper_difference=paper - paper_baseline if has_difference else None,
                changes=_changes(runs_of[study.baseline], runs_of[arm.name]),
            )
        )  # fmt: skip
    return tuple(results)


def values_of(runs: Iterable[Run], metric: str) -> dict[int, float]:
    """Seed -> value, of the runs that finished and have it."""
    values = {run.seed: run.metrics.get(metric) for run in runs if run.state == DONE}
    return {seed: value for seed, value in values.items() if value is not None}


def other_metrics(study: Study, runs: Iterable[Run]) -> list[str]:
    """Full names of AP50, AP75 and the other metrics in the paper, for the task of the study's metric.

    A metric that no run has and the paper does not state is left out.
    """
    task = study.metric.rpartition("/")[0]
    measured = {name for run in runs for name in run.metrics}
    stated = [name for arm in study.arms for name in arm.paper]
    names = dict.fromkeys(f"{task}/{name}" if task else name for name in ("AP50", "AP75", *stated))
    in_paper = {f"{task}/{name}" if task else name for name in stated}
    return [name for name in names if name != study.metric and (name in measured or name in in_paper)]


def unfinished_runs(runs: Iterable[Run], metric: str) -> list[str]:
    """A line for each run without a result: missing, running, stopped, failed, or done without the metric."""
    lines = []
    for run in runs:
        if run.state not in OUTCOMES:
            lines.append(
                f"arm {run.arm}, seed {run.seed}: {run.state}" + (f" ({shortened(run.reason)})" if run.reason else "")
            )
        elif run.state == DONE and metric not in run.metrics:
            available = ", ".join(run.metrics) or "none"
            lines.append(f"arm {run.arm}, seed {run.seed}: done, but has no {metric} (its metrics: {available})")
    return lines


def differing_runs(runs: Sequence[Run]) -> list[str]:
    """A line for each finished run that differs from most in code, engine or torch, or from its arm in the config.

    All starts of a run count, because a run that was resumed with other code was made with both.
    """
    runs = [run for run in runs if run.state in OUTCOMES]
    lines = []
    for name in ("code", "engine", "torch"):
        lines += _unlike_most(runs, name)
    by_arm = defaultdict(list)
    for run in runs:
        if run.config is not None:
            by_arm[run.arm].append(run)
    for first, *others in by_arm.values():
        for run in others:
            changes = config_differences(first, run)
            lines += [
                f"arm {run.arm}, seed {run.seed}: {key} is {new}, but {old} with seed {first.seed}"
                for key, (old, new) in changes.items()
            ]
    return lines


def _unlike_most(runs: Sequence[Run], name: str) -> list[str]:
    found = {(run.arm, run.seed): dict.fromkeys(getattr(start, name) for start in run.starts) for run in runs}
    counts = Counter(value for values in found.values() for value in values)
    if len(counts) < 2:
        return []
    usual = counts.most_common(1)[0][0]
    return [
        f"arm {arm}, seed {seed}: {name} is {', then '.join(values)}, but {usual} in most runs"
        for (arm, seed), values in found.items()
        if values and list(values) != [usual]
    ]


def short_keys(results: Iterable[ArmResult], keys: Iterable[str]) -> dict[str, str]:
    """Full key -> its shortest ending that no other key in `keys` shares, for the keys in which arms differ."""
    ends = Counter(end for key in set(keys) for end in _ends(key))
    changed = dict.fromkeys(key for result in results for key in result.changes)
    return {key: next(end for end in _ends(key) if ends[end] == 1) for key in changed}


def _ends(key: str) -> list[str]:
    """The endings of a key, shortest first: "A.B.C" gives "C", "B.C", "A.B.C"."""
    parts = key.split(".")
    return [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]


def _changes(baseline: Sequence[Run], runs: Sequence[Run]) -> dict[str, tuple[Any, Any]]:
    """Differences between the first config of each arm; `differing_runs` checks that the seeds of an arm agree."""
    old, new = (next((run for run in group if run.config is not None), None) for group in (baseline, runs))
    if old is None or new is None:
        return {}
    changes = config_differences(old, new)
    of_model = set(filter(is_read_by_models_only, changes))
    read = _keys_read(new) if of_model else None
    return {key: pair for key, pair in changes.items() if read is None or key not in of_model or key in read}


def _keys_read(run: Run) -> set[str] | None:
    """Keys that the model of a run reads; None if this version of the package cannot build it."""
    try:
        return keys_read_by_model(load_config(str(run.folder / "config.yaml"), datasets=False))
    except Exception as error:  # any exception: the run may have been made by other code
        logger.warning(
            "Arm %s: its config differences are listed in full, because its model cannot be built here: %s",
            run.arm, error,
        )  # fmt: skip
        return None


def config_differences(old: Run, new: Run) -> dict[str, tuple[Any, Any]]:
    """Full key -> (old, new), for the keys in which the configs of two runs differ, without seed and output folder.

    Each engine has keys that the other one lacks. Between runs of two engines, they are left out.
    """
    same_engine = {start.engine for start in old.starts[-1:]} == {start.engine for start in new.starts[-1:]}
    keys = dict.fromkeys([*old.config, *new.config])
    if not same_engine:
        keys = [key for key in keys if key in old.config and key in new.config]
    pairs = {key: (old.config.get(key, ABSENT), new.config.get(key, ABSENT)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1] and key not in _KEYS_OF_A_RUN}

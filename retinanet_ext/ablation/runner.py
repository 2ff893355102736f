"""Runs the arms of a study; runs that are already finished are kept."""

import fcntl
import json
import logging
import os
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from retinanet_ext.config.yaml_files import flat_items, read_config_file
from retinanet_ext.machine.atomic_file import write_atomically
from retinanet_ext.machine.devices import check_device

from .jobs import Job
from .local_jobs import local_runner
from .status import DIVERGED, DONE, LOCK_FILE, RUNNING, STOPPED, Status, read_status
from .study import STUDY_FILE, Arm, Study, arm_config, run_folder, study_from_dict, study_to_dict
from .unread_keys import check_overrides_are_read

_REASON_WIDTH = 200  # characters in the log; status.json has the whole reason
# Environment variables with these prefixes are passed on to processes on other machines.
_ENVIRONMENT_PREFIXES = ("RETINANET_EXT_", "DETECTRON2_", "PYTHONPATH")

logger = logging.getLogger(__name__)

Results = dict[tuple[str, int], Status]
"""(arm, seed) -> status."""


def run_study(study: Study, output_dir: str | Path, **options) -> Results:
    """Run every arm with every seed, each run in its own folder and process; all arms of a seed before the next seed.

    Finished runs are not repeated, interrupted runs resume from their last checkpoint, and failed runs are tried again.
    A run that diverges or fails, even by a crash of its process, is recorded and the study goes on. A KeyboardInterrupt
    stops the runs; a further call resumes them.

    Args:
        study, output_dir, options: see `prepare_study`.

    Returns:
        The status of every run.

    Raises:
        As `prepare_study`, before anything runs.
    """
    with prepare_study(study, output_dir, **options) as prepared:
        return prepared.run()


@dataclass(frozen=True)
class PreparedStudy:
    """A study that has passed all checks.

    Args:
        todo: the runs still to do, in order.
        results: the status of all other runs.
        start: does the jobs and reports each job that has ended, see `local_runner`.
    """

    study: Study
    todo: list[Job]
    results: Results
    start: Callable[[list[Job], Callable[[Job, Status], None]], None]

    def run(self) -> Results:
        """See `run_study`."""
        self.start(self.todo, self._record)
        return {(arm.name, seed): self.results[arm.name, seed] for seed in self.study.seeds for arm in self.study.arms}

    def _record(self, job: Job, status: Status) -> None:
        self.results[job.arm, job.seed] = status
        outcome = f"{job.metric} {_show(status.metrics[job.metric])}" if status.state == DONE else status.reason
        logger.info(
            "[%d/%d] %s, seed %d: %s after %.0f s: %s",
            len(self.results), len(self.study.arms) * len(self.study.seeds),
            job.arm, job.seed, status.state, status.seconds, textwrap.shorten(outcome, _REASON_WIDTH),
        )  # fmt: skip


@contextmanager
def prepare_study(
    study: Study,
    output_dir: str | Path,
    *,
    jobs: int | None = None,
    ray_address: str | None = None,
    retry: bool = False,
) -> Iterator[PreparedStudy]:
    """Make all checks that are possible before a run. Within the context, the output folder is locked for this study.

    Args:
        study: with the seeds and overrides to use, see `with_changes`.
        output_dir: gets ``study.json`` and a folder ``ARM/seed_S`` for each run.
        jobs: runs at a time on this machine; None: one for each GPU, or one on a CPU. Each run gets its own GPU, while
            there are enough, or its share of the CPU cores.
        ray_address: run on this Ray cluster ("auto", "local", HOST:PORT) instead of this machine, as many runs at a
            time as it has room for. Its machines must see the same folders.
        retry: also repeat runs that diverged.

    Raises:
        ModuleNotFoundError: ``ray_address`` is given, but Ray is not installed.
        OSError: another process runs a study in that folder.
        KeyError, TypeError, ValueError: a config cannot be run; no code reads an override; or the folder holds another
            study, or a run with another config.
    """
    output_dir = Path(output_dir).absolute()
    with _locked(output_dir) as lock:
        if ray_address is None:
            check_device(arm_config(study, study.arms[0], datasets=False).MODEL.DEVICE)
            start = local_runner(jobs, keep_open=(lock,))
        else:
            from .ray_jobs import ray_runner  # needs an optional package

            start = ray_runner(ray_address)
        check_overrides_are_read(study)
        todo, results = _plan(study, output_dir, retry)
        _write_study(study, output_dir)
        total = len(todo) + len(results)
        logger.info("%s: %d runs, %d already finished; results in %s", study.name, total, len(results), output_dir)
        yield PreparedStudy(study, todo, results, start)


def _show(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _plan(study: Study, output_dir: Path, retry: bool) -> tuple[list[Job], Results]:
    """The jobs still to do, in order, and the results that are already there."""
    jobs, results = [], {}
    for seed in study.seeds:
        for arm in study.arms:
            job = _job(study, arm, seed, run_folder(output_dir, arm.name, seed))
            _refuse_other_config(job)
            status = read_status(job.folder)
            if status is not None and (status.state == DONE or (status.state == DIVERGED and not retry)):
                results[arm.name, seed] = status
            else:
                jobs.append(job)
                if status is not None and status.state in (RUNNING, STOPPED):
                    logger.info("%s, seed %d was interrupted; it resumes from its last checkpoint", arm.name, seed)
    return jobs, results


def _job(study: Study, arm: Arm, seed: int, folder: Path) -> Job:
    cfg = arm_config(study, arm, ["SEED", str(seed)])
    cfg.OUTPUT_DIR = str(folder)  # not as an override, which would parse a path that looks like a number or a list
    return Job(
        arm=arm.name,
        seed=seed,
        folder=folder,
        config=cfg.dump(),
        metric=study.metric,
        on_gpu=cfg.MODEL.DEVICE.startswith("cuda"),
        working_directory=Path.cwd(),
        environment={key: value for key, value in os.environ.items() if key.startswith(_ENVIRONMENT_PREFIXES)},
    )


def _refuse_other_config(job: Job) -> None:
    path = job.folder / "config.yaml"
    if not path.exists():
        return
    found, wanted = dict(flat_items(read_config_file(str(path)))), dict(flat_items(yaml.safe_load(job.config)))
    # OUTPUT_DIR may differ, because a folder may have been moved.
    keys = [key for key in {**found, **wanted} if key != "OUTPUT_DIR" and found.get(key) != wanted.get(key)]
    if keys:
        lines = "\n".join(f"  {key}: {found.get(key)!r} -> {wanted.get(key)!r}" for key in keys)
        raise ValueError(
            f"{path} belongs to a run with another config (in the folder -> asked for):\n{lines}\n"
            "Choose another output folder, or remove the folder of the run."
        )


def _write_study(study: Study, output_dir: Path) -> None:
    path = output_dir / STUDY_FILE
    if path.exists():
        earlier = study_from_dict(json.loads(path.read_text()))
        if earlier.name != study.name:
            raise ValueError(
                f"{output_dir} holds the study {earlier.name!r}, not {study.name!r}; choose another output folder"
            )
        study = _joined(earlier, study)
    write_atomically(path, json.dumps(study_to_dict(study), indent=2) + "\n")


def _joined(earlier: Study, study: Study) -> Study:
    """The study with the seeds and the arms of earlier calls too: a report covers all runs in the folder."""
    names = [arm.name for arm in study.arms]
    others = tuple(arm for arm in earlier.arms if arm.name not in names)
    return replace(
        study,
        seeds=tuple(sorted({*earlier.seeds, *study.seeds})),
        arms=study.arms + others,
        baseline=earlier.baseline if others else study.baseline,
    )


@contextmanager
def _locked(output_dir: Path) -> Iterator[int]:
    """Lock the folder against other studies. Runs inherit the lock, because a run can outlive a killed study."""
    output_dir.mkdir(parents=True, exist_ok=True)
    with open(output_dir / LOCK_FILE, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                f"{output_dir} is in use: another study runs there, or a run whose study was killed. Wait, or end that "
                f"process (`fuser {output_dir / LOCK_FILE}` names it)."
            ) from None
        yield file.fileno()

"""The sections of a run's report on its course: losses, learning rate, metrics during training, speed."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np

from retinanet_ext.report.document import Block, Bullets, Facts, Figure, Heading, Paragraph
from retinanet_ext.report.formats import duration
from retinanet_ext.report.training_plots import Panel, draw_history

from .run_folder import RunFolder

_MAX_PANELS = 8
# Of an evaluation, the metrics that are drawn over the iterations.
_DRAWN = ("AP", "AP50", "accuracy")
# Logged values that have a place of their own, or say nothing new.
_NOT_OTHERS = ("lr", "time", "data_time", "rank_data_time", "eta_seconds", "iteration")


def course_sections(run: RunFolder) -> list[Block]:
    return [*_training(run), *_speed(run)]


def _training(run: RunFolder) -> list[Block]:
    history = run.history
    if not run.is_trained:
        text = "metrics.json has no training step: this run evaluated only, or ended before its first logged step."
        return [Heading("Training"), Paragraph(text)]
    blocks: list[Block] = [Heading("Training"), Paragraph(_how_far(run))]
    losses = history.losses()
    panels = [Panel(name, history.series[name], floor=0.0) for name in losses[:_MAX_PANELS]]
    if panels:
        caption = "Losses, each a median over the last 20 iterations"
        blocks.append(Figure("losses.svg", caption + _resume_note(run), draw_history(panels, run.resumes)))
    if "lr" in history.series:
        panel = Panel("learning rate", history.series["lr"], floor=0.0)
        blocks.append(Figure("learning_rate.svg", "Learning rate", draw_history([panel], run.resumes)))
    metrics = [name for name in history.evaluations() if name.rpartition("/")[2] in _DRAWN]
    metrics = [name for name in metrics if len(history.series[name]) > 1][:_MAX_PANELS]
    if metrics:
        panels = [Panel(name, history.series[name]) for name in metrics]
        caption = "Metrics of the evaluations during training, 0 to 100"
        blocks.append(Figure("progress.svg", caption, draw_history(panels, run.resumes)))
    panels = [Panel(name, history.series[name]) for name in _others(run)[:_MAX_PANELS]]
    if panels:
        caption = "What else was logged in training"
        blocks.append(Figure("others.svg", caption, draw_history(panels, run.resumes)))
    notes = [
        f"{name} was not finite at {len(steps)} logged iteration(s), first at {steps[0]}"
        for name, steps in history.not_finite.items()
        if name in ("lr", *losses) or name.endswith("loss")
    ]
    if len(losses) > _MAX_PANELS:
        notes.append(f"Not drawn: {', '.join(losses[_MAX_PANELS:])}")
    return [*blocks, *([Bullets(notes)] if notes else [])]


def _others(run: RunFolder) -> list[str]:
    """Names of logged values that are neither losses, metrics, learning rate nor times."""
    history = run.history
    known = {*history.losses(), *history.evaluations(), *_NOT_OTHERS}
    return [name for name, points in history.series.items() if name not in known and len(points) > 1]


def _how_far(run: RunFolder) -> str:
    done, planned = run.history.last_iteration + 1, run.max_iter
    of = f" of {planned:,}" if planned else ""
    text = f"{done:,}{of} iterations are logged."
    if not run.is_finished:
        text += " The run has not ended: it still trains, or it was stopped or killed; --resume goes on."
    if run.resumes:
        text += f" It was resumed at iteration {', '.join(f'{iteration:,}' for iteration in run.resumes)}."
    return text


def _resume_note(run: RunFolder) -> str:
    return "; dotted lines: the run was resumed" if run.resumes else ""


def _speed(run: RunFolder) -> list[Block]:
    series = run.history.series
    seconds = [value for _, value in series.get("time", ())]
    facts = []
    images = (run.config or {}).get("SOLVER.IMS_PER_BATCH")
    if seconds:
        median = float(np.median(seconds))
        if images:
            rate = f"{images / max(median, 1e-9):,.1f} images/s at {images} images a step, all processes together"
            facts.append(("Training", rate))
        facts.append(
            ("A step", f"median {median:.3f} s, 95 % of the logged ones below {np.quantile(seconds, 0.95):.3f} s")
        )
        loading = [value for _, value in series.get("data_time", ())]
        if loading:
            share = data_share(run)
            facts.append(("Waiting for data", f"median {np.median(loading):.3f} s a step, {share:.0%} of its time"))
    if run.log.peak_memory_mb is not None:
        where = "of the GPU" if _on_gpu(run) else "of the process"
        facts.append(("Peak memory", f"{run.log.peak_memory_mb:,} MB {where}, as logged"))
    facts += _wall_time(run)
    if not facts:
        return []
    blocks: list[Block] = [Heading("Speed"), Facts(facts)]
    panels = [Panel(f"{name}, s", series[name], 0.0) for name in ("time", "data_time") if len(series.get(name, ())) > 1]
    if panels:
        caption = "Seconds of a step, and those of it spent waiting for data"
        blocks.append(Figure("speed.svg", caption, draw_history(panels, run.resumes)))
    return blocks


def data_share(run: RunFolder) -> float | None:
    """Share of a step's time that is spent waiting for data, medians; None: not logged."""
    times = dict(run.history.series.get("time", ()))
    shares = [
        value / times[iteration]
        for iteration, value in run.history.series.get("data_time", ())
        if times.get(iteration, 0) > 0
    ]
    return float(np.median(shares)) if shares else None


def _on_gpu(run: RunFolder) -> bool:
    return str((run.config or {}).get("MODEL.DEVICE", "")).startswith("cuda")


def _wall_time(run: RunFolder) -> Sequence[tuple[str, str]]:
    starts = [run.record, *run.record.get("earlier_starts", [])] if run.record else []
    times = [start.get("started") for start in starts if isinstance(start, dict)]
    times = [datetime.fromisoformat(time) for time in times if isinstance(time, str)]
    metrics = run.path / "metrics.json"
    if not times or not metrics.is_file():
        return []
    latest = max(times)
    seconds = metrics.stat().st_mtime - latest.timestamp()
    count = f"; started {len(times)} times, first {min(times):%Y-%m-%d %H:%M} UTC" if len(times) > 1 else ""
    return [("Time of the last start", f"{duration(max(0.0, seconds))} until metrics.json was last written{count}")]

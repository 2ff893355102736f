"""Writes the output folder of a study that was never run."""

import json
from pathlib import Path

import yaml

from retinanet_ext.ablation.study import Arm, Study, study_to_dict


def make_study(arms, seeds=(0, 1, 2), baseline=None, **fields) -> Study:
    """`arms`: name -> the paper's values. The first is the baseline unless `baseline` names another."""
    content = {
        "name": "fake", "title": "Fake study", "source": "a paper, table 1", "note": "",
        "base": Path("configs/base.yaml"), "metric": "bbox/AP", "overrides": {}, **fields,
    }  # fmt: skip
    arms = tuple(Arm(name, {}, dict(paper), "") for name, paper in arms.items())
    return Study(**content, seeds=tuple(seeds), baseline=baseline or arms[0].name, arms=arms)


def write_study(folder, study: Study, metrics, gammas=None, **fields) -> Path:
    """Write ``study.json`` and a finished run for each number of `metrics`.

    Args:
        metrics: arm -> for each seed its AP, None for a missing run, or a text, the reason why the run diverged.
        gammas: arm -> FOCAL_LOSS_GAMMA in its ``config.yaml``.
        fields: for `write_run`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(study_to_dict(study)))
    for arm, values in metrics.items():
        for seed, value in zip(study.seeds, values, strict=True):
            gamma = (gammas or {}).get(arm, 2.0)
            if isinstance(value, str):
                write_run(folder, arm, seed, None, state="diverged", reason=value, gamma=gamma, **fields)
            elif value is not None:
                write_run(folder, arm, seed, value, gamma=gamma, **fields)
    return folder


def write_run(
    folder, arm, seed, ap, *, state="done", reason=None, gamma=2.0, commit="c" * 40, diff="", engine="lite",
    torch="2.15.0", curve=(), metrics=None, processor=None, extra=None,
) -> Path:  # fmt: skip
    run = folder / arm / f"seed_{seed}"
    run.mkdir(parents=True, exist_ok=True)
    metrics = metrics or {"bbox/AP": ap, "bbox/AP50": ap and ap + 20, "bbox/AP75": ap and ap + 1}
    status = {
        "state": state, "reason": reason, "seconds": 60.0 + seed, "iterations": 100,
        "metrics": metrics if state == "done" else {},
    }  # fmt: skip
    (run / "status.json").write_text(json.dumps(status))
    record = {
        "started": f"2026-01-0{seed % 9 + 1}T12:00:00+00:00", "command": ["python"], "engine": engine, "seed": seed,
        "versions": {"torch": torch, "retinanet_ext": "0.1.0"}, "machine": {"platform": "Linux", "device": "CPU"},
        "git": {"commit": commit, "diff": diff}, "earlier_starts": [],
    }  # fmt: skip
    if processor:
        record["machine"]["processor"] = processor
    (run / "run.json").write_text(json.dumps(record))
    config = {
        "MODEL": {
            "META_ARCHITECTURE": "FocalRetinaNet",
            "RETINANET": {"FOCAL_LOSS_GAMMA": gamma, "CLS_LOSS": {"NAME": "focal"}, "HEAD": {"NAME": "H"}},
        },
        "OUTPUT_DIR": str(run), "SEED": seed,
    }  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump({**config, **(extra or {})}))
    lines = curve or [{"iteration": 19, "total_loss": 2.0}, {"iteration": 39, "total_loss": 1.0}]
    (run / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run

"""Runs through Ray, on a cluster on this machine."""

from pathlib import Path

import pytest

from retinanet_ext.ablation.jobs import Job
from retinanet_ext.ablation.ray_jobs import ray_runner
from retinanet_ext.ablation.status import read_status
from tests.builders import shapes_config

ray = pytest.importorskip("ray", reason="Ray is not installed")


def test_runs_on_a_cluster_end_as_those_on_this_machine(shapes, tmp_path):
    jobs = []
    for seed, metric in enumerate(("bbox/AP", "bbox/Recall")):
        folder = tmp_path / f"seed_{seed}"
        cfg = shapes_config(shapes, folder, "SOLVER.MAX_ITER", "1")
        jobs.append(Job("arm", seed, folder, cfg.dump(), metric, False, Path.cwd(), {}))
    ended = {}
    try:
        ray_runner("local")(jobs, lambda job, status: ended.update({job.seed: status}))
    finally:
        ray.shutdown()
    assert ended[0].state == "done" and "bbox/AP" in ended[0].metrics
    assert ended[1].state == "failed" and "METRIC 'bbox/Recall' is not among" in ended[1].reason
    assert all(read_status(job.folder) == ended[job.seed] for job in jobs)

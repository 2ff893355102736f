"""Two processes that share the images give what one gives, and only the main one has a result."""

import json
import os
import subprocess
import sys

import pytest

from tests.builders import free_port
from tests.conftest import REPO_ROOT
from tests.embedding.verification_worker import IMAGES, PEOPLE, evaluate


def test_two_processes_verify_as_one_does(tmp_path):
    command = [sys.executable, "-m", "tests.embedding.verification_worker"]
    port, output = str(free_port()), str(tmp_path / "found")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    jobs = [
        subprocess.Popen([*command, str(rank), port, output], cwd=REPO_ROOT, env=environment) for rank in range(2)
    ]  # fmt: skip
    assert [job.wait(timeout=120) for job in jobs] == [0, 0]
    found, other = (json.loads((tmp_path / f"found.{rank}.json").read_text()) for rank in range(2))
    assert other == {}
    assert found["verification"] == pytest.approx(evaluate(range(PEOPLE * IMAGES))["verification"], nan_ok=True)
    assert found["verification"]["num_images"] == PEOPLE * IMAGES

"""Runs a worker of the tests in two processes of one job."""

import subprocess
import sys

from tests.conftest import REPO_ROOT


def run_two(module: str, *arguments: object) -> None:
    """Run ``python -m module RANK ARGUMENTS...`` for the ranks 0 and 1 at once; both must succeed.

    Raises:
        AssertionError: a process failed.
        subprocess.TimeoutExpired: a process hangs.
    """
    command = [sys.executable, "-m", module]
    words = [str(argument) for argument in arguments]
    processes = [subprocess.Popen([*command, str(rank), *words], cwd=REPO_ROOT) for rank in range(2)]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()

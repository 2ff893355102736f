"""Several processes: one that fails or is killed ends all, with its name and reason, and none is left."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import REPO_ROOT
from tests.faults.runs import assert_nothing_left, processes_of

# What each of two processes does; the last line is the moment that a test waits for.
WORK = """
import sys, time
from retinanet_ext.d2 import comm
from retinanet_ext.training import stops

def work(args):
    from torch.utils.data import DataLoader
    mode, rank = args.config_file, comm.get_rank()
    loader = iter(DataLoader(range(10**6), num_workers=1))
    next(loader)
    print(f"ready {rank}", flush=True)
    if mode == "raises" and rank == 1:
        raise ValueError("the file x.json has no images")
    if mode in ("raises", "waits"):
        comm.synchronize() if rank == 0 else time.sleep(60)
        return
    with stops.polled():  # as training does: a step, then all agree
        for _ in range(600):
            time.sleep(0.1)
            reasons = [reason for reason in comm.all_gather(stops.stop_wanted()) if reason]
            if reasons:
                raise stops.StopRequested(reasons[0], f"stopped by {reasons[0]}: saved")
"""
START = """
import argparse, sys
from retinanet_ext.training import launch as module
from retinanet_ext.training.arguments import add_train_arguments
from retinanet_ext.training.command import run_command
from {module} import work
module.main = work
parser = argparse.ArgumentParser()
add_train_arguments(parser)
if __name__ == "__main__":
    sys.exit(run_command(parser.parse_args()))
"""


class Job:
    """A command of two processes, started by itself or by torchrun."""

    def __init__(self, folder, mode, launcher="own"):
        (folder / "fault_work.py").write_text(WORK)
        script = folder / "start.py"
        script.write_text(START.format(module="fault_work"))
        start = [sys.executable, str(script), "--num-gpus", "2"]
        if launcher == "torchrun":
            start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
            start += [str(script)]
        paths = os.pathsep.join([str(folder), str(REPO_ROOT)])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        with open(self.out, "w") as out, open(self.err, "w") as err:
            self.process = subprocess.Popen(
                [*start, "--config-file", mode], stdout=out, stderr=err, env=environment, cwd=folder,
                start_new_session=True,
            )  # fmt: skip

    def wait(self):
        deadline = time.monotonic() + 120
        while not all(f"ready {rank}" in self.out.read_text() for rank in (0, 1)):
            assert self.process.poll() is None and time.monotonic() < deadline, self.err.read_text()
            time.sleep(0.05)
        return self

    def ranks(self):
        """Process ids of the two ranks."""
        parents = {}
        for pid in processes_of(self.process.pid):
            with open(f"/proc/{pid}/stat") as file:
                parents[pid] = int(file.read().rpartition(")")[2].split()[1])
        # A rank has a worker; so has the launcher, which is the leader.
        return sorted({parent for parent in parents.values() if parent in parents and parent != self.process.pid})

    def end(self, seconds=30):
        """Exit code and messages; the end must come in this time, and leave nothing."""
        try:
            code = self.process.wait(seconds)
            assert_nothing_left(self.process.pid, seconds)
            return code, self.err.read_text()
        finally:
            for pid in processes_of(self.process.pid):
                os.kill(pid, signal.SIGKILL)


def make(folder, number):
    path = folder / str(number)
    path.mkdir()
    return path


def test_a_rank_that_raises_is_named_once(tmp_path, times):
    for number in range(times(1)):
        code, err = Job(make(tmp_path, number), "raises").wait().end()
        assert code == 2 and err.startswith("error: rank 1: the file x.json has no images"), err
        assert err.count("x.json") == 1 and "Traceback (" not in err


def test_a_rank_that_is_killed_while_the_other_waits_for_it(tmp_path, times):
    for number in range(times(1)):
        job = Job(make(tmp_path, number), "waits").wait()
        os.kill(job.ranks()[number % 2], signal.SIGKILL)
        code, err = job.end()
        assert code == 1 and err.startswith("error: rank ") and "was killed (SIGKILL)" in err, err
        assert "Traceback (" not in err


def test_a_launcher_that_is_killed_leaves_nothing(tmp_path, times):
    for number in range(times(1)):
        job = Job(make(tmp_path, number), "polls").wait()
        os.kill(job.process.pid, signal.SIGKILL)
        job.end(10)


@pytest.mark.parametrize("target", ["launcher", "one rank", "group"])
def test_a_stop_reaches_all_ranks(tmp_path, times, target):
    for number in range(times(1)):
        job = Job(make(tmp_path, number), "polls").wait()
        time.sleep(0.1 * (number % 5))
        name = "SIGINT" if target == "launcher" else "SIGTERM"
        sent = getattr(signal, name)
        if target == "group":
            os.killpg(job.process.pid, sent)
        else:
            os.kill(job.process.pid if target == "launcher" else job.ranks()[1], sent)
        code, err = job.end()
        # The launcher passes a stop on as SIGTERM.
        assert code == 75 and err == "stopped by SIGTERM: saved\n", err


def test_torchrun_names_a_rank_that_raises(tmp_path):
    code, err = Job(tmp_path, "raises", "torchrun").wait().end()
    assert code == 1 and err.count("error: rank 1: the file x.json has no images") == 1, err

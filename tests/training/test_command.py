"""What the training command says and returns."""

import logging
from argparse import Namespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from retinanet_ext.training import launch, run_errors, stops
from retinanet_ext.training.command import run_command


@pytest.fixture(autouse=True)
def _workers_of_other_tests(monkeypatch):
    """A command ends the workers of its process, and here that is the process of other tests, too."""
    monkeypatch.setattr(stops, "kill_workers", lambda: None)


def flags(**values):
    names = {"config_file": "", "resume": False, "eval_only": False, "num_gpus": 1, "num_machines": 1, "opts": []}
    return Namespace(**{**names, "machine_rank": 0, "dist_url": "auto", **values})


class Broken(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise ValueError("broken.png cannot be read.\nReplace the file")


def raise_in_a_worker():
    next(iter(DataLoader(Broken(), num_workers=1)))


def raise_it(error):
    def main(args):
        if not isinstance(error, BaseException):
            error()
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("SOLVER.X is 3; legal: 4"), 2, "error: SOLVER.X is 3; legal: 4\n"),
        (KeyError("no key X"), 2, "error: no key X\n"),
        (FileNotFoundError(2, "No such file", "a.yaml"), 2, "error: [Errno 2] No such file: 'a.yaml'\n"),
        (RuntimeError("out of paper"), 1, "error: RuntimeError: out of paper\n"),
        (AssertionError(), 1, "error: AssertionError\n"),
        (raise_in_a_worker, 2, "error: broken.png cannot be read.\nReplace the file\n"),
        (stops.StopRequested("SIGTERM"), 75, "stopped by SIGTERM before the first iteration: nothing had to be saved"),
        (stops.StopRequested("SIGINT", "all is saved"), 75, "all is saved\n"),
        (KeyboardInterrupt(), 130, "aborted by a second SIGINT"),
    ],
)
def test_one_message_and_an_exit_code(monkeypatch, capsys, error, code, said):
    monkeypatch.setattr(launch, "main", raise_it(error))
    assert run_command(flags()) == code
    err = capsys.readouterr().err
    assert err.startswith(said) and "Traceback" not in err


def test_the_traceback_is_in_the_log_and_only_there(monkeypatch, tmp_path, capsys):
    from retinanet_ext.d2 import setup_logger

    def main(args):
        setup_logger(str(tmp_path), 0, name="retinanet_ext")
        run_errors.begin_log(str(tmp_path), 0)
        run_errors.begin_work()
        try:
            raise ValueError("the cause")
        except ValueError:
            logging.getLogger("retinanet_ext").exception("Training stopped:")
            raise

    monkeypatch.setattr(launch, "main", main)
    assert run_command(flags()) == 1  # the run itself failed, not its input
    out, err = capsys.readouterr()
    assert err == f"error: the cause\nThe traceback is in {tmp_path}/log.txt\n"
    assert "Traceback" not in out
    log = (tmp_path / "log.txt").read_text()
    assert log.count("Traceback (most recent call last)") == 2 and 'raise ValueError("the cause")' in log


def test_a_variable_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setenv("RETINANET_EXT_TRACEBACK", "1")
    monkeypatch.setattr(launch, "main", raise_it(RuntimeError("out of paper")))
    assert run_command(flags()) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_exchange_that_hangs_names_the_ranks(monkeypatch):
    from retinanet_ext.training.processes import meeting

    class Hangs:
        def is_completed(self):
            return False

    store = torch.distributed.HashStore()
    store.set("exchange_cpu/2", b"1")
    monkeypatch.setattr(meeting, "_store", store)
    monkeypatch.setattr(meeting, "EXCHANGE_TIMEOUT", meeting.timedelta(seconds=0))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *args, **kwargs: Hangs())
    with pytest.raises(RuntimeError, match="rank 0: the first exchange on cpu hangs; ranks 1, 3 did not answer"):
        meeting.check_exchange(torch.device("cpu"))


def test_ranks_that_do_not_start_are_named(monkeypatch):
    from retinanet_ext.training.processes import meeting

    monkeypatch.setattr(meeting, "JOIN_TIMEOUT", meeting.timedelta(seconds=2))
    with pytest.raises(RuntimeError, match="rank 0: of 3 ranks, ranks 1, 2 have not started within 0:00:02"):
        meeting.meet("tcp://127.0.0.1:0", 0, 3)
    monkeypatch.setattr(meeting, "_store", None)

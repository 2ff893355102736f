import logging
import os
import re
import sys
from types import SimpleNamespace

import pytest

from retinanet_ext.d2 import EventStorage
from retinanet_ext.training.progress_line import FirstProgress, ProgressWriter


def run(writer, first, last):
    with EventStorage(first) as storage:
        for iteration in range(first, last):
            storage.iter = iteration
            storage.put_scalars(total_loss=1.5, time=0.5, lr=0.01)
        writer.write()


def test_a_quiet_line_where_there_is_no_terminal(caplog, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    writer = ProgressWriter(max_iter=100, images_per_batch=4, num_images=80)
    with caplog.at_level(logging.INFO, "retinanet_ext.training.progress_line"):
        run(writer, 0, 20)
    # 20 iterations of 4 images are one epoch of 80; 80 iterations at half a second are left.
    (line,) = {record.getMessage() for record in caplog.records}  # a set: two handlers may catch it
    fields = r"iteration 20/100, epoch 1.00, eta 0:00:40, 8.0 images/s, memory \d+ MB, total_loss 1.500, lr 1.00e-02"
    assert re.fullmatch(fields, line)


def test_a_bar_on_a_terminal_knows_the_time_left_after_a_resume(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    writer = ProgressWriter(max_iter=100, images_per_batch=4, num_images=80)
    run(writer, 90, 95)
    writer.close()
    shown = capsys.readouterr().err
    assert "95/100" in shown and "eta 0:00:02" in shown and "it/s" not in shown


def test_a_terminal_without_width_gets_lines(monkeypatch, caplog):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.fileno", lambda: 2, raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda descriptor: os.terminal_size((0, 0)))
    writer = ProgressWriter(max_iter=100, images_per_batch=4, num_images=80)
    with caplog.at_level(logging.INFO, "retinanet_ext.training.progress_line"):
        monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
        run(writer, 0, 20)
    assert "iteration 20/100" in caplog.text


@pytest.mark.parametrize("iteration", [100, 101])
def test_nothing_after_the_last_iteration(iteration, caplog):
    writer = ProgressWriter(max_iter=100, images_per_batch=4, num_images=None)
    with caplog.at_level(logging.INFO, "retinanet_ext.training.progress_line"), EventStorage(iteration):
        writer.write()
    assert not caplog.records


class TimerByHand:
    """Stands in for threading.Timer: the test calls ``function`` when it wants the time to be up."""

    def __init__(self, seconds, function):
        self.seconds, self.function, self.state = seconds, function, "new"

    def start(self):
        self.state = "running"

    def cancel(self):
        self.state = "cancelled"


def test_the_plan_and_the_time_of_the_first_iterations_are_said(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("threading.Timer", TimerByHand)
    hook = FirstProgress(images_per_batch=4, num_images=80, device="cpu")
    hook.trainer = SimpleNamespace(start_iter=10, max_iter=110, iter=10)
    with caplog.at_level(logging.INFO, "retinanet_ext.training.progress_line"):
        hook.before_train()
        assert hook._timer.seconds < 10
        for seconds, iteration in ((8, 10), (30, 14), (30, 30)):
            now[0] += seconds
            hook.trainer.iter = iteration
            hook._timer.function()
        hook.after_train()
    assert hook._timer.state == "cancelled"
    lines = list(dict.fromkeys(record.getMessage() for record in caplog.records))  # two handlers may catch a line
    assert lines == [
        "Training on cpu: 100 iterations of 4 images, 5.0 times each of 80.",
        "after 8 s: 0 of 100 iterations done, too few to tell how long the rest will take, because the first takes "
        "longest",
        # 4 iterations in 38 s, so 96 more take 912 s.
        "after 38 s: 4 of 100 iterations done, about 0:15:12 left, evaluations not counted",
        # From iteration 20 on the progress line reports.
    ]

"""Evaluation that overlaps with inference: the order of calls, errors, and the end of the thread."""

import threading
import traceback

import pytest
import torch

from retinanet_ext.d2 import COCOEvaluator
from retinanet_ext.training.overlapped_evaluation import BATCHES_AHEAD, OverlappedEvaluator


class Recorder:
    def __init__(self):
        self.seen = []
        self.threads = set()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.may_go_on.wait(timeout=60)
        assert not torch.is_grad_enabled()
        self.threads.add(threading.current_thread())
        if outputs == "broken":
            raise ValueError(f"cannot take in {inputs}")
        self.seen.append((inputs, outputs))

    def evaluate(self, *args):
        return {"seen": list(self.seen), "args": args}


@pytest.fixture
def recorder():
    return Recorder()


def test_batches_are_taken_in_by_one_other_thread_in_order(recorder):
    overlapped = OverlappedEvaluator(recorder)
    for _ in range(2):  # it can be used again
        overlapped.reset()
        for number in range(50):
            overlapped.process(number, -number)
        assert overlapped.evaluate("all") == {"seen": [(n, -n) for n in range(50)], "args": ("all",)}
    assert threading.current_thread() not in recorder.threads
    assert len(recorder.threads) == 2  # one thread for each evaluation
    assert not any(thread.is_alive() for thread in recorder.threads)


def test_the_model_does_not_wait_but_stays_few_batches_ahead(recorder):
    overlapped = OverlappedEvaluator(recorder)
    recorder.may_go_on.clear()
    for number in range(BATCHES_AHEAD):  # would not return if it waited
        overlapped.process(number, None)
    one_more = threading.Thread(target=overlapped.process, args=(BATCHES_AHEAD, None))
    one_more.start()
    one_more.join(timeout=0.2)
    assert one_more.is_alive() and not recorder.seen
    recorder.may_go_on.set()
    one_more.join(timeout=60)
    assert len(overlapped.evaluate()["seen"]) == BATCHES_AHEAD + 1


def test_errors_arrive_with_the_place_where_they_came_from(recorder):
    overlapped = OverlappedEvaluator(recorder)
    overlapped.process("first", None)
    overlapped.process("second", "broken")
    with pytest.raises(ValueError, match="cannot take in second") as caught:
        for number in range(BATCHES_AHEAD + 1):  # raised at the latest when no more batches may wait
            overlapped.process(number, None)
    assert 'raise ValueError(f"cannot take in {inputs}")' in "".join(traceback.format_tb(caught.tb))
    assert not any(thread.is_alive() for thread in recorder.threads)
    overlapped.reset()
    overlapped.process("last", "broken")
    with pytest.raises(ValueError, match="cannot take in last"):
        overlapped.evaluate()


def test_a_reset_gives_up_what_waits(recorder):
    overlapped = OverlappedEvaluator(recorder)
    overlapped.process("before", None)
    overlapped.reset()
    overlapped.process("after", None)
    assert overlapped.evaluate()["seen"] == [("after", None)]


def test_engines_take_it_for_one_evaluator(recorder):
    assert isinstance(OverlappedEvaluator(recorder), COCOEvaluator.__base__)
    assert COCOEvaluator.__base__.__name__ == "DatasetEvaluator"

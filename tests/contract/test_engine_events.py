"""Event storage and writers of the embedded engine, side by side with Detectron2's."""

import json
import logging
import re

import pytest

from retinanet_ext.lite import events as lite_events

REASON = "Detectron2 is not installed: nothing to compare with"
d2_events = pytest.importorskip("detectron2.utils.events", reason=REASON)

BOTH = [lite_events, d2_events]


def _play(storage):
    """Puts scalars of all kinds; yields after each iteration."""
    for iteration in range(storage.iter, storage.iter + 47):
        storage.put_scalar("total_loss", (iteration * 7919) % 31 / 7)
        storage.put_scalars(lr=0.1 / (iteration + 1), smoothing_hint=False)
        if iteration % 3 == 0:
            storage.put_scalar("head/sparse", iteration)
        if iteration == 30:
            storage.put_scalar("bbox/AP", 12.5, smoothing_hint=False)
            storage.put_scalar("early", 1, cur_iter=12)
        yield iteration
        storage.step()


@pytest.mark.parametrize("start", [0, 1000])
@pytest.mark.parametrize("window", [1, 5, 20])
def test_latest_values(start, window):
    def values(events):
        with events.EventStorage(start) as storage:
            return [
                {name: (float(value), at) for name, (value, at) in storage.latest_with_smoothing_hint(window).items()}
                for _ in _play(storage)
            ]

    ours, theirs = (values(events) for events in BOTH)
    assert ours == theirs


def test_storage_attributes():
    def facts(events):
        with events.EventStorage(3) as storage:
            for _ in _play(storage):
                pass
            return [
                storage.iter,
                storage.iteration,
                storage.latest(),
                {name: history.values() for name, history in storage.histories().items()},
                storage.count_samples("head/sparse", 10),
                events.has_event_storage(),
                events.get_event_storage() is storage,
            ]

    assert facts(lite_events) == facts(d2_events)


@pytest.mark.parametrize("events", BOTH, ids=["lite", "detectron2"])
def test_asking_outside_a_block_raises_the_same(events):
    assert not events.has_event_storage()
    with pytest.raises(AssertionError):
        events.get_event_storage()


@pytest.mark.parametrize("period", [1, 10, 20])
def test_metrics_file(tmp_path, period):
    def rows(events):
        path = tmp_path / f"{events.__name__}.json"
        with events.EventStorage(0) as storage:
            writer = events.JSONWriter(str(path))
            for iteration in _play(storage):
                if (iteration + 1) % period == 0:
                    writer.write()
            writer.write()
            writer.close()
        return [json.loads(line) for line in path.read_text().splitlines()]

    ours, theirs = (rows(events) for events in BOTH)
    # If Detectron2 writes several iterations at once, it orders them by scalar name.
    assert ours == sorted(theirs, key=lambda row: row["iteration"])


@pytest.mark.parametrize("start", [0, 30])
def test_time_left(start):
    def eta(events):
        with events.EventStorage(start) as storage:
            printer = events.CommonMetricPrinter(max_iter=200)
            for second in (3.0, 1.0, 2.0):
                storage.put_scalars(time=second, total_loss=1.0)
                printer.write()
                storage.step()
            return storage.history("eta_seconds").values()

    assert eta(lite_events) == eta(d2_events)


def test_scalars_in_the_log_line(caplog):
    def names(events):
        caplog.clear()
        with events.EventStorage(9) as storage, caplog.at_level("INFO", logger=events.__name__):
            storage.put_scalars(total_loss=1.0, val_loss=2.0, accuracy=0.5)
            storage.put_scalar("[metric]recall", 0.25)
            storage.put_scalar("bbox/AP", 30.0, smoothing_hint=False)
            printer = events.CommonMetricPrinter(max_iter=200)
            logger, printer.logger = printer.logger, logging.getLogger("elsewhere")
            with caplog.at_level("INFO", logger="elsewhere"):
                printer.write()
        assert logger.name == events.__name__ and caplog.records[-1].name == "elsewhere"
        return re.findall(r"(\S+): [\d.]+", caplog.messages[-1])

    assert names(lite_events) == names(d2_events) == ["iter", "total_loss", "val_loss", "[metric]recall"]


def test_time_left_without_times(monkeypatch, caplog):
    """A loop that puts no times: 3 seconds for the 10 iterations between two lines, 80 iterations left."""

    def lines(events):
        caplog.clear()
        now = iter([100.0, 103.0, 103.0, 103.0, 103.0])
        with monkeypatch.context() as patched, caplog.at_level("INFO", logger=events.__name__):
            patched.setattr(events.time, "perf_counter", lambda: next(now))
            with events.EventStorage() as storage:
                printer = events.CommonMetricPrinter(max_iter=100)
                for storage.iter in (9, 19):
                    storage.put_scalars(total_loss=1.0)
                    printer.write()
                assert "eta_seconds" not in storage.histories()
        return [re.findall(r"eta: [\d:]+", message) for message in caplog.messages]

    assert lines(lite_events) == lines(d2_events) == [[], ["eta: 0:00:24"]]

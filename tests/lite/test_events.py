import json
import math

import pytest
import torch

from retinanet_ext.lite.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_innermost_storage_is_the_active_one():
    with EventStorage(0) as outer:
        with EventStorage(5) as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is outer
    assert not has_event_storage()


def test_no_storage_outside_a_block():
    with pytest.raises(AssertionError, match="with EventStorage"):
        get_event_storage()


def test_storage_is_closed_by_an_error():
    with pytest.raises(RuntimeError), EventStorage(0):
        raise RuntimeError
    assert not has_event_storage()


def test_noisy_scalars_are_the_median_of_the_window_and_others_the_latest():
    with EventStorage(10) as storage:
        for value in (1.0, 2.0, 30.0, 4.0, 5.0):
            storage.put_scalars(loss=value)
            storage.put_scalar("lr", value, smoothing_hint=False)
            storage.step()
    # A window of 3 holds 30, 4, 5 of iterations 12, 13, 14, with median 5; the median of all five values is 4.
    assert storage.latest_with_smoothing_hint(3) == {"loss": (5.0, 14), "lr": (5.0, 14)}
    assert storage.latest_with_smoothing_hint(20)["loss"] == (4.0, 14)


def test_the_window_counts_iterations_not_values():
    storage = EventStorage(0)
    for iteration in (0, 1, 50):
        storage.put_scalar("sparse", iteration, cur_iter=iteration)
    assert storage.count_samples("sparse", 20) == 1


def test_a_scalar_keeps_its_smoothing_hint():
    storage = EventStorage(0)
    storage.put_scalar("AP", 1.0, smoothing_hint=False)
    with pytest.raises(ValueError, match="'AP'.*smoothing_hint"):
        storage.put_scalar("AP", 1.0)


def test_history_of_an_unknown_scalar_names_the_known_ones():
    storage = EventStorage(0)
    storage.put_scalar("lr", 0.1)
    with pytest.raises(KeyError, match="'loss'.*lr"):
        storage.history("loss")


def test_json_lines_hold_only_what_is_new(tmp_path):
    path = tmp_path / "metrics.json"
    with EventStorage(0) as storage:
        writer = JSONWriter(str(path))
        storage.put_scalars(a=1.0, b=torch.tensor(2.0))
        writer.write()
        writer.write()
        storage.step()
        storage.put_scalar("a", 3.0)
        writer.write()
        writer.close()
    # The 2.0 in the second row is the median of 1 and 3.
    assert _rows(path) == [{"a": 1.0, "b": 2.0, "iteration": 0}, {"a": 2.0, "iteration": 1}]


def test_json_rows_are_in_the_order_of_iterations_and_keys(tmp_path):
    path = tmp_path / "metrics.json"
    with EventStorage(9) as storage:
        writer = JSONWriter(str(path))
        storage.put_scalar("z", 1.0)
        storage.put_scalar("bbox/AP", 2.0, cur_iter=4)
        storage.put_scalar("a", 1.0)
        writer.write()
        writer.close()
    assert path.read_text() == '{"bbox/AP": 2.0, "iteration": 4}\n{"a": 1.0, "iteration": 9, "z": 1.0}\n'


def test_undefined_values_are_null_in_json(tmp_path):
    path = tmp_path / "metrics.json"
    with EventStorage(0) as storage:
        writer = JSONWriter(str(path))
        storage.put_scalars(nan=math.nan, inf=math.inf)
        writer.write()
        writer.close()
    assert _rows(path) == [{"inf": None, "nan": None, "iteration": 0}]


def test_a_resumed_run_appends(tmp_path):
    path = tmp_path / "metrics.json"
    for start in (0, 1):
        with EventStorage(start) as storage:
            writer = JSONWriter(str(path))
            storage.put_scalar("a", start)
            writer.write()
            writer.close()
    assert [row["iteration"] for row in _rows(path)] == [0, 1]


def test_tensorboard_gets_scalars_and_images_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventStorage(7) as storage:
        writer = TensorboardXWriter(str(tmp_path))
        storage.put_scalar("loss", 0.5)
        storage.put_image("picture", torch.zeros(3, 4, 4))
        writer.write()
        writer.write()
        writer.close()
    written = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in written.Scalars("loss")] == [(7, 0.5)]
    assert [event.step for event in written.Images("picture")] == [7]


def test_printer_says_losses_rate_and_time_left(caplog):
    with EventStorage(9) as storage, caplog.at_level("INFO"):
        storage.put_scalars(total_loss=1.25, time=2.0, data_time=0.5)
        storage.put_scalar("lr", 0.01, smoothing_hint=False)
        CommonMetricPrinter(max_iter=100).write()
    # 90 iterations of 2 seconds are left.
    assert storage.latest()["eta_seconds"] == (180.0, 9)
    line = caplog.messages[-1]
    for part in (
        "eta: 0:03:00",
        "iter: 9",
        "total_loss: 1.25",
        "time: 2.0000",
        "data_time: 0.5000",
        "lr: 0.01",
    ):
        assert part in line

import json

import pytest

from retinanet_ext import d2
from retinanet_ext.training.run_record import write_results, write_run_record


def test_undefined_metrics_are_null_however_deep(tmp_path):
    write_results(str(tmp_path), {"set_a": {"bbox": {"AP": float("nan"), "AP50": 12.5}}})
    write_results(str(tmp_path), {"bbox_TTA": {"AP": 1.0}}, add=True)
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text  # not valid JSON
    assert json.loads(text) == {"set_a": {"bbox": {"AP": None, "AP50": 12.5}}, "bbox_TTA": {"AP": 1.0}}


def test_every_start_is_kept(tmp_path):
    cfg = d2.get_cfg()
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = str(tmp_path), "cpu"
    for seed in (1, 2, 3):
        cfg.SEED = seed
        write_run_record(cfg, num_processes=1)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["seed"] == 3 and record["engine"] == d2.ENGINE
    assert [earlier["seed"] for earlier in record["earlier_starts"]] == [1, 2]
    assert record["versions"]["torch"] and record["machine"]["device"].startswith("CPU")


@pytest.mark.parametrize("text", ['{"seed": 1, "engi', "", "[1]", "[" * 100_000, "\0\0\0"])
def test_damaged_records_are_moved_aside(tmp_path, text):
    cfg = d2.get_cfg()
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = str(tmp_path), "cpu"
    for name in ("run.json", "results.json"):
        (tmp_path / name).write_text(text)
    write_run_record(cfg, num_processes=1)
    write_results(str(tmp_path), {"bbox_TTA": {"AP": 1.0}}, add=True)
    assert json.loads((tmp_path / "run.json").read_text())["earlier_starts"] == []
    assert json.loads((tmp_path / "results.json").read_text()) == {"bbox_TTA": {"AP": 1.0}}
    for name in ("run.json", "results.json"):
        assert (tmp_path / f"{name}.damaged").read_text() == text


@pytest.mark.parametrize(
    ("end", "kept", "cut"),
    [
        ('{"iteration": 2}\n', '{"iteration": 2}\n', None),
        ('{"iteration": 2}', '{"iteration": 2}\n', None),
        ('{"iteration": 2, "lo', "", '{"iteration": 2, "lo'),
        ('{"iteration": 2}\n{"itera\n\0\0\0', '{"iteration": 2}\n', '{"itera\n\0\0\0'),
    ],
)
def test_an_unfinished_row_of_metrics_is_cut_off(tmp_path, end, kept, cut):
    cfg = d2.get_cfg()
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = str(tmp_path), "cpu"
    (tmp_path / "metrics.json").write_text('{"iteration": 1}\n' + end)
    write_run_record(cfg, num_processes=1)
    assert (tmp_path / "metrics.json").read_text() == '{"iteration": 1}\n' + kept
    damaged = tmp_path / "metrics.json.damaged"
    assert (damaged.read_text() if damaged.exists() else None) == cut


def test_a_full_disk_leaves_the_last_record(tmp_path, monkeypatch):
    write_results(str(tmp_path), {"bbox": {"AP": 1.0}})

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError):
        write_results(str(tmp_path), {"bbox": {"AP": 2.0}})
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert json.loads((tmp_path / "results.json").read_text()) == {"bbox": {"AP": 1.0}}

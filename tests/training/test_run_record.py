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


@pytest.mark.parametrize("text", ['{"seed": 1, "engi', "", "[1]"])
def test_a_damaged_record_is_named(tmp_path, text):
    cfg = d2.get_cfg()
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = str(tmp_path), "cpu"
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json cannot be read: .*move it away"):
        write_run_record(cfg, num_processes=1)
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match="results.json cannot be read"):
        write_results(str(tmp_path), {}, add=True)


def test_a_full_disk_leaves_the_last_record(tmp_path, monkeypatch):
    write_results(str(tmp_path), {"bbox": {"AP": 1.0}})

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError):
        write_results(str(tmp_path), {"bbox": {"AP": 2.0}})
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert json.loads((tmp_path / "results.json").read_text()) == {"bbox": {"AP": 1.0}}

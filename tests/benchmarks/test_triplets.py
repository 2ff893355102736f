"""The benchmark of triplets: rows that mean the same agree, and a row without memory does not stop the others."""

import importlib.util
import json

import pytest

from benchmarks import triplets

TINY = ["--identities=6", "--images=4", "--dim=8", "--repeats=1", "--threads=1"]


@pytest.mark.parametrize("selection", triplets.SELECTIONS)
def test_all_rows_agree_and_are_timed(selection, device):
    settings = triplets.parse_arguments([*TINY, f"--device={device.type}"])
    rows = triplets.ROWS[: 3 if importlib.util.find_spec("pytorch_metric_learning") else 2]
    results = [triplets.run_row(row, selection, settings) for row in rows]
    triplets.compare(selection, results)
    table = triplets.format_results(selection, results)
    for result in results:
        assert len(result["seconds"]) == 1 and f"| {result['row']} " in table
        assert ("difference" in result) != ((selection, result["row"]) in triplets.OTHER_MEANING)


def test_a_row_without_memory_says_so(tmp_path, capsys, monkeypatch, device):
    """120 million triplets take 3 GiB as a list."""
    if device.type != "cpu":
        pytest.skip("the limit is for processes on a CPU")
    monkeypatch.setattr(triplets, "SELECTIONS", ["batch_all"])
    words = ["--dim=8", "--repeats=1", "--threads=1", "--memory-limit=1", "--rows", "plain form"]
    triplets.main([*words, f"--json={tmp_path / 'times.json'}"])
    tables, output = json.loads((tmp_path / "times.json").read_text())["tables"], capsys.readouterr().out
    assert tables == {"batch_all": [{"row": "plain form", "error": "out of memory"}]}
    assert "out of memory" in output


def test_a_wrong_row_is_refused():
    results = [{"row": row, "loss": 1.0, "gradient": [[1.0, 2.0]]} for row in triplets.ROWS]
    results[1]["gradient"] = [[1.0, 2.1]]
    with pytest.raises(RuntimeError, match="batch_all: plain form differs from this package by 5.0e-02"):
        triplets.compare("batch_all", results)

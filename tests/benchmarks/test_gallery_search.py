import json
import sys

import numpy as np
import pytest

from benchmarks import gallery_search


def test_all_rows_search_the_same_and_their_times_are_written(tmp_path, monkeypatch, capsys):
    file = tmp_path / "times.json"
    words = ["--count", "3000", "--queries", "1", "4", "--k", "3", "--repeats", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["gallery_search", *words, "--json", str(file)])
    monkeypatch.setattr(gallery_search, "process_peak_mib", lambda name, settings: 1.0)
    gallery_search.main()
    tables = json.loads(file.read_text())["tables"]
    assert list(tables) == ["1 queries at once", "4 queries at once"]
    assert {row["name"] for row in tables["4 queries at once"]} == set(gallery_search.names())
    text = capsys.readouterr().out
    assert "retinanet_ext, float32 100.0 %" in text and "peak of the process 1 MiB" in text


def test_a_query_has_neighbours_of_its_identity():
    embeddings, queries = gallery_search.draw(500, 20)
    distances = ((queries[:, None] - embeddings[None]) ** 2).sum(axis=2)
    near = (distances < 1.2).sum(axis=1)
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert near.min() >= 10 and near.max() < 20


def test_rows_that_differ_are_not_timed():
    right = gallery_search.Case("ours", lambda: (np.zeros((1, 2)), np.array([[0, 1]])))
    wrong = gallery_search.Case(gallery_search.FAISS_FLAT, lambda: (np.ones((1, 2)), np.array([[2, 3]])))
    with pytest.raises(RuntimeError, match="differs from ours by 1"):
        gallery_search.check([right, wrong], right)

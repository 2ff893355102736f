import subprocess
import sys

import numpy as np
import pytest
import torch

from retinanet_ext.embedding import search as module
from retinanet_ext.embedding.codes import decode, encode
from retinanet_ext.embedding.search import ExactIndex, search


def unit(n, dim=128, seed=0):
    values = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return values / values.norm(dim=1, keepdim=True)


def brute_force(queries, rows, k):
    """Every distance by the definition, in float64; a stable sort keeps the lowest index first."""
    differences = queries.double()[:, None] - rows.double()[None]
    distances = differences.square().sum(dim=2)
    order = torch.sort(distances, dim=1, stable=True)
    return order.values[:, :k].float(), order.indices[:, :k]


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-7)
    assert torch.equal(found[1], expected[1])


def many_blocks(monkeypatch):
    monkeypatch.setattr(module, "_SCORES", 1)
    monkeypatch.setattr(module, "_QUERIES", 7)
    monkeypatch.setattr(module, "_PAIRS", 5)


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("codes", [True, False], ids=["codes", "floats"])
@pytest.mark.parametrize("k", [1, 10])
def test_brute_force_finds_the_same(backend, codes, k, monkeypatch):
    if backend == "faiss":
        pytest.importorskip("faiss")
    many_blocks(monkeypatch)
    rows, queries = unit(9001, 32), unit(30, 32, seed=1)
    database = encode(rows) if codes else rows
    compared = decode(database) if codes else rows
    assert_same(search(queries, database, k, backend), brute_force(queries, compared, k))


def test_floats_of_any_length(monkeypatch):
    many_blocks(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5000, 8, generator=generator) * torch.rand(5000, 1, generator=generator) * 50
    queries = torch.randn(20, 8, generator=generator) * 10
    assert_same(search(queries, rows, 5), brute_force(queries, rows, 5))


def test_without_byte_products_the_answer_is_the_same(monkeypatch):
    monkeypatch.setattr(module, "_has_byte_products", lambda: False)
    codes, queries = encode(unit(5000, 16)), unit(9, 16, seed=1)
    assert_same(search(queries, codes, 3), brute_force(queries, decode(codes), 3))


def test_with_less_precise_products_the_answer_is_the_same():
    rows, queries = unit(5000, 16), unit(9, 16, seed=1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert_same(search(queries, rows, 3), brute_force(queries, rows, 3))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("codes", [True, False], ids=["codes", "floats"])
def test_of_equal_distances_the_lowest_index_is_first(backend, codes):
    if backend == "faiss":
        pytest.importorskip("faiss")
    rows = unit(40, 16).repeat(500, 1)  # row i again at i + 40, i + 80, ...
    database = encode(rows) if codes else rows
    _, indices = search(unit(40, 16), database, 3, backend)
    assert torch.equal(indices, torch.arange(40)[:, None] + torch.tensor([0, 40, 80]))


def test_rows_that_differ_less_than_the_rounding_of_the_scan():
    """All in one block, where the first limit comes from scores with an error."""
    near = torch.nn.functional.normalize(unit(1, 32) + 0.03 * unit(4000, 32, seed=1))
    queries = torch.nn.functional.normalize(unit(1, 32) + 0.03 * unit(40, 32, seed=2))
    codes = encode(near)
    assert_same(search(queries, codes, 5), brute_force(queries, decode(codes), 5))


def test_rows_that_come_nearer_and_nearer(monkeypatch):
    """The worst order for a scan that keeps the nearest so far."""
    many_blocks(monkeypatch)
    query, other = torch.eye(8)[:1], torch.eye(8)[1:2]
    angle = torch.linspace(3, 0.01, 20000)[:, None]
    rows = query * angle.cos() + other * angle.sin()
    distances, indices = search(query, rows, 4)
    assert indices.tolist() == [[19999, 19998, 19997, 19996]]
    assert distances[0, 0].item() == pytest.approx((2 * np.sin(0.005)) ** 2, rel=1e-4)


def test_distances_by_hand():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    distances, indices = search(torch.tensor([[1.0, 0.0]]), encode(rows), 3)
    assert distances.tolist() == [[0.0, 2.0, 4.0]] and indices.tolist() == [[0, 1, 2]]


def test_fewer_rows_than_k_none_and_one():
    queries = unit(3, 16)
    for rows in (0, 1, 4):
        for database in (unit(rows, 16, seed=1), encode(unit(rows, 16, seed=1))):
            distances, indices = search(queries, database, 9)
            assert distances.shape == indices.shape == (3, rows)
            assert sorted(indices[0].tolist()) == list(range(rows))
    assert search(unit(0, 16), unit(5, 16), 2)[0].shape == (0, 2)


def test_arrays_in_arrays_out():
    distances, indices = search(unit(2, 16).numpy(), encode(unit(5, 16)).numpy(), 2)
    assert isinstance(distances, np.ndarray) and distances.dtype == np.float32 and indices.dtype == np.int64


def test_only_allowed_rows_are_found(monkeypatch):
    many_blocks(monkeypatch)
    codes, queries = encode(unit(9000, 16)), unit(5, 16, seed=1)
    allowed = torch.rand(9000, generator=torch.Generator().manual_seed(2)) < 0.001
    kept = allowed.nonzero()[:, 0]
    expected, indices = brute_force(queries, decode(codes)[kept], 50)
    assert_same(ExactIndex(codes).search(queries, 50, allowed), (expected, kept[indices]))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="queries have 8 numbers each, but the database has 16"):
        search(unit(2, 8), unit(2, 16), 1)
    with pytest.raises(ValueError, match="k is 0"):
        search(unit(2, 8), unit(2, 8), 0)
    bad = unit(3, 8)
    bad[1, 2] = float("nan")
    with pytest.raises(ValueError, match="query 1 is not finite"):
        search(bad, unit(2, 8), 1)
    with pytest.raises(ValueError, match="row 1 is not finite"):
        search(unit(2, 8), bad, 1)
    with pytest.raises(ValueError, match="expected: float"):
        search(encode(unit(2, 8)), unit(2, 8), 1)
    with pytest.raises(ValueError, match="legal: torch, faiss"):
        search(unit(2, 8), unit(2, 8), 1, "annoy")


def test_faiss_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModuleNotFoundError, match="pip install faiss-cpu"):
        ExactIndex(unit(2, 8), "faiss")


ONE_MILLION = """
import torch
from retinanet_ext.embedding.search import ExactIndex
codes = torch.randint(-127, 128, (1_000_000, 128), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
queries = torch.nn.functional.normalize(codes[[5, 999_999]].float())
distances, indices = ExactIndex(codes).search(queries.repeat(50, 1), 10)
assert indices[:2, 0].tolist() == [5, 999_999] and distances[:, 0].max() < 1e-9
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_one_million_codes_are_searched_within_1500_mb():
    done = subprocess.run([sys.executable, "-c", ONE_MILLION], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 1.5e9

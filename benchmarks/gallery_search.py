"""Search of a gallery: one million embeddings as 128 bytes each, ours beside faiss's exact and 8-bit indexes.

Rows with float32 search the embeddings themselves, rows with bytes what their bytes stand for. faiss's bytes are of
another kind than ours: each of the 128 numbers has a range of its own, learned from the data. The embeddings are drawn
around a centre for each identity, because a gallery has near neighbours. The peak of a whole process is measured in a
fresh one for each row, which draws the same embeddings and searches with the largest number of queries.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Case, format_cases, make_parser, print_header, time_in_turns, version, write_cases
from retinanet_ext.embedding.codes import encode
from retinanet_ext.embedding.search import ExactIndex

DIM, PER_IDENTITY, NOISE = 128, 10, 0.05
TOLERANCE = 1e-4  # of squared distances that are computed as |a|^2 + |b|^2 - 2 a.b in float32
OURS_BYTES, OURS_FLOAT, FAISS_FLAT, FAISS_BYTES = (
    "retinanet_ext, bytes", "retinanet_ext, float32", "faiss IndexFlatL2, float32", "faiss 8-bit scalar quantizer",
)  # fmt: skip

Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def draw(count: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings ``(N, 128)`` and queries ``(M, 128)``, float32 of length 1; each query is of an identity in the
    gallery."""
    rng = np.random.default_rng(0)
    embeddings = np.empty((count, DIM), np.float32)
    for start in range(0, count, 100_000):
        centres = _unit(rng, min(100_000, count - start) // PER_IDENTITY + 1)
        rows = centres.repeat(PER_IDENTITY, axis=0)[: min(100_000, count - start)]
        embeddings[start : start + len(rows)] = _near(rng, rows)
    return embeddings, _near(rng, embeddings[rng.integers(0, count, queries)])


def _unit(rng, count: int) -> np.ndarray:
    values = rng.standard_normal((count, DIM), np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _near(rng, rows: np.ndarray) -> np.ndarray:
    values = rows + NOISE * rng.standard_normal(rows.shape, np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def make_search(name: str, embeddings: np.ndarray, k: int, threads: int) -> Search:
    """The search of a row of the table: queries ``(M, 128)`` to distances and indices ``(M, k)``."""
    if name == OURS_BYTES:
        index = ExactIndex(encode(embeddings))
        return lambda queries: index.search(queries, k)
    if name == OURS_FLOAT:
        index = ExactIndex(embeddings)
        return lambda queries: index.search(queries, k)
    import faiss

    faiss.omp_set_num_threads(threads)
    if name == FAISS_FLAT:
        index = faiss.IndexFlatL2(DIM)
    else:
        index = faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2)
        index.train(embeddings[:100_000])
    index.add(embeddings)
    return lambda queries: index.search(queries, k)


def names() -> list[str]:
    faiss = version("faiss-cpu") != "not installed" or version("faiss-gpu") != "not installed"
    return [OURS_BYTES, OURS_FLOAT, *([FAISS_FLAT, FAISS_BYTES] if faiss else [])]


def check(cases: Sequence[Case], reference: Case) -> dict[str, float]:
    """Fill in ``difference`` of all cases, of the distances of the k nearest; return the share of the reference's
    nearest rows that each case finds.

    Raises:
        RuntimeError: the distances of a case in float32 differ by more than ``TOLERANCE``.
    """
    distances, rows = reference.run()
    shares = {}
    for case in cases:
        found, indices = case.run()
        case.difference = float(np.abs(found - distances).max())
        hits = [len(set(a) & set(b)) / len(b) for a, b in zip(indices.tolist(), rows.tolist())]
        shares[case.name] = sum(hits) / len(hits)
        if case.name == FAISS_FLAT and not case.difference <= TOLERANCE:
            raise RuntimeError(f"{case.name} differs from {reference.name} by {case.difference:.2g}; nothing was timed")
    return shares


def process_peak_mib(name: str, settings: argparse.Namespace) -> float | None:
    """Peak of the resident set of a process that makes the index and searches, without the float32 embeddings' part."""
    words = ["--count", settings.count, "--k", settings.k, "--threads", settings.threads]
    words += ["--queries", *settings.queries, "--only", name]
    command = [sys.executable, "-m", "benchmarks.gallery_search", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else None


def run_alone(settings: argparse.Namespace) -> None:
    """Print the peak in MiB of this process from the moment when only what is searched is left."""
    embeddings, queries = draw(settings.count, max(settings.queries))
    search = make_search(settings.only, embeddings, settings.k, settings.threads)
    if settings.only != OURS_FLOAT:  # it searches these themselves
        del embeddings
    Path("/proc/self/clear_refs").write_text("5")
    search(queries)
    lines = Path("/proc/self/status").read_text().splitlines()
    print(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("Search among the embeddings of a gallery", repeats=5)
    parser.add_argument("--count", type=int, default=1_000_000, help="embeddings in the gallery")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 10, 100], help="queries at once")
    parser.add_argument("--k", type=int, default=10, help="neighbours to find")
    parser.add_argument("--only", choices=names(), help="print the memory of this row alone, in MiB")
    return parser.parse_args(words)


def measure(settings: argparse.Namespace) -> dict[str, list[Case]]:
    """A table for each number of queries. Differences are from ours in float32."""
    embeddings, queries = draw(settings.count, max(settings.queries))
    searches = {name: make_search(name, embeddings, settings.k, settings.threads) for name in names()}
    tables = {}
    for count in settings.queries:
        cases = [Case(name, partial(search, queries[:count])) for name, search in searches.items()]
        reference = cases[1]
        shares = check(cases, reference)
        time_in_turns(cases, settings.repeats)
        title = f"{count} queries at once"
        tables[title] = cases
        print(format_cases(cases, cases[2] if len(cases) > 2 else reference, title), end="\n\n")
        print("found of the nearest of the float32 embeddings:", end=" ")
        print(", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items()), end="\n\n", flush=True)
    return tables


def main() -> None:
    settings = parse_arguments()
    torch.set_num_threads(settings.threads)
    if settings.only:
        run_alone(settings)
        return
    header = print_header(settings, faiss=version("faiss-cpu"))
    for name in names():
        peak = process_peak_mib(name, settings)
        print(f"{name}: peak of the process {'unknown' if peak is None else f'{peak:.0f} MiB'}", flush=True)
    print()
    write_cases(settings.json, header, measure(settings))


if __name__ == "__main__":
    main()

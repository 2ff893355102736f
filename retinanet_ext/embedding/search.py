"""Exact nearest neighbours of embeddings among codes or embeddings, in bounded memory.

M queries, N rows of a database, D numbers each, B rows of a block. Distances are squared L2 (paper, section 3.1).

A block is scanned in a fast arithmetic whose error has a known bound. Every row that could be among the nearest within
that bound is compared again in float64. The answer so depends neither on the blocks nor on the library that multiplies.
"""

import numpy as np
import torch

from .codes import Array, as_codes, code_lengths, decode

BACKENDS = ("torch", "faiss")
_QUERIES = 128  # per scan of the database
_SCORES = 2**19  # per block: these and their temporaries stay in the processor's caches
_PAIRS = 2**14  # compared at once in float64
_SPARE = 16  # neighbours that faiss is asked for beyond k, as room for its rounding
_ROUNDING = 2**-20  # bounds a few float32 roundings, relative to the size of the numbers


def search(queries: Array, database: Array, k: int, backend: str = "torch") -> tuple[Array, Array]:
    """The ``k`` nearest rows of ``database`` for each query; see `ExactIndex`, which to keep for repeated searches.

    Args:
        queries: float ``(M, D)``.
        database: float ``(N, D)``, or codes, int8 ``(N, D)``.
    """
    return ExactIndex(database, backend).search(queries, k)


class ExactIndex:
    """A database to search. It keeps the array itself, and 4 bytes per row besides.

    Codes are compared as `codes.decode` gives them, floats as float32.
    """

    def __init__(self, database: torch.Tensor | np.ndarray, backend: str = "torch"):
        """
        Args:
            database: float ``(N, D)``, or codes, int8 or uint8 ``(N, D)``, on the CPU.
            backend: ``torch``, or ``faiss`` (``IndexFlatL2``; needs 4 D bytes per row, in float32). Both give the
                same answers.

        Raises:
            ValueError: the database is no matrix, or a row is zero (codes) or not finite.
            ModuleNotFoundError: faiss is asked for and not installed.
        """
        database = torch.as_tensor(database).detach()
        if backend not in BACKENDS:
            raise ValueError(f"the backend of the search is {backend!r}; legal: {', '.join(BACKENDS)}")
        if database.ndim != 2:
            raise ValueError(f"the database has shape {tuple(database.shape)}; expected: (N, D)")
        self.is_codes = not database.is_floating_point()
        self.database = as_codes(database) if self.is_codes else database
        if self.is_codes:
            self._inverse = code_lengths(self.database).reciprocal_()
            self._longest = 1.0
        else:
            self._half_squares = self._check_and_square()
            self._longest = float((2 * self._half_squares.max()).sqrt()) if len(self) else 0.0
        self._faiss = _faiss_index(self) if backend == "faiss" else None

    def __len__(self) -> int:
        return len(self.database)

    @property
    def dim(self) -> int:
        """D."""
        return self.database.shape[1]

    def search(self, queries: Array, k: int, allowed: torch.Tensor | None = None) -> tuple[Array, Array]:
        """The ``k`` nearest rows for each query, nearest first; of equally near ones the lowest index first.

        Distances are compared in float64, between numbers that are float32. Rows whose distances differ by less than
        about 1e-7 may stand in another order than that of their true embeddings, which float32 does not hold.

        Args:
            queries: float ``(M, D)``, a tensor on the CPU or an array.
            k: at least 1. With fewer than ``k`` rows, all of them are found.
            allowed: bool ``(N,)``, the rows to search; None: all.

        Returns:
            Squared distances, float32 ``(M, K)``, and indices of rows, int64 ``(M, K)``, with ``K = min(k, N)`` (N
            counts the allowed rows), of the same library as ``queries``.

        Raises:
            ValueError: the queries are of another size than the database, or not finite, or ``k`` is below 1.
        """
        values = self._checked_queries(queries, k)
        rows = len(self) if allowed is None else int(allowed.sum())
        best = _Best(len(values), min(k, rows))
        if best.k and len(values):
            for start in range(0, len(values), _QUERIES):
                part = best.part(slice(start, start + _QUERIES))
                if self._faiss is not None and allowed is None:
                    self._ask_faiss(values[start : start + _QUERIES], part)
                else:
                    self._scan(values[start : start + _QUERIES], part, allowed)
        distances, indices = best.distances.astype(np.float32), best.indices
        if isinstance(queries, np.ndarray):
            return distances, indices
        return torch.from_numpy(distances), torch.from_numpy(indices)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """The rows at ``indices``, int64 ``(P,)``, as float32 ``(P, D)``."""
        chosen = self.database[indices]
        return decode(chosen) if self.is_codes else chosen.float()

    def _checked_queries(self, queries, k: int) -> torch.Tensor:
        values = torch.as_tensor(queries).detach()
        if values.ndim != 2 or not values.is_floating_point():
            raise ValueError(f"queries are {values.dtype} of shape {tuple(values.shape)}; expected: float, (M, D)")
        if values.shape[1] != self.dim:
            raise ValueError(f"queries have {values.shape[1]} numbers each, but the database has {self.dim}")
        if k < 1:
            raise ValueError(f"k is {k}; legal: 1 or more")
        values = values.float()
        _refuse_rows(~torch.isfinite(values.square().sum(dim=1)), "query")
        return values

    def _check_and_square(self) -> torch.Tensor:
        """Half the squared length of each row, float32 ``(N,)``."""
        halves = torch.empty(len(self))
        for start in range(0, len(self), 65536):
            halves[start : start + 65536] = self.database[start : start + 65536].float().square().sum(dim=1) / 2
        _refuse_rows(~torch.isfinite(halves), "row")
        return halves

    def _scan(self, queries: torch.Tensor, best: "_Best", allowed: torch.Tensor | None) -> None:
        """Bring ``best`` up to date with all rows.

        The score of a row is ``q.x - |x|^2 / 2``, so that the squared distance is ``|q|^2 - 2 score``. For codes,
        ``|x| = 1``, and the constant 1/2 is left out.
        """
        scorer = _scorer(self, queries)
        squares = queries.double().square().sum(dim=1) + (1.0 if self.is_codes else 0.0)
        size = min(max(_SCORES // len(queries), 4096), 16384)
        for start in range(0, len(self), size):
            block = slice(start, min(start + size, len(self)))
            scores = scorer(block)
            if allowed is not None:
                scores[:, ~allowed[block]] = -torch.inf
            limits = self._limits(scorer, squares, best)
            hit = (scores.amax(dim=1) >= limits).nonzero()[:, 0]
            if not len(hit):
                continue
            scores, limits = scores[hit], limits[hit]
            found = scores >= limits[:, None]
            if found.sum() > len(hit) * (4 * best.k + 64):
                found = scores >= torch.maximum(limits, scorer.kth_limits(scores, hit, best.k))[:, None]
            which, columns = found.nonzero(as_tuple=True)
            self._compare(queries, hit[which], columns + start, best)

    def _limits(self, scorer, squares: torch.Tensor, best: "_Best") -> torch.Tensor:
        """The score ``(M,)`` from which on a row may be among the nearest."""
        farthest = torch.from_numpy(best.distances[:, -1])
        limits = ((squares - farthest) / 2 - scorer.errors) / scorer.scales
        # Rows that are not allowed score -inf.
        return limits.clamp(min=torch.finfo(torch.float32).min).float()

    def _compare(self, queries, which: torch.Tensor, rows: torch.Tensor, best: "_Best") -> None:
        """Put the candidates ``(which[p], rows[p])``, both int64 ``(P,)``, into ``best``, by distances in float64."""
        distances = torch.empty(len(which), dtype=torch.float64)
        for start in range(0, len(which), _PAIRS):
            part = slice(start, start + _PAIRS)
            difference = queries[which[part]].double() - self.rows(rows[part]).double()
            distances[part] = difference.square_().sum(dim=1)
        best.merge(which.numpy(), distances.numpy(), rows.numpy())

    def _ask_faiss(self, queries: torch.Tensor, best: "_Best") -> None:
        asked = min(best.k + _SPARE, len(self))
        distances, rows = self._faiss.search(np.ascontiguousarray(queries.numpy()), asked)
        which = torch.arange(len(queries)).repeat_interleave(asked)
        self._compare(queries, which, torch.from_numpy(rows.reshape(-1)), best)
        if asked == len(self):
            return
        lengths = queries.double().norm(dim=1).numpy() + self._longest
        error = 2 * self.dim * _ROUNDING * lengths**2
        unsure = torch.from_numpy(np.flatnonzero(distances[:, -1] - error <= best.distances[:, -1]))
        if len(unsure):  # rows that faiss left out may be as near
            again = _Best(len(unsure), best.k)
            self._scan(queries[unsure], again, None)
            best.distances[unsure], best.indices[unsure] = again.distances, again.indices


class _Scorer:
    """Scores of a block up to ``errors`` ``(M,)``, after multiplication with ``scales`` ``(M,)``, both float64."""

    errors: torch.Tensor
    scales: torch.Tensor

    def kth_limits(self, scores: torch.Tensor, hit: torch.Tensor, k: int) -> torch.Tensor:
        """The score ``(H,)`` below which a row of ``scores`` ``(H, B)`` is not among the ``k`` best of these."""
        kth = scores.topk(min(k, scores.shape[1]), dim=1).values[:, -1].double()
        limits = kth - 2 * self.errors[hit] / self.scales[hit]
        return limits.clamp(min=torch.finfo(torch.float32).min).float()


class _FloatScorer(_Scorer):
    def __init__(self, index: ExactIndex, queries: torch.Tensor):
        self.index, self.queries = index, queries
        lengths = queries.double().norm(dim=1)
        # Below "highest", PyTorch may multiply in bfloat16, which has 8 bits.
        exact = torch.get_float32_matmul_precision() == "highest"
        relative = index.dim * 2.0**-23 + _ROUNDING if exact else 2.0**-6
        self.errors = relative * lengths * index._longest + _ROUNDING * index._longest**2
        self.scales = torch.ones_like(self.errors)

    def __call__(self, block: slice) -> torch.Tensor:
        rows = self.index.database[block].float()
        if self.index.is_codes:
            return (self.queries @ rows.T).mul_(self.index._inverse[block])
        return (self.queries @ rows.T).sub_(self.index._half_squares[block])


class _ByteScorer(_Scorer):
    """Multiplies codes by queries that are rounded to bytes too, in integers; the rounding bounds the error."""

    def __init__(self, index: ExactIndex, queries: torch.Tensor):
        self.index = index
        largest = queries.abs().amax(dim=1, keepdim=True)
        scales = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        rounded = (queries / scales).round()
        rest = (queries.double() - rounded.double() * scales.double()).norm(dim=1)
        self.bytes = rounded.to(torch.int8)
        self.errors = rest * (1 + _ROUNDING) + 2 * _ROUNDING * queries.double().norm(dim=1)
        self.scales = scales[:, 0].double()

    def __call__(self, block: slice) -> torch.Tensor:
        products = torch._int_mm(self.bytes, self.index.database[block].T)
        return products.float().mul_(self.index._inverse[block])


def _scorer(index: ExactIndex, queries: torch.Tensor) -> _Scorer:
    return (_ByteScorer if index.is_codes and _has_byte_products() else _FloatScorer)(index, queries)


def _has_byte_products() -> bool:
    """Whether this processor multiplies bytes fast, and without saturation: one product is tried."""
    if not getattr(torch.cpu, "_is_vnni_supported", lambda: False)() or not hasattr(torch, "_int_mm"):
        return False
    largest = torch.full((17, 128), 127, dtype=torch.int8)
    try:
        return bool((torch._int_mm(largest, -largest.T) == -128 * 127**2).all())
    except RuntimeError:
        return False


class _Best:
    """The nearest rows so far: squared distances, float64 ``(M, k)``, inf where none; indices, int64 ``(M, k)``."""

    def __init__(self, queries: int, k: int):
        self.k = k
        self.distances = np.full((queries, k), np.inf)
        self.indices = np.full((queries, k), np.iinfo(np.int64).max)

    def part(self, queries: slice) -> "_Best":
        """Some of the queries, over the same memory."""
        part = _Best(0, self.k)
        part.distances, part.indices = self.distances[queries], self.indices[queries]
        return part

    def merge(self, which: np.ndarray, distances: np.ndarray, indices: np.ndarray) -> None:
        """Add candidates, each ``(P,)``: index of the query, squared distance, index of the row."""
        touched = np.unique(which)
        owners = np.concatenate([np.repeat(touched, self.k), which])
        distances = np.concatenate([self.distances[touched].reshape(-1), distances])
        indices = np.concatenate([self.indices[touched].reshape(-1), indices])
        order = np.lexsort((indices, distances, owners))
        firsts = np.searchsorted(owners[order], touched)
        # Every touched query has at least k entries, those that it had.
        kept = order[firsts[:, None] + np.arange(self.k)]
        self.distances[touched], self.indices[touched] = distances[kept], indices[kept]


def _faiss_index(index: ExactIndex):
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("backend='faiss' needs faiss: pip install faiss-cpu, or take 'torch'") from error
    flat = faiss.IndexFlatL2(index.dim)
    for start in range(0, len(index), 65536):
        flat.add(index.rows(torch.arange(start, min(start + 65536, len(index)))).numpy())
    return flat


def _refuse_rows(wrong: torch.Tensor, what: str) -> None:
    if wrong.any():
        raise ValueError(f"{what} {int(wrong.nonzero()[0])} is not finite, or its squares are not")

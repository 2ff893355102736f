"""Ordered map in worker threads, a bounded number of items ahead of the consumer."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int = 4, ahead: int = 16
) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of `items`, with up to `ahead` results computed in advance.

    `items` is consumed lazily, in the consumer's thread. An exception of `function` is raised when its result is due.
    """
    pending = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # A consumer that stops early must not wait for work that nobody will see.
            for future in pending:
                future.cancel()


def batches_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, batch_size: int
) -> Iterator[list[Result]]:
    """Yield the results of :func:`map_ahead` in lists of ``batch_size``, two of them ahead; the last may be shorter."""
    results = map_ahead(function, items, workers, ahead=2 * batch_size)
    while batch := list(itertools.islice(results, batch_size)):
        yield batch

"""Ordered map in worker threads, a bounded number of items ahead of the consumer."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int = 4,
    ahead: int = 16,
    *,
    cost: Callable[[Item], float] | None = None,
    budget: float = math.inf,
) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of `items`, with up to `ahead` results computed in advance.

    `items` is consumed lazily, in the consumer's thread. An exception of `function` is raised when its result is due.

    Args:
        function, items: what is called with what.
        workers: number of threads.
        ahead: number of results in advance.
        cost: what the result of an item takes, such as its pixels; called in the consumer's thread. None: nothing.
        budget: what the results in advance may cost together. One item may cost more; then it is the only one.
    """
    for result, _ in _with_costs(function, items, workers, ahead, cost, budget):
        yield result


def batches_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    batch_size: int,
    *,
    cost: Callable[[Item], float] | None = None,
    budget: float = math.inf,
) -> Iterator[list[Result]]:
    """Yield the results of :func:`map_ahead` in lists of ``batch_size``, two of them ahead; the last may be shorter.

    A list that would cost more than ``budget`` is shorter too.
    """
    batch, total = [], 0.0
    for result, price in _with_costs(function, items, workers, 2 * batch_size, cost, budget):
        if batch and (len(batch) == batch_size or total + price > budget):
            yield batch
            batch, total = [], 0.0
        batch.append(result)
        total += price
    if batch:
        yield batch


def _with_costs(function, items, workers, ahead, cost, budget):
    """Results with their costs. A worker never waits for the budget: whoever waits for it is the consumer."""
    pending, total = deque(), 0.0
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                price = 0.0 if cost is None else cost(item)
                while pending and total + price > budget:
                    future, spent = pending.popleft()
                    total -= spent
                    yield future.result(), spent
                pending.append((pool.submit(function, item), price))
                total += price
                if len(pending) > ahead:
                    future, spent = pending.popleft()
                    total -= spent
                    yield future.result(), spent
            while pending:
                future, spent = pending.popleft()
                yield future.result(), spent
        finally:
            # A consumer that stops early must not wait for work that nobody will see.
            for future, _ in pending:
                future.cancel()

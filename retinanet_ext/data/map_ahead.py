"""Ordered map in worker threads, a bounded number of items ahead of the consumer."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor


def map_ahead(function, items, workers=4, ahead=16):
    """Yield ``function(item)`` in the order of `items`, with up to `ahead` results computed in advance.

    `items` is consumed lazily, in the consumer's thread; an exception of `function` is raised where its result is due.
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

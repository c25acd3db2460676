"""Jobs that run a few ahead of who takes their results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    executor: Executor, job: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """Results in the order of `items`, with at most `depth` jobs started or waiting to be taken.

    The first jobs start at the call, not when the first result is asked for.
    """
    rest = iter(items)
    started = deque(executor.submit(job, item) for item in islice(rest, depth))
    return _drain(executor, job, rest, started)


def _drain(
    executor: Executor, job: Callable[[Item], Result], rest: Iterator[Item], started: deque[Future[Result]]
) -> Iterator[Result]:
    while started:
        result = started.popleft().result()
        # the next job starts only now, so that a slow consumer holds few results in memory
        started.extend(executor.submit(job, item) for item in islice(rest, 1))
        yield result

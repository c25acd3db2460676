"""Where shards are computed: any `concurrent.futures.Executor`; here, in this process.

The job given to an executor is a group of shards (`rtsmap.runs.detecting.Task`), not a single one,
because reading, network and writing overlap between neighbouring shards of one group.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class InProcessExecutor(Executor):
    """Runs every job at once, in the calling thread, so that Ctrl-C reaches it."""

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run the job and return it done; only interrupts get through."""
        future: Future[Result] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as exc:  # noqa: BLE001 - the caller of result() gets it
            future.set_exception(exc)
        return future


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

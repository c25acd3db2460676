"""Where the time of a run goes: seconds of wall and CPU by stage, over all threads; for nothing unless asked.

A stage within a stage counts for itself only. CPU is that of the thread that works in a stage; threads that
torch and GDAL start of their own are not seen there, but in `Ledger.elsewhere_s`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

LOOKS = "looks"
"""Stages within this one are counted apart, as done again."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

_STACKS = threading.local()
_measuring: list[Ledger] = []


@dataclass(slots=True)
class _Open:
    """A stage that a thread is in, and what stages within it took."""

    name: str
    inner_wall_s: float = 0.0
    inner_cpu_s: float = 0.0


@dataclass(slots=True)
class Ledger:
    """Seconds by stage: wall (summed over threads, so more than the clock's), CPU, and how often."""

    wall_s: dict[str, float] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    total_wall_s: float = 0.0
    total_cpu_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def elsewhere_s(self) -> float:
        """CPU outside of any stage: threads of torch and GDAL, and all that is not named."""
        return max(0.0, self.total_cpu_s - sum(self.cpu_s.values()))

    def add(self, stage: str, wall_s: float, cpu_s: float) -> None:
        """Count one stay in a stage."""
        with self._lock:
            self.wall_s[stage] = self.wall_s.get(stage, 0.0) + wall_s
            self.cpu_s[stage] = self.cpu_s.get(stage, 0.0) + cpu_s
            self.times[stage] = self.times.get(stage, 0) + 1

    def lines(self) -> list[str]:
        """A table: the stages by their CPU."""
        rows = [f"{'stage':<14}{'CPU s':>9}{'share':>8}{'wall s':>9}{'times':>8}"]
        total = self.total_cpu_s or 1.0
        for stage in sorted(self.cpu_s, key=lambda name: -self.cpu_s[name]):
            cpu_s = self.cpu_s[stage]
            figures = f"{cpu_s:>9.2f}{cpu_s / total:>8.1%}{self.wall_s[stage]:>9.2f}{self.times[stage]:>8}"
            rows.append(f"{stage:<14}{figures}")
        rows.append(f"{'elsewhere':<14}{self.elsewhere_s:>9.2f}{self.elsewhere_s / total:>8.1%}")
        rows.append(f"{'all':<14}{self.total_cpu_s:>9.2f}{'':>8}{self.total_wall_s:>9.2f}")
        return rows


@contextmanager
def measuring(ledger: Ledger | None) -> Iterator[None]:
    """Write what this process does meanwhile into the ledger; one at a time, None measures nothing."""
    if ledger is None:
        yield
        return
    wall, cpu = time.perf_counter(), time.process_time()
    _measuring.append(ledger)
    try:
        yield
    finally:
        _measuring.remove(ledger)
        ledger.total_wall_s += time.perf_counter() - wall
        ledger.total_cpu_s += time.process_time() - cpu


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count what is done meanwhile, in this thread, to a stage."""
    if not _measuring:
        yield
        return
    stack: list[_Open] = _STACKS.__dict__.setdefault("open", [])
    name += " again" if _in_looks() else ""
    here = _Open(name)
    stack.append(here)
    wall, cpu = time.perf_counter(), time.thread_time()
    try:
        yield
    finally:
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        stack.pop()
        if stack:
            stack[-1].inner_wall_s += wall
            stack[-1].inner_cpu_s += cpu
        for ledger in tuple(_measuring):
            ledger.add(name, wall - here.inner_wall_s, cpu - here.inner_cpu_s)


def carried(job: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The job, for other threads: what they do counts as done again where this thread is in `LOOKS`."""
    if not _in_looks():
        return job

    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        before = _STACKS.__dict__.get("again", False)
        _STACKS.again = True
        try:
            return job(*args, **kwargs)
        finally:
            _STACKS.again = before

    return run


def _in_looks() -> bool:
    kept = _STACKS.__dict__
    return kept.get("again", False) or any(outer.name == LOOKS for outer in kept.get("open", ()))


def in_stage(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """The items, whose making is counted to a stage."""
    iterator = iter(items)
    while True:
        with stage(name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item

"""How a run tells how far it is; the library itself is silent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Progress = Callable[[str, int, int], None]
"""Told (stage, done, total) as a run goes on, always from the thread that started it."""


def silent(_stage: str, _done: int, _total: int) -> None:
    """Tell nobody."""


def over_scenes(progress: Progress) -> Callable[[Path, str, int, int], None]:
    """One account of many scenes: each stage's numbers are sums over the scenes that have told of it.

    Rounds of second looks are one stage. Workers of one scene each know a part of it: the highest counts.
    """
    told: dict[str, dict[tuple[Path, str], tuple[int, int]]] = {}

    def tell(directory: Path, stage: str, done: int, total: int) -> None:
        whole = stage.partition(",")[0]
        parts = told.setdefault(whole, {})
        before, _ = parts.get((directory, stage), (0, 0))
        parts[directory, stage] = max(before, done), total
        progress(whole, sum(d for d, _ in parts.values()), sum(t for _, t in parts.values()))

    return tell

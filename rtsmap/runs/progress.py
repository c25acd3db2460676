"""How a run tells how far it is; the library itself is silent."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Told (stage, done, total) as a run goes on, always from the thread that started it."""


def silent(_stage: str, _done: int, _total: int) -> None:
    """Tell nobody."""

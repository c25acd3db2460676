"""Ctrl-C that lets work in hand be finished."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C came meanwhile; the second Ctrl-C interrupts at once.

    Other threads than the main one get no signals, and where somebody handles Ctrl-C already that stays.
    """
    asked = False

    def on_first(_signal: int, _frame: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logger.warning("Ctrl-C: finishing the shard in hand; once more stops at once")

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, on_first)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)

"""Pauses of whoever waits for other workers."""

from __future__ import annotations

import time

_LIMITS_S = (0.05, 2.0)
_SHARE = 0.1


class Pauses:
    """Sleeps, each a tenth of what was waited before, so that what others finish is seen soon after.

    A pause lasts 0.05 s at least and 2 s at most; after something came of looking, waiting begins anew.
    """

    def __init__(self) -> None:
        self._waited_s = 0.0

    @property
    def next_s(self) -> float:
        """Seconds that the next pause will last."""
        shortest_s, longest_s = _LIMITS_S
        return min(max(shortest_s, _SHARE * self._waited_s), longest_s)

    def sleep(self) -> None:
        """Pause once."""
        pause_s = self.next_s
        time.sleep(pause_s)
        self._waited_s += pause_s

    def begin_anew(self) -> None:
        """Something came: the next pause is the shortest again."""
        self._waited_s = 0.0

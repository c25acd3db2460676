"""Python's search for circular garbage: seldom in a process of ours, and not at all at its end.

Importing torch and mmdet makes very many objects that stay. Looking through them, again and again at the
usual threshold of 700, is a fifth of the eight seconds until a network is ready.
"""

from __future__ import annotations

import atexit
import gc
import sys

_OBJECTS = 100_000
_YOUNGER_ROUNDS = 50


def collect_seldom() -> None:
    """For a process that is rtsmap's own; libraries leave this to the program that uses them."""
    gc.set_threshold(_OBJECTS, _YOUNGER_ROUNDS, _YOUNGER_ROUNDS)
    atexit.register(_leave_what_is_there)


def _leave_what_is_there() -> None:
    """The interpreter would take torch apart, object by object, only to end."""
    # triton, which comes with torch's compiler, reports each of its objects that is left as a leak
    if "triton" not in sys.modules:
        gc.freeze()

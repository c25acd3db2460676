"""Exit codes of the `rtsmap` command; 0 is done, and 2, wrong usage, is typer's."""

from __future__ import annotations

FAILED = 1
"""An error of the user's files, options, model or run; the message says which."""

PARTIAL = 3
"""Finished, but some tiles failed; they are listed and stand in the coverage layer."""

BUG = 70
"""A bug of rtsmap."""

INTERRUPTED = 130
"""Ctrl-C."""

"""How things are told in messages."""

from __future__ import annotations


def count_of(number: int, thing: str) -> str:
    """A number of things: '1 slump', '1,200 slumps'."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"

"""Which groups of training images are held out: decided by their names, so it never changes by accident."""

from __future__ import annotations

import hashlib


def is_held_out(group: str, share: float = 0.1) -> bool:
    """True for about `share` of all group names, whatever others there are (SHA-256 of the name)."""
    digest = hashlib.sha256(group.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64

"""Where the real data for tests lie, when they are there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(
    os.environ.get("RTSMAP_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


def shared(relative: str) -> Path:
    """Path of a shared file; skips the calling test with a reason where it is absent."""
    path = SHARED_DATA / relative
    if not path.exists():
        pytest.skip(f"shared data not present: {relative}")
    return path

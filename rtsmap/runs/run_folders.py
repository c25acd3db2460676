"""Run directories seen from outside: which scenes they hold, and how far these are."""

from __future__ import annotations

from pathlib import Path

from rtsmap.errors import RunError
from rtsmap.runs.plan import PLAN
from rtsmap.runs.reopening import read_asked


def scene_directories(directory: Path) -> tuple[Path, ...]:
    """The run directories of the scenes of a run: itself where it is of one scene."""
    if (directory / PLAN).is_file():
        return (directory.resolve(),)
    raise RunError(f"{directory} is no run directory: it has no {PLAN}. `rtsmap plan` makes one")


def missing_tiles(directory: Path) -> int:
    """How many shards of tiles are not on disk."""
    shards = read_asked(directory).plan.count_shards()
    return shards - len(list(directory.glob("shard-*.arrow")))

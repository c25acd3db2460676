"""A mapping run that is killed at a chosen place: run as a program by test_interrupted.py.

Arguments: scene, dem, out, place, and at which visit of the place SIGKILL comes.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rtsmap import atomic
from rtsmap.instances import looks
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.rasters.chips import ChipReader
from rtsmap.runs import footprints, plan, shards
from rtsmap.runs.mapping import PredictOptions, predict
from rtsmap.vectors import geopackage
from tests.runs.blob_scenes import engine

OPTIONS = PredictOptions(simplify_m=0, min_speck_px=1, min_area_m2=0, shard_tiles=2, read_threads=2)

# (owner, name of the function that is never finished); "writing a shard" is between its last byte and
# the rename, "ending the map" likewise
PLACES: dict[str, tuple[Any, str]] = {
    "planning": (plan, "whole_file"),
    "reading": (ChipReader, "read_block"),
    "inference": (ThresholdDetector, "_detect"),
    "writing a shard": (atomic, "_move_into_place"),
    "inside a shard": (shards, "_digest"),
    "linking": (shards, "_read_rows"),
    "looking again": (looks.Trail, "take"),
    "merging": (footprints.FootprintMaker, "make"),
    "writing the map": (geopackage, "_write_table"),
    "ending the map": (geopackage, "_check_written"),
}


def kill_at(place: str, visit: int) -> None:
    """Let SIGKILL, which nothing can catch, come at a visit of a place."""
    owner, name = PLACES[place]
    real: Callable[..., Any] = getattr(owner, name)
    visits = iter(range(1, visit + 1))

    def deadly(*args: Any, **kwargs: Any) -> Any:
        if next(visits, visit) >= visit:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, deadly)


if __name__ == "__main__":
    scene, dem, out, place, visit = sys.argv[1:]
    kill_at(place, int(visit))
    predict(scene, dem, out=Path(out), model=engine(), options=OPTIONS)

"""Rasters written where there is room for so many bytes only: run as a program by test_writing.py.

Arguments: a kind of raster, and a folder. Writes whole.tif, then BYTES.tif for growing limits, and prints the
errors that there were.
"""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rtsmap.errors import WriteError
from rtsmap.rasters.cog import blocks_of, write_cog
from rtsmap.rasters.writing import write_geotiff
from tests.rasters.files import geobox

SHAPE = (600, 700)
RNG = np.random.default_rng(1)
RGB, VALID = RNG.integers(0, 255, (3, *SHAPE), np.uint8), RNG.random(SHAPE) > 0.2
CHANCE, BOX = RNG.random(SHAPE, np.float32), geobox(SHAPE)


def _write_cog(path: Path) -> None:
    write_cog(path, ((window, CHANCE[window.slices()]) for window in blocks_of(SHAPE)), BOX, band_name="x")


KINDS: dict[str, Callable[[Path], None]] = {
    "masked": lambda path: write_geotiff(path, RGB, BOX, valid=VALID),
    "with overviews": lambda path: write_geotiff(path, RGB, BOX, overviews=True),
    "cog": _write_cog,
}

if __name__ == "__main__":
    kind, folder = KINDS[sys.argv[1]], Path(sys.argv[2])
    kind(folder / "whole.tif")
    size = (folder / "whole.tif").stat().st_size
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in [*range(1000, size, size // 12), *range(size - 20_000, size, 3000), size + 200_000]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            kind(folder / f"{limit}.tif")
        except WriteError as exc:
            print(exc)

"""Hypothesis strategies and settings shared by tests of laws.

Each law runs on a moderate number of random cases; RTSMAP_HYPOTHESIS_EXAMPLES=5000 raises it, and then
the cases are fresh ones in every run.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from scipy import ndimage

from rtsmap.rasters.tiling import TileOptions

EXAMPLES = int(os.environ.get("RTSMAP_HYPOTHESIS_EXAMPLES", "0"))
MOST_TILES = 60


def law(examples: int = 100) -> settings:
    """Settings of a test that holds for every case: this many, or as many as the environment says."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@st.composite
def blobs(draw: st.DrawFn, largest_px: int = 56) -> npt.NDArray[np.bool_]:
    """A mask (h, w) with anything from nothing to winding, nested and full shapes, down to one pixel."""
    shape = draw(st.tuples(st.integers(1, largest_px), st.integers(1, largest_px)))
    kind = draw(st.sampled_from(["noise", "smooth", "discs", "paths"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.floats(0.05, 0.95))
    if kind == "noise":
        return rng.random(shape) < share
    if kind == "smooth":
        field = ndimage.gaussian_filter(rng.normal(size=shape), draw(st.floats(0.6, 8)))
        return field >= np.quantile(field, share)
    mask = np.zeros(shape, bool)
    for _ in range(draw(st.integers(1, 8))):
        mask |= _disc(rng, shape) if kind == "discs" else _path(rng, shape)
    return mask


def _disc(rng: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    row, col = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
    squared = (rows - row) ** 2 + (cols - col) ** 2
    radius = np.exp(rng.uniform(0, np.log(max(shape) + 1)))
    ring = rng.random() < 0.3
    return (squared < radius**2) & ~(ring & (squared < (0.6 * radius) ** 2))


def _path(rng: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A walk along rows and columns, one to three pixels wide: passes a seam many times."""
    mask = np.zeros(shape, bool)
    row, col = rng.integers(0, shape[0]), rng.integers(0, shape[1])
    for step in range(rng.integers(2, 12)):
        if step % 2:
            end = rng.integers(0, shape[0])
            mask[min(row, end) : max(row, end) + 1, col] = True
            row = end
        else:
            end = rng.integers(0, shape[1])
            mask[row, min(col, end) : max(col, end) + 1] = True
            col = end
    width = rng.integers(1, 4)
    return ndimage.binary_dilation(mask, np.ones((width, width)))


@st.composite
def tilings(draw: st.DrawFn, shape: tuple[int, int]) -> TileOptions:
    """Chips from a single pixel to larger than the grid, every overlap and origin that is allowed."""
    for_many = int(np.ceil(np.sqrt(4 * shape[0] * shape[1] / MOST_TILES)))
    chip = draw(st.integers(max(1, for_many), max(max(shape) + 2, for_many)))
    overlap = draw(st.integers(0, chip // 2))
    origin = draw(st.integers(0, chip - 1))
    return TileOptions(chip, overlap, origin)

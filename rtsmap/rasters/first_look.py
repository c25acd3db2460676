"""A first look at a raster, in a process of its own: whether it opens, is whole, and what values it holds.

Called through `rtsmap.sandbox`, so it imports little and answers in plain data. What it finds is judged in
`rtsmap.rasters.inspection`.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import Interleaving, MaskFlags
from rasterio.windows import Window

from rtsmap.atomic import is_text
from rtsmap.rasters.opening import AFRESH, GDAL_ERRORS, innermost, is_remote, opened

MAX_BLOCK_BYTES = 256 << 20
"""A block that decodes to more is refused: one damaged number in a header asks for all memory."""

NOT_UTF8 = "its name is not UTF-8, so that GDAL cannot open it; rename the file, or the folder that it is in"

LFS_POINTER = b"version https://git-lfs.github.com/spec/"

_SAMPLE_PX = 64
_SIDE = 5
_BANDS = 8
_SOURCES = 64
_SAMPLED_BYTES = 64 << 20
_SAMPLING_S = 2.0
_BLOCKS_CHECKED = 2000
_CORNER_PX = 16
_HALF = 128
"""Alpha, as GDAL puts it to 0..255, from which on a pixel counts as data."""


def look(path: str) -> dict[str, Any]:
    """What is wrong with a raster (`problems`, sentences), and a sample of its values by band.

    `bands` holds for each of the first bands: minimum, maximum, and the shares of values that are valid and
    finite. `half_transparent` is the share of pixels whose alpha is neither 0 nor full, `alphas` how many
    values of it there are. `white_corners` is how many corners of the raster hold the highest value of an
    unsigned type in every band and declare it no nodata. `whole` is True when every pixel was read; `unread`
    tells of windows that could not be.
    """
    found: dict[str, Any] = {"problems": [], "bands": [], "whole": False, "sampled": 0, "unread": []}
    found |= {"half_transparent": 0.0, "alphas": 0, "white_corners": 0}
    problem = _problem_before_opening(path)
    if problem:
        return {**found, "problems": [problem]}
    warnings.simplefilter("ignore")
    # one that does not open is refused with a sentence where it is used
    with suppress(*GDAL_ERRORS), rasterio.Env(GDAL_CACHEMAX=64, **AFRESH), opened(path) as src:
        if src.count and src.width and src.height:
            found["problems"] = list(_structural_problems(src, path))
            if not found["problems"]:
                found |= _sample(src, 2 if is_remote(path) else _SIDE)
    return found


def open_each(paths: list[str]) -> None:
    """Open and close rasters."""
    for path in paths:
        # one that does not open is refused with a sentence where it is used
        with suppress(*GDAL_ERRORS):
            rasterio.open(path).close()


def _problem_before_opening(path: str) -> str | None:
    if not is_text(path):
        return NOT_UTF8
    if is_remote(path):
        return None
    file = Path(path)
    if file.is_file():
        with file.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
        if not start:
            return "the file is empty (0 bytes)"
        if start == LFS_POINTER:
            return "this is a Git LFS pointer, not the file itself; fetch the content with 'git lfs pull'"
    return None


def _structural_problems(src: Any, path: str) -> Iterator[str]:
    yield from _huge_blocks(src, "its blocks")
    if src.driver == "GTiff" and Path(path).is_file():
        yield from _truncation(src, path)
    others = [name for name in src.files[:_SOURCES] if Path(name) != Path(path)]
    for name in others if src.driver == "VRT" else ():
        yield from _source_problems(name)


def _source_problems(name: str) -> Iterator[str]:
    try:
        with rasterio.open(name) as source:
            yield from _huge_blocks(source, f"blocks of {name}")
    except GDAL_ERRORS as exc:
        yield f"its source {name} cannot be opened ({exc})"


def block_bytes(src: Any) -> int:
    """Memory that one block takes once it is decoded, all bands of it where they are stored together."""
    together = src.count if src.interleaving == Interleaving.pixel else 1
    sizes = (
        rows * cols * np.dtype(dtype).itemsize
        for (rows, cols), dtype in zip(src.block_shapes, src.dtypes, strict=True)
    )
    return int(max(sizes) * together)


def _huge_blocks(src: Any, what: str) -> Iterator[str]:
    size = block_bytes(src)
    if size > MAX_BLOCK_BYTES:
        yield (
            f"{what} decode to {size / 2**20:,.0f} MiB each, at most {MAX_BLOCK_BYTES >> 20} are read: the "
            "header is damaged, or store it in tiles: gdal_translate -co TILED=YES IN OUT.tif"
        )


def _truncation(src: Any, path: str) -> Iterator[str]:
    """Blocks that the file's own index puts beyond its end: a transfer that broke off."""
    size = os.stat(path).st_size  # noqa: PTH116 - GDAL's name, as it is
    rows, cols = src.block_shapes[0]
    down, across = -(-src.height // rows), -(-src.width // cols)
    step = max(1, down * across // _BLOCKS_CHECKED)
    numbers = [*range(0, down * across, step), down * across - 1]
    missing = checked = 0
    for number in numbers:
        row, col = divmod(number, across)
        offset = src.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", 1)
        length = src.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", 1)
        if offset is not None:
            checked += 1
            missing += int(offset) + int(length or 0) > size
    if missing:
        yield (
            f"the file is truncated: {missing / checked:.0%} of its pixels lie beyond its end "
            f"({size:,} bytes); copy or download it again"
        )


def _sample(src: Any, side: int) -> dict[str, Any]:
    """Values of a lattice of windows, or of all pixels of a small raster."""
    bands = list(range(1, min(src.count, _BANDS) + 1))
    windows = list(_windows(src, side))
    totals = [_Values() for _ in bands]
    has_alpha = MaskFlags.alpha in src.mask_flag_enums[0]
    alphas = np.zeros(256, np.int64)
    unread, sampled, white_corners, end = [], 0, 0, time.monotonic() + _SAMPLING_S
    budget = max(1, _SAMPLED_BYTES // max(1, block_bytes(src)))
    for window in windows[:budget]:
        if time.monotonic() > end:
            break
        try:
            pixels = src.read(bands, window=window, masked=True)
            alpha = src.read_masks(1, window=window) if has_alpha else None
        except GDAL_ERRORS as exc:
            unread.append(f"rows {window.row_off}.., columns {window.col_off}..: {innermost(exc)}")
            continue
        sampled += 1
        if alpha is not None:
            pixels.mask = alpha < _HALF
            alphas += np.bincount(alpha.ravel(), minlength=256)
        white_corners += _white_corners(pixels, window, src)
        for band, values in zip(pixels, totals, strict=True):
            values.add(band)
    return {
        "bands": [values.told() for values in totals],
        "unread": unread,
        "sampled": sampled,
        "half_transparent": float(alphas[1:255].sum() / max(1, alphas.sum())),
        "alphas": int(np.count_nonzero(alphas)),
        "white_corners": white_corners,
        "whole": sampled == len(windows)
        and sum(w.width * w.height for w in windows) == src.width * src.height,
    }


def _white_corners(pixels: Any, window: Window, src: Any) -> int:
    """How many corners of the raster, within a window of it, are white in every band and not masked."""
    if pixels.dtype.kind != "u":
        return 0
    ends = (
        (window.row_off == 0, window.row_off + window.height == src.height),
        (window.col_off == 0, window.col_off + window.width == src.width),
    )
    first, last = slice(None, _CORNER_PX), slice(-_CORNER_PX, None)
    rows, cols = ([part for part, there in zip((first, last), end, strict=True) if there] for end in ends)
    white = pixels.filled(0) == np.iinfo(pixels.dtype).max
    return sum(bool(white[:, row, col].all()) for row in rows for col in cols)


def _windows(src: Any, side: int) -> Iterator[Window]:
    size = _SAMPLE_PX
    if src.width * src.height <= (side * size) ** 2:
        side = max(src.width, src.height)
    for row in _starts(src.height, size, side):
        for col in _starts(src.width, size, side):
            yield Window(col, row, min(size, src.width - col), min(size, src.height - row))


def _starts(length: int, size: int, count: int) -> list[int]:
    if length <= size * count:
        return list(range(0, length, size))
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


class _Values:
    """Minimum, maximum and counts over parts of a band."""

    def __init__(self) -> None:
        self.low, self.high, self.valid, self.finite, self.total = np.inf, -np.inf, 0, 0, 0

    def add(self, band: Any) -> None:
        values = band.compressed()
        self.total += band.size
        self.valid += values.size
        values = values[np.isfinite(values)]
        self.finite += values.size
        if values.size:
            self.low = min(self.low, float(values.real.min()))
            self.high = max(self.high, float(values.real.max()))

    def told(self) -> dict[str, Any]:
        seen = self.finite > 0
        return {
            "low": self.low if seen else None,
            "high": self.high if seen else None,
            "valid_share": self.finite / self.total if self.total else 0.0,
        }

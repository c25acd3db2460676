"""Large scenes made of small ones, for measurements: simulating 20,000 x 20,000 pixels takes hours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import transform_bounds

from rtsmap.rasters.tiling import Window
from rtsmap.rasters.writing import write_geotiff_blocks

BLOCK_PX = 1024


def repeat_scene(folder: Path, target: Path, size_px: int) -> tuple[Path, Path]:
    """A scene of `size_px` pixels a side, and its elevation model, from those of a simulated folder."""
    scene = repeat_raster(folder / "scene.tif", target / "scene.tif", (size_px, size_px))
    with rasterio.open(scene) as src, rasterio.open(folder / "dem.tif") as dem:
        left, bottom, right, top = transform_bounds(src.crs, dem.crs, *src.bounds)
        resolution = dem.transform.a
    shape = (int((top - bottom + 1000) / resolution), int((right - left + 1000) / resolution))
    corner = (left - 500, top + 500)
    return scene, repeat_raster(folder / "dem.tif", target / "dem.tif", shape, corner)


def repeat_raster(
    source: Path, target: Path, shape: tuple[int, int], corner: tuple[float, float] | None = None
) -> Path:
    """A raster of `shape` in which that of `source` is repeated like a wallpaper."""
    with rasterio.open(source) as src:
        pixels, affine, crs = src.read(), src.transform, src.crs.to_wkt()
        nodata, names = src.nodata, [name or "" for name in src.descriptions]
    left, top = corner or (affine.c, affine.f)
    geobox = GeoBox(shape, Affine(affine.a, 0, left, 0, affine.e, top), crs)
    write_geotiff_blocks(
        target,
        _blocks(pixels, shape),
        geobox,
        count=len(pixels),
        dtype=str(pixels.dtype),
        nodata=nodata,
        band_names=names if any(names) else (),
    )
    return target


def _blocks(pixels: npt.NDArray[Any], shape: tuple[int, int]) -> Iterator[tuple[Window, npt.NDArray[Any]]]:
    _, height, width = pixels.shape
    for row in range(0, shape[0], BLOCK_PX):
        for col in range(0, shape[1], BLOCK_PX):
            window = Window(row, col, min(row + BLOCK_PX, shape[0]), min(col + BLOCK_PX, shape[1]))
            rows = np.arange(window.row0, window.row1) % height
            cols = np.arange(window.col0, window.col1) % width
            yield window, pixels[:, rows[:, None], cols]

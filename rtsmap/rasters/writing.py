"""GeoTIFFs that are complete under their names, or not there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, Resampling
from rasterio.windows import Window as RasterioWindow

from rtsmap.atomic import whole_file
from rtsmap.errors import GridMismatchError, WriteError
from rtsmap.rasters.levels import Bools
from rtsmap.rasters.opening import (
    GDAL_ERRORS,
    innermost,
)
from rtsmap.rasters.tiling import Window


def write_geotiff(
    path: Path | str,
    array: npt.NDArray[Any],
    geobox: GeoBox,
    *,
    nodata: float | None = None,
    valid: Bools | None = None,
    band_names: Sequence[str] = (),
    overviews: bool = False,
    block_px: int = 256,
) -> None:
    """Write (C, H, W) or (H, W) as a tiled, compressed GeoTIFF: complete under its name, or not there.

    `valid` becomes the file's mask. Bands named red, green, blue are marked as colours.
    """
    bands = array[None] if array.ndim == 2 else array
    if bands.shape[1:] != tuple(geobox.shape):
        raise GridMismatchError(f"{path}: array of {bands.shape[1:]} on a grid of {tuple(geobox.shape)}")
    write_geotiff_blocks(
        path,
        [(Window(0, 0, *bands.shape[1:]), bands)],
        geobox,
        count=len(bands),
        dtype=str(bands.dtype),
        nodata=nodata,
        valid=valid,
        band_names=band_names,
        overviews=overviews,
        block_px=block_px,
    )


def write_geotiff_blocks(
    path: Path | str,
    blocks: Iterable[tuple[Window, npt.NDArray[Any]]],
    geobox: GeoBox,
    *,
    count: int,
    dtype: str,
    nodata: float | None = None,
    valid: Bools | None = None,
    band_names: Sequence[str] = (),
    overviews: bool = False,
    block_px: int = 256,
) -> None:
    """`write_geotiff` for scenes larger than memory: (window, pixels (C, h, w)) one after the other."""
    rgb = tuple(band_names[:3]) == ("red", "green", "blue")
    profile = _profile(geobox, count=count, dtype=dtype, nodata=nodata, rgb=rgb, block_px=block_px)
    factors = _overview_factors(tuple(geobox.shape), block_px) if overviews else []
    with whole_raster(Path(path), overwrite=True) as temporary:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            with rasterio.open(temporary, "w", **profile) as dst:
                _name_bands(dst, band_names)
                for window, pixels in blocks:
                    where = RasterioWindow(window.col0, window.row0, window.width, window.height)
                    dst.write(pixels, window=where)
                if valid is not None:
                    dst.write_mask(valid)
            if factors:
                with rasterio.open(temporary, "r+") as dst:
                    dst.build_overviews(factors, Resampling.average)
        _check_written(temporary, factors, valid)


@contextmanager
def whole_raster(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """`whole_file` for rasters, which are read through before they take their name.

    GDAL writes the last blocks when it closes a file, and rasterio does not tell when there is no room for
    them. Raises WriteError, which says what went wrong.
    """
    with whole_file(path, overwrite=overwrite) as temporary:
        try:
            yield temporary
            _read_through(temporary)
        # rasterio.shutil.copy ends in a SystemError when GDAL does not say why it failed
        except (*GDAL_ERRORS, SystemError, OSError, WriteError) as exc:
            raise WriteError(
                f"{path}: cannot be written ({innermost(exc)}). Free some space, or name another place; then "
                "run the same command again"
            ) from exc


def _read_through(path: Path) -> None:
    """Raise WriteError or one of GDAL's for a GeoTIFF with a block that is missing or cannot be read."""
    with rasterio.open(path) as src:
        levels = range(len(src.overviews(1)))
        _read_blocks(src)
    for level in levels:
        with rasterio.open(path, overview_level=level) as src:
            _read_blocks(src)


def _read_blocks(src: Any) -> None:
    for (row, col), window in src.block_windows(1):
        if src.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", 1) is None:
            raise WriteError("pixels are missing")
        src.read(window=window)


def _check_written(path: Path, factors: Sequence[int], valid: Bools | None) -> None:
    """Raise WriteError where overviews or the mask, which come last, did not come about."""
    with rasterio.open(path) as src:
        if src.overviews(1) != list(factors):
            raise WriteError("overviews are missing")
        if valid is not None and not np.array_equal(src.read_masks(1) > 0, valid):
            raise WriteError("its mask is missing")


def _profile(
    geobox: GeoBox, *, count: int, dtype: str, nodata: float | None, rgb: bool, block_px: int
) -> dict[str, Any]:
    block = max(16, block_px // 16 * 16)
    return {
        "driver": "GTiff",
        "height": geobox.shape[0],
        "width": geobox.shape[1],
        "count": count,
        "dtype": dtype,
        "crs": geobox.crs.to_wkt() if geobox.crs else None,
        "transform": geobox.affine if geobox.crs else None,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": block,
        "blockysize": block,
        "compress": "deflate",
        "predictor": 3 if np.dtype(dtype).kind == "f" else 2,
        "interleave": "pixel" if count > 1 else "band",
        "photometric": "RGB" if rgb else "MINISBLACK",
        "bigtiff": "IF_SAFER",
    }


def _name_bands(dst: Any, band_names: Sequence[str]) -> None:
    for index, name in enumerate(band_names, 1):
        dst.set_band_description(index, name)
    if tuple(band_names[:3]) == ("red", "green", "blue"):
        rest = [ColorInterp.undefined] * (dst.count - 3)
        dst.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, *rest]


def _overview_factors(shape: tuple[int, int], block_px: int) -> list[int]:
    factors: list[int] = []
    while max(shape) / 2 ** len(factors) > block_px:
        factors.append(2 ** (len(factors) + 1))
    return factors

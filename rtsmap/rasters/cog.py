"""Cloud-optimised GeoTIFFs, written block by block: rasters larger than memory that open at once anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio.shutil
from odc.geo.geobox import GeoBox

from rtsmap.rasters.tiling import Window
from rtsmap.rasters.writing import whole_raster, write_geotiff_blocks

BLOCK_PX = 512


def blocks_of(shape: tuple[int, int]) -> Iterable[Window]:
    """The blocks of a COG, row by row."""
    for row in range(0, shape[0], BLOCK_PX):
        for col in range(0, shape[1], BLOCK_PX):
            yield Window(row, col, min(row + BLOCK_PX, shape[0]), min(col + BLOCK_PX, shape[1]))


def write_cog(
    path: Path,
    blocks: Iterable[tuple[Window, npt.NDArray[np.float32]]],
    geobox: GeoBox,
    *,
    band_name: str,
    overwrite: bool = False,
) -> None:
    """Write one float32 band, NaN where nothing is known, from blocks (h, w), with averaged overviews.

    `path` is there in the end or not at all; what is needed meanwhile lies beside it. Raises InputError when
    it exists and `overwrite` is false, and WriteError when it cannot be written.
    """
    with whole_raster(path, overwrite=overwrite) as temporary:
        plain = temporary.with_name(f"{path.stem}.plain.tif")
        write_geotiff_blocks(
            plain,
            ((window, values[None]) for window, values in blocks),
            geobox,
            count=1,
            dtype="float32",
            nodata=float("nan"),
            band_names=[band_name],
            block_px=BLOCK_PX,
        )
        rasterio.shutil.copy(
            plain,
            temporary,
            driver="COG",
            blocksize=BLOCK_PX,
            compress="deflate",
            predictor="yes",
            overview_resampling="average",
            bigtiff="if_safer",
        )
        plain.unlink()

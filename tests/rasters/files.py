"""Small raster files for the tests of this folder."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.warp import transform_bounds

UTM = "EPSG:32608"
CORNER = (500_000.0, 7_700_000.0)
RNG = np.random.default_rng(5)


def geobox(shape, resolution_m=4.0, crs=UTM, corner=CORNER):
    return GeoBox(shape, Affine(resolution_m, 0, corner[0], 0, -resolution_m, corner[1]), crs)


def rgb(shape, low=1, high=255):
    return RNG.integers(low, high, (3, *shape)).astype(np.uint8)


def write(path: Path, array, resolution=1.0, *, crs=UTM, corner=CORNER, transform=None, mask=None, **profile):
    """Write (C, H, W) as rasterio does it by default: an independent way to make inputs."""
    bands = array if array.ndim == 3 else array[None]
    profile = {
        "driver": "GTiff",
        "count": len(bands),
        "height": bands.shape[1],
        "width": bands.shape[2],
        "dtype": bands.dtype,
        "crs": crs,
        "transform": transform or Affine(resolution, 0, corner[0], 0, -resolution, corner[1]),
        **profile,
    }
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as dst:
        dst.write(bands)
        if mask is not None:
            dst.write_mask(mask)
    return path


def sentinel_scene(path: Path, size: int, resolution: float, values: dict[int, int]) -> Path:
    """An RGB scene whose overview of factor f is filled with values[f], and the full level with values[1]."""
    write(
        path,
        np.full((3, size, size), values[1], np.uint8),
        resolution,
        photometric="RGB",
        tiled=True,
        blockxsize=128,
        blockysize=128,
    )
    for factor in sorted(set(values) - {1}):
        with rasterio.open(path, "r+") as dst:
            dst.write(np.full((3, size, size), values[factor], np.uint8))
        with rasterio.open(path, "r+") as dst:
            dst.build_overviews([factor], Resampling.nearest)
    with rasterio.open(path, "r+") as dst:
        dst.write(np.full((3, size, size), values[1], np.uint8))
    for index, factor in enumerate(sorted(set(values) - {1})):
        with rasterio.open(path, overview_level=index) as overview:
            found = np.unique(overview.read())
        if found.tolist() != [values[factor]]:
            raise AssertionError(f"overview {factor} holds {found}, wanted {values[factor]}")
    return path


def in_crs(box: GeoBox, crs: str, resolution: float) -> GeoBox:
    """A grid in another CRS over the same ground, by rasterio's reckoning."""
    edges = box.boundingbox
    left, bottom, right, top = transform_bounds(box.crs.to_wkt(), crs, *edges.bbox)
    shape = (round((top - bottom) / resolution), round((right - left) / resolution))
    return GeoBox(shape, Affine(resolution, 0, left, 0, -resolution, top), crs)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of the files in a folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Ranges, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class _Ranges(SimpleHTTPRequestHandler):
    """Serves pieces of files, as stores of COGs do."""

    def do_GET(self):
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = 0, len(content) - 1
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2]), last)
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(content[first : last + 1])

    def log_message(self, *args):
        """Say nothing."""

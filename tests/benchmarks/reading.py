"""What reading costs: bytes fetched of a 0.5 m scene mapped at 4 m, and the speed of blocks with terrain.

    python -m tests.benchmarks.reading [--size-px 16384]

The scene is served over HTTP by byte ranges, so every byte that GDAL fetches is counted. Prints, for a scene
with and without overviews: blocks and bytes fetched, their share of the file, time and memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.enums import Resampling
from scipy.ndimage import zoom

from rtsmap.rasters import sources, writing
from rtsmap.rasters.bands import OPTICAL_RGB, InputSpec
from rtsmap.rasters.chips import ChipReader
from rtsmap.rasters.elevation import ElevationReader
from rtsmap.rasters.tiling import Window

BLOCK_PX = 512


class RangeHandler(BaseHTTPRequestHandler):
    """Answers with byte ranges of the files of `folder`, and counts what it sends."""

    protocol_version = "HTTP/1.1"
    folder: Path
    sent: Any
    requests: Any

    def do_HEAD(self) -> None:
        """Size only."""
        self.answer(send=False)

    def do_GET(self) -> None:
        """A range, or all."""
        self.answer(send=True)

    def answer(self, *, send: bool) -> None:
        """Headers, and the bytes if wanted."""
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        start, end = 0, size
        if "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else size, size)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if send:
            with self.sent.get_lock():
                self.sent.value += end - start
                self.requests.value += 1
            with path.open("rb") as stream:
                stream.seek(start)
                self.wfile.write(stream.read(end - start))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve(folder: Path, port: Any, sent: Any, requests: Any) -> None:
    """Run in a process of its own: opening a dataset holds Python's lock, and would wait for a thread."""
    RangeHandler.folder, RangeHandler.sent, RangeHandler.requests = folder, sent, requests
    # connections are kept alive, so each needs a thread of its own
    server = ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler)
    port.value = server.server_port
    server.serve_forever()


class RangeServer:
    """Serves a folder, and knows how many bytes and requests that took."""

    def __init__(self, folder: Path) -> None:
        self.port, self.sent, self.requests = (multiprocessing.Value("q", 0) for _ in range(3))
        arguments = (folder, self.port, self.sent, self.requests)
        multiprocessing.Process(target=serve, args=arguments, daemon=True).start()
        while not self.port.value:
            time.sleep(0.05)

    def url(self, name: str) -> str:
        """The file as GDAL opens it."""
        return f"/vsicurl/http://127.0.0.1:{self.port.value}/{name}"


def make_scene(path: Path, size_px: int) -> None:
    """A 0.5 m RGB scene of smooth texture and noise, tiled and deflated, without overviews."""
    rng = np.random.default_rng(0)
    profile = {
        "driver": "GTiff", "count": 3, "height": size_px, "width": size_px, "dtype": "uint8",
        "crs": "EPSG:32608", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 7_700_000), "tiled": True,
        "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "compress": "deflate", "zlevel": 1,
        "interleave": "pixel", "photometric": "RGB", "bigtiff": "IF_SAFER",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as dst:
        for row in range(0, size_px, BLOCK_PX):
            coarse = zoom(rng.normal(110, 25, (3, 9, size_px // 64 + 1)), (1, 57, 64), order=1)
            texture = coarse[:, :BLOCK_PX, :size_px] + rng.normal(0, 6, (1, BLOCK_PX, size_px))
            window = rasterio.windows.Window(0, row, size_px, BLOCK_PX)
            dst.write(np.clip(texture, 1, 255).astype(np.uint8), window=window)


def make_dem(path: Path, grid: GeoBox) -> None:
    """A 2 m elevation model in EPSG:3413 around the grid."""
    box = grid.boundingbox
    xs, ys = np.meshgrid(np.linspace(box.left, box.right, 9), np.linspace(box.bottom, box.top, 9))
    xs, ys = Transformer.from_crs(32608, 3413, always_xy=True).transform(xs, ys)
    left, top = xs.min() - 200, ys.max() + 200
    width, height = (int((v.max() - v.min() + 400) / 2) for v in (xs, ys))
    rng = np.random.default_rng(1)
    relief = zoom(rng.normal(300, 15, (height // 100 + 2, width // 100 + 2)), 100, order=3)
    target = GeoBox((height, width), Affine(2, 0, left, 0, -2, top), "EPSG:3413")
    writing.write_geotiff(path, relief[:height, :width].astype(np.float32), target, nodata=-9999)


def measure_reading(server: RangeServer, path: Path, block_px: int) -> None:
    """Read the whole scene at 4 m in blocks of `block_px`, served and from disk; print what it took."""
    server.sent.value = server.requests.value = 0
    with rasterio.Env(VSI_CACHE=False, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        read_all(server.url(path.name), block_px)
    size = path.stat().st_size
    print(
        f"{path.name}: {server.sent.value:,} of {size:,} bytes fetched "
        f"({server.sent.value / size:.2%}) in {server.requests.value} requests"
    )
    used, wall = time.process_time(), time.perf_counter()
    pixels = read_all(str(path), block_px)
    used, wall = time.process_time() - used, time.perf_counter() - wall
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"  from disk: {pixels / 1e6:.2f} Mpx at 4 m in {used:.2f} s of CPU, {wall:.2f} s; "
        f"{size / 1e6 / used:.0f} MB of file per s of CPU; peak memory {memory_mib:.0f} MiB"
    )


def read_all(name: str, block_px: int) -> int:
    """Read a scene at 4 m block by block; the number of pixels."""
    info = sources.probe(name)
    grid = sources.run_grid(info, 4.0).geobox
    reader = ChipReader(name, None, InputSpec(4.0, (OPTICAL_RGB,)), grid)
    whole = Window(0, 0, *grid.shape)
    for row in range(0, grid.shape[0], block_px):
        for col in range(0, grid.shape[1], block_px):
            reader.read_block(Window(row, col, row + block_px, col + block_px).intersection(whole))
    return int(grid.shape[0] * grid.shape[1])


def measure_terrain(dem: Path, grid: GeoBox, block_px: int) -> None:
    """Elevation, then terrain of one block, per output pixel and core."""
    reader = ElevationReader(dem, grid)
    window = Window(0, 0, min(block_px, grid.shape[0]), min(block_px, grid.shape[1]))
    for name, read in (("elevation", reader.elevation), ("terrain", reader.relief)):
        used, wall = time.process_time(), time.perf_counter()
        read(window)
        used, wall = time.process_time() - used, time.perf_counter() - wall
        mpx = window.height * window.width / 1e6
        print(f"{name}: {mpx / used:.2f} Mpx/s of CPU, {mpx / wall:.2f} Mpx/s wall ({window.shape})")


def main() -> None:
    """Make the files, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-px", type=int, default=16384)
    parser.add_argument("--block-px", type=int, default=1024)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bare, cog = Path(folder, "without_overviews.tif"), Path(folder, "with_overviews.tif")
        make_scene(bare, arguments.size_px)
        cog.write_bytes(bare.read_bytes())
        with rasterio.Env(COMPRESS_OVERVIEW="DEFLATE"), rasterio.open(cog, "r+") as dst:
            dst.build_overviews([2, 4, 8, 16], Resampling.average)
        server = RangeServer(Path(folder))
        grid = sources.run_grid(sources.probe(bare), 4.0).geobox
        sides = [-(-arguments.size_px // factor // BLOCK_PX) for factor in (1, 8)]
        print(f"{sides[0] ** 2} blocks at full resolution, {sides[1] ** 2} at 1:8")
        for path in (cog, bare):
            measure_reading(server, path, arguments.block_px)
        make_dem(Path(folder, "dem.tif"), grid)
        measure_terrain(Path(folder, "dem.tif"), grid, 2048)


if __name__ == "__main__":
    main()

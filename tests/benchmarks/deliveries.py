"""One ground, delivered in many ways, gives one map: from a server, in other bands, depths and CRS.

    python -m tests.benchmarks.deliveries [--size-px 6000]

Discs at 70 N are painted at 2 m per pixel into scenes of each kind and mapped at 4 m by a thresholding
detector. Prints, and asserts:

1. a COG and six DEM tiles with overviews, served over HTTP by byte ranges: bytes served against file sizes;
   the same footprints as from disk;
2. 8-bit RGB, 16-bit BGRN and 8 bands of 11 bit: count and overlap of footprints;
3. Web Mercator, degrees, UTM and EPSG:3413: areas against each other and against the truth.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from pyproj import Geod
from rasterio.features import rasterize
from rasterio.warp import transform_bounds

from rtsmap.errors import BandError
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from rtsmap.runs.engine import Engine
from rtsmap.runs.mapping import PredictOptions, predict
from rtsmap.vectors.geopackage import read_map
from tests.benchmarks.reading import RangeServer

UTM = "EPSG:32608"
LEFT, TOP = 500_000.0, 7_775_000.0
PIXEL_M = 2.0
GROUND, SLUMP = (90, 96, 78), (190, 100, 80)
EXACT = {"simplify_m": 0.0, "min_speck_px": 1, "min_area_m2": 0.0, "second_look": False}


def finder(low: float = 140.0) -> Engine:
    """An engine around the thresholding detector."""
    return Engine(
        spec=InputSpec(4.0, (OPTICAL_RGB, TERRAIN)),
        chip_px=256,
        overlap_px=64,
        identity={"detector": f"red from {low}"},
        load=partial(ThresholdDetector, low=low, high=255),
    )


def discs(size_px: int) -> geopandas.GeoSeries:
    """Truth: discs of 40 to 250 m on a lattice, jittered, none over the edge."""
    random = np.random.default_rng(4)
    places = np.arange(500, size_px * PIXEL_M - 500, 700)
    shapes = [
        shapely.Point(LEFT + x + random.uniform(-60, 60), TOP - y + random.uniform(-60, 60)).buffer(
            random.uniform(40, 250), quad_segs=32
        )
        for x in places
        for y in places
    ]
    return geopandas.GeoSeries(shapes, crs=UTM)


def paint(truth: geopandas.GeoSeries, crs: str, size_px: int) -> tuple[npt.NDArray[np.uint8], Affine]:
    """Colours (3, H, W) of the discs' ground in a CRS, black beyond it, in pixels of about 2 m."""
    side_m = size_px * PIXEL_M
    edges = (LEFT, TOP - side_m, LEFT + side_m, TOP)
    left, bottom, right, top = transform_bounds(UTM, crs, *edges, densify_pts=101)
    x_size, y_size = pixel_size(crs)
    shape = (round((top - bottom) / y_size), round((right - left) / x_size))
    affine = Affine(x_size, 0, left, 0, -y_size, top)
    extent = geopandas.GeoSeries([shapely.segmentize(shapely.box(*edges), 100)], crs=UTM).to_crs(crs)
    burn = partial(rasterize, out_shape=shape, transform=affine)
    inside, slumps = burn(extent).astype(bool), burn(truth.segmentize(5).to_crs(crs)).astype(bool)
    noise = np.random.default_rng(1).integers(-8, 9, shape)
    planes = [np.where(slumps, high, low) + noise for low, high in zip(GROUND, SLUMP, strict=True)]
    return np.where(inside, np.stack(planes), 0).astype(np.uint8), affine


def pixel_size(crs: str) -> tuple[float, float]:
    """Pixels of about 2 m at 70 N."""
    if crs == "EPSG:4326":
        return PIXEL_M / (111_412 * np.cos(np.radians(70.08))), PIXEL_M / 111_560
    return (PIXEL_M / np.cos(np.radians(70.08)),) * 2 if crs == "EPSG:3857" else (PIXEL_M,) * 2


def write(path: Path, pixels: npt.NDArray[Any], affine: Affine, crs: str, **profile: Any) -> Path:
    """A cloud-optimised GeoTIFF."""
    kind = {"driver": "COG", "compress": "deflate", "overview_resampling": "average"} | profile
    shape = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
    with rasterio.open(path, "w", crs=crs, transform=affine, **shape, **kind) as dst:
        dst.write(pixels)
    return path


def footprints(scene: Path | str, out: Path, dem: Any = None, **options: Any) -> geopandas.GeoDataFrame:
    """A map of a scene."""
    low = options.pop("low", 140.0)
    predict(scene, dem, out=out, model=finder(low), options=PredictOptions(**EXACT, **options))
    return read_map(out)


def overlap(a: geopandas.GeoDataFrame, b: geopandas.GeoDataFrame) -> float:
    """Intersection over union of all the ground of two maps in one CRS."""
    first, second = a.geometry.union_all(), b.geometry.union_all()
    return first.intersection(second).area / first.union(second).area


def served(folder: Path, truth: geopandas.GeoSeries, size_px: int) -> None:
    """Must show 1."""
    pixels, affine = paint(truth, UTM, size_px)
    scene = write(folder / "scene.tif", pixels, affine, UTM)
    box = transform_bounds(UTM, "EPSG:3413", LEFT, TOP - size_px * PIXEL_M, LEFT + size_px * PIXEL_M, TOP)
    tiles = write_dems(folder, box)
    local = footprints(scene, folder / "disk.gpkg", tiles)
    server = RangeServer(folder)
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        remote_tiles = [server.url(tile.name) for tile in tiles]
        remote = footprints(server.url(scene.name), folder / "served.gpkg", remote_tiles)
    sizes = scene.stat().st_size + sum(tile.stat().st_size for tile in tiles)
    print(
        f"1. COG of {pixels.shape[2]} x {pixels.shape[1]} and six DEM tiles: {server.sent.value:,} of "
        f"{sizes:,} bytes served ({server.sent.value / sizes:.1%}) in {server.requests.value} requests; "
        f"{len(remote)} footprints served, {len(local)} from disk"
    )
    columns = ["score", "area_m2", "elevation_min_m", "slope_deg", "relief_m"]
    assert len(local) == len(truth)
    assert (local[columns].to_numpy() == remote[columns].to_numpy()).all()
    assert local.geometry.geom_equals(remote.geometry).all()


def write_dems(folder: Path, box: tuple[float, float, float, float]) -> list[Path]:
    """Six tiles of 2 m in EPSG:3413 that overlap by 100 m, over more ground than the scene's."""
    left, top = np.floor(box[0] / 100) * 100 - 2000, np.ceil(box[3] / 100) * 100 + 2000
    width, height = (int((end - start + 4200) // 600 * 300) for start, end in ((left, box[2]), (box[1], top)))
    rows, cols = np.mgrid[:height, :width].astype(np.float32)
    hills = 100 + 20 * np.sin(rows / 150) * np.cos(cols / 190) + 0.01 * cols
    paths = []
    for i in range(2):
        for j in range(3):
            row, col = i * height // 2 // 4 * 4, j * width // 3 // 4 * 4
            part = hills[row : row + height // 2 + 54, col : col + width // 3 + 54]
            part = part[: part.shape[0] // 4 * 4, : part.shape[1] // 4 * 4]
            corner = Affine(2, 0, left + 2 * col, 0, -2, top - 2 * row)
            path = folder / f"{i}_{j}_2m_v4.1_dem.tif"
            paths.append(write(path, part[None], corner, "EPSG:3413", nodata=-9999.0, predictor=3))
    return paths


def depths(folder: Path, truth: geopandas.GeoSeries, size_px: int) -> None:
    """Must show 2."""
    pixels, affine = paint(truth, UTM, size_px)
    random = np.random.default_rng(2)
    other = random.normal(100, 10, (5, *pixels.shape[1:])).clip(20, 220)
    red, green, blue = pixels.astype(float)
    coastal, yellow, edge, nir, nir2 = other
    kinds = {
        "8-bit RGB": (pixels, {}),
        "16-bit BGRN": ((np.stack([blue, green, red, nir]) * 37 + 900), {"red": 3, "green": 2, "blue": 1}),
        "8 bands of 11 bit": (
            (np.stack([coastal, blue, green, yellow, red, edge, nir, nir2]) * 7 + 60),
            {"red": 5, "green": 3, "blue": 2},
        ),
    }
    maps = {}
    for name, (planes, bands) in kinds.items():
        path = folder / f"{name.replace(' ', '_')}.tif"
        write(path, planes if not bands else planes.astype(np.uint16), affine, UTM, nodata=0)
        low = 140.0 if not bands else 116.0
        if bands:
            refused(path, folder)
        maps[name] = footprints(path, folder / "m.gpkg", bands=bands or None, low=low)
        (folder / "m.gpkg").unlink()
        for left_over in (folder / "m.rtsrun").glob("*"):
            left_over.unlink()
    panchromatic = write(folder / "pan.tif", pixels[:1], affine, UTM, nodata=0)
    refused(panchromatic, folder)
    first = maps["8-bit RGB"]
    for name, found in maps.items():
        iou = overlap(first, found)
        print(f"2. {name}: {len(found)} footprints, IoU with those of 8-bit RGB {iou:.4f}")
        assert len(found) == len(truth)
        assert iou > 0.98


def refused(path: Path, folder: Path) -> None:
    """A delivery that does not tell its bands is refused in a sentence."""
    try:
        footprints(path, folder / "refused.gpkg")
    except BandError as exc:
        print(f"   refused: {str(exc).replace(str(folder), '')}")
        return
    raise AssertionError(f"{path} was not refused")


def projections(folder: Path, truth: geopandas.GeoSeries, size_px: int) -> None:
    """Must show 3."""
    geod = Geod(ellps="WGS84")
    wanted = truth.segmentize(5).to_crs(4326).map(lambda disc: abs(geod.geometry_area_perimeter(disc)[0]))
    sums = {}
    for crs in (UTM, "EPSG:3413", "EPSG:3857", "EPSG:4326"):
        pixels, affine = paint(truth, crs, size_px)
        name = crs.replace(":", "_")
        found = footprints(
            write(folder / f"{name}.tif", pixels, affine, crs, nodata=0), folder / f"{name}.gpkg"
        )
        sums[crs] = found["area_m2"].sum()
        centres = geopandas.GeoDataFrame(geometry=found.representative_point().to_crs(UTM))
        pairs = centres.sjoin(geopandas.GeoDataFrame(geometry=truth), predicate="within")["index_right"]
        ratio = found.loc[pairs.index, "area_m2"].to_numpy() / wanted[pairs].to_numpy()
        large = wanted[pairs].to_numpy() > 50_000
        print(
            f"3. {crs}: mapped in {found.crs.to_string()}, {len(found)} of {len(truth)} footprints, area "
            f"{sums[crs] / wanted.sum() - 1:+.3%} of the truth; footprints above 5 ha "
            f"{ratio[large].min() - 1:+.2%} to {ratio[large].max() - 1:+.2%}, "
            f"all {ratio.min() - 1:+.2%} to {ratio.max() - 1:+.2%}"
        )
        assert len(found) == len(pairs) == len(truth)
        assert abs(sums[crs] / wanted.sum() - 1) < 0.01
    assert max(sums.values()) / min(sums.values()) < 1.01


def main() -> None:
    """Make the deliveries, map them, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-px", type=int, default=6000)
    size_px = parser.parse_args().size_px
    truth = discs(size_px)
    for part in (served, depths, projections):
        with tempfile.TemporaryDirectory() as folder:
            part(Path(folder), truth, size_px)


if __name__ == "__main__":
    main()

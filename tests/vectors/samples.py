"""Footprints, coverage and awkward shapes that the tests of this folder share."""

from __future__ import annotations

import geopandas
import numpy as np
import pyogrio
import shapely
import shapely.affinity
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from rtsmap.instances.attributes import (
    Footprint,
    centroid_lonlat,
    footprint_id,
    geodesic_area_m2,
    geodesic_perimeter_m,
)
from rtsmap.instances.coverage import FAILED, MAPPED, TileCoverage, core_cells, coverage_areas
from rtsmap.instances.rectangles import dissolve_boxes
from rtsmap.rasters.tiling import TileOptions, plan_tiles
from rtsmap.vectors.geopackage import FOOTPRINT_LAYER

POLAR = CRS("EPSG:3413")
UTM = CRS("EPSG:32608")
LOCAL = CRS("+proj=laea +lat_0=71.5 +lon_0=-128.25 +datum=WGS84 +units=m +type=crs")
GRID = GeoBox((300, 400), Affine(4.0, 0.0, -2_000_000.0, 0.0, -4.0, 1_000_000.0), POLAR)


def blob(seed, x=0.0, y=0.0, radius=80.0):
    random = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radii = radius * random.uniform(0.6, 1.0, angles.size)
    shape = shapely.Polygon(np.column_stack([x + radii * np.cos(angles), y + radii * np.sin(angles)]))
    if seed % 3 == 1:
        shape = shape.difference(shapely.Point(x, y).buffer(radius / 4))
    if seed % 3 == 2:
        shape = shape.union(shapely.affinity.translate(shape, 3 * radius, radius))
    return shape


def pixel_blob(seed, x=0.0, y=0.0, pixel=4.0, size=12):
    """The outline of random pixels: holes and parts that touch in corners."""
    rows, cols = np.nonzero(np.random.default_rng(seed).random((size, size)) < 0.6)
    shape = dissolve_boxes(np.stack([rows, cols, rows + 1, cols + 1], axis=1))
    return shapely.affinity.affine_transform(shape, (pixel, 0, 0, -pixel, x, y))


def footprint(polygon, crs=POLAR, number=0, **changes):
    lon, lat = centroid_lonlat(polygon, crs)
    heights = (10.25, 14.5, 4.25, 5.5, 123.0, -2.125) if number % 2 else (None,) * 6
    names = ("elevation_min_m", "elevation_max_m", "elevation_range_m", "slope_deg", "aspect_deg", "relief_m")
    values = {
        "id": footprint_id("a scene", GRID, (number, number)),
        "polygon": polygon,
        "crs": crs,
        "score": round(0.3 + 0.07 * (number % 10), 3),
        "area_m2": geodesic_area_m2(polygon, crs),
        "perimeter_m": geodesic_perimeter_m(polygon, crs),
        "centroid_lon": lon,
        "centroid_lat": lat,
        "n_parts": 1 + number % 4,
        "seam_unconfirmed": number % 5 == 0,
        "modalities": ("optical", "terrain") if number % 2 else ("optical",),
        "valid_share": 1.0 - 0.01 * number,
        **dict(zip(names, heights, strict=True)),
    }
    return Footprint(**{**values, **changes})


def footprints(count=12, crs=POLAR):
    corner = (-2_000_000, 1_000_000) if crs == POLAR else (400_000, 7_000_000)
    return [
        footprint(blob(k, corner[0] + 250 * k, corner[1] - 130 * (k % 4), 50 + 4 * k), crs, k)
        for k in range(count)
    ]


def coverage():
    tiles = plan_tiles(GRID.shape, TileOptions(128, 32))
    rows, cols = np.mgrid[:300, :400]
    valid = cols > 0.2 * rows + 20
    told = [
        TileCoverage(
            FAILED if tile.index == 3 else MAPPED,
            "cannot read block (3, 0): “IReadBlock” failed" if tile.index == 3 else "",
            core_cells(valid[tile.read.slices()], tile),
            4,
        )
        for tile in tiles
    ]
    return coverage_areas(tiles, told, GRID)


RECORD = {"rtsmap": "0.1.0", "scene": "Scène Пик 1.tif", "options": {"min_score": 0.5, "names": ["a", "b"]}}


def assert_same_geometries(got, wanted, tolerance=0.0):
    """Same shapes in the same order: equal normalised WKB, or vertices within a tolerance."""
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        a, b = as_multi(one).normalize(), as_multi(other).normalize()
        if tolerance:
            assert shapely.hausdorff_distance(a.boundary, b.boundary) <= tolerance
            assert a.symmetric_difference(b).area <= tolerance * b.length
        else:
            assert shapely.to_wkb(a) == shapely.to_wkb(b)


def as_multi(shape):
    return shape if shape.geom_type == "MultiPolygon" else shapely.MultiPolygon([shape])


def add_by_hand(path, polygon):
    """Add a slump to a map as QGIS does: an outline, and nothing in any column."""
    crs = pyogrio.read_info(path, layer=FOOTPRINT_LAYER)["crs"]
    frame = geopandas.GeoDataFrame(geometry=[polygon], crs=crs)
    pyogrio.write_dataframe(frame, path, layer=FOOTPRINT_LAYER, append=True, promote_to_multi=True)

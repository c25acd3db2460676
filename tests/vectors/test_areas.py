"""An area is the same ground on a grid, however its polygons are written."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from rtsmap.vectors.areas import read_area
from rtsmap.vectors.labels import Polygons, write_polygons

EDGE_M = np.pi * 6378137

SPLIT = [shapely.box(179, 70, 180, 72), shapely.box(-180, 70, -179, 72)]
ONE = [shapely.box(179, 70, 181, 72)]
WEST_OF_IT = [shapely.box(-181, 70, -179, 72)]
MERCATOR = [shapely.box(EDGE_M - 2e5, 1.0e7, EDGE_M + 2e5, 1.2e7)]
MERCATOR_SPLIT = [
    shapely.box(EDGE_M - 2e5, 1.0e7, EDGE_M, 1.2e7),
    shapely.box(-EDGE_M, 1.0e7, 2e5 - EDGE_M, 1.2e7),
]


def grid_across_180(crs, middle=180.0):
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(middle, 71.2)
    return GeoBox((1000, 1000), Affine(4, 0, x - 2000, 0, -4, y + 2000), crs)


@pytest.mark.parametrize("grid_crs", ["EPSG:3413", "EPSG:32601", "EPSG:32660"])
@pytest.mark.parametrize(
    ("crs", "shapes"),
    [
        ("EPSG:4326", SPLIT),
        ("EPSG:4326", ONE),
        ("EPSG:4326", WEST_OF_IT),
        ("EPSG:3857", MERCATOR),
        ("EPSG:3857", MERCATOR_SPLIT),
    ],
)
def test_an_area_across_the_antimeridian_is_whole(tmp_path, grid_crs, crs, shapes):
    grid = grid_across_180(grid_crs)
    path = tmp_path / "area.gpkg"
    write_polygons(path, Polygons(tuple(shapes), CRS(crs)))
    extent = shapely.box(*grid.boundingbox.bbox)
    assert extent.difference(read_area(path, grid).geometry).area < 1e-3


@pytest.mark.parametrize("middle", [179.99, -179.99])
def test_an_area_on_one_side_of_the_antimeridian_ends_there(tmp_path, middle):
    grid = grid_across_180("EPSG:3413", middle)
    extent = shapely.box(*grid.boundingbox.bbox)
    shares = []
    for number, side in enumerate(SPLIT):
        path = tmp_path / f"{number}.gpkg"
        write_polygons(path, Polygons((side,), CRS("EPSG:4326")))
        shares.append(extent.intersection(read_area(path, grid).geometry).area / extent.area)
    assert sum(shares) == pytest.approx(1)
    assert 0.5 < shares[0 if middle > 0 else 1] < 1

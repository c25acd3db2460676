from __future__ import annotations

import geopandas
import shapely
from odc.geo.crs import CRS

from rtsmap.instances.coverage import MAPPED, CoverageArea
from rtsmap.vectors.geopackage import COVERAGE_LAYER, read_map, write_map
from rtsmap.vectors.united import SceneMap, unite_maps
from tests.vectors.samples import UTM

EAST = CRS("EPSG:32612")


def test_ground_of_scenes_in_other_zones_keeps_its_outline(tmp_path):
    grounds = {UTM: shapely.box(400_000, 7_700_000, 440_000, 7_800_000)}
    grounds[EAST] = shapely.box(480_000, 7_700_000, 520_000, 7_800_000)
    maps = []
    for name, (crs, ground) in zip("ab", grounds.items(), strict=True):
        write_map(tmp_path / f"{name}.gpkg", [], crs, [CoverageArea(ground, MAPPED, "", 4e9)], {})
        maps.append(SceneMap(tmp_path / f"{name}.gpkg", name, None))
    unite_maps(maps, tmp_path / "all.gpkg", rule="best", record={})
    (united,) = read_map(tmp_path / "all.gpkg", COVERAGE_LAYER).geometry
    true = [
        geopandas.GeoSeries([ground], crs=crs.proj).segmentize(100).to_crs(3413).iloc[0]
        for crs, ground in grounds.items()
    ]
    # straight from corner to corner they would lie some metres off
    assert shapely.hausdorff_distance(united.boundary, shapely.union_all(true).boundary) < 1

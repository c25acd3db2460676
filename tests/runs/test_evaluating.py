from __future__ import annotations

import math

import numpy as np
import pyproj
import pytest
import shapely
from odc.geo.crs import CRS

from rtsmap.errors import InputError, OptionsError
from rtsmap.instances.attributes import geodesic_area_m2, geodesic_perimeter_m
from rtsmap.instances.coverage import FAILED, MAPPED, CoverageArea, TileCoverage, coverage_areas
from rtsmap.rasters.tiling import TileOptions, plan_tiles
from rtsmap.runs.evaluating import _cut_into_blocks, evaluate_maps, judged_map
from rtsmap.vectors.geopackage import read_layers, write_layers, write_map
from rtsmap.vectors.labels import Polygons, write_polygons
from tests.vectors.samples import GRID, POLAR, RECORD, add_by_hand, blob, footprint

WEST, NORTH = -2_000_000, 1_000_000


def slump(number):
    """Places well within the grid of 1600 m x 1200 m."""
    return blob(3 * number, WEST + 200 + 300 * (number % 5), NORTH - 250 - 300 * (number // 5), 60)


def written_map(path, polygons, status=MAPPED):
    tiles = plan_tiles(GRID.shape, TileOptions(128, 32))
    reason = "" if status == MAPPED else "broken"
    ground = coverage_areas(tiles, [TileCoverage(status, reason)] * len(tiles), GRID)
    write_map(path, [footprint(p, number=i) for i, p in enumerate(polygons)], POLAR, ground, RECORD)
    return path


def written_labels(path, polygons, crs=POLAR):
    write_polygons(path, Polygons(tuple(polygons), POLAR).to_crs(crs))
    return path


@pytest.mark.parametrize("crs", [POLAR, CRS("EPSG:4326"), CRS("EPSG:32610")])
def test_a_map_agrees_with_its_own_outlines_in_any_crs(tmp_path, crs):
    slumps = [slump(i) for i in range(10)]
    labels = written_labels(tmp_path / "labels.gpkg", slumps, crs)
    result = evaluate_maps([(written_map(tmp_path / "map.gpkg", slumps), labels)], block_km=0.5)
    assert (result.footprints, result.slumps) == (10, 10)
    for name in ("f1_50", "panoptic_quality", "pixel_iou", "outline_f1", "area_ratio"):
        assert result.figures[name].value == pytest.approx(1, abs=1e-3), name
    # the grid is 1600 m x 1200 m on a plane that stretches by about a hundredth here
    assert result.ground_km2 == pytest.approx(1.6 * 1.2, rel=0.05)
    low, high = result.figures["f1_50"].interval
    assert low == high == 1


def test_only_mapped_ground_counts(tmp_path):
    beyond = shapely.box(WEST - 3000, NORTH, WEST - 2900, NORTH + 100)
    half_in = shapely.box(WEST - 40, NORTH - 100, WEST + 60, NORTH - 50)
    labels = written_labels(tmp_path / "labels.gpkg", [slump(0), beyond, half_in])
    result = evaluate_maps([(written_map(tmp_path / "map.gpkg", [slump(0)]), labels)])
    assert result.slumps == 2
    assert any("1 of 3 lie beyond the mapped ground" in note for note in result.notes)
    failed = written_map(tmp_path / "failed.gpkg", [], FAILED)
    with pytest.raises(InputError, match="no mapped ground"):
        evaluate_maps([(failed, labels)])


@pytest.mark.parametrize("beyond_m", [40, 60])
def test_at_the_edge_of_mapped_ground_only_what_was_seen_is_judged(tmp_path, beyond_m):
    # the slump reaches beyond the ground by so many metres of its hundred; what was seen is mapped exactly
    x0 = WEST - beyond_m
    slumps = [slump(7), shapely.box(x0, NORTH - 200, x0 + 100, NORTH - 100)]
    seen = [slump(7), shapely.box(WEST, NORTH - 200, x0 + 100, NORTH - 100)]
    labels = written_labels(tmp_path / "labels.gpkg", slumps)
    result = evaluate_maps([(written_map(tmp_path / "map.gpkg", seen), labels)])
    counted = 2 if beyond_m < 50 else 1
    assert (result.footprints, result.slumps) == (counted, counted)
    for name in ("precision_30", "recall_30", "pixel_iou", "area_ratio"):
        assert result.figures[name].value == pytest.approx(1, abs=2e-3), name
    assert any("1 footprint beyond the mapped ground" in note for note in result.notes) == (counted == 1)


def test_ground_of_many_parts_is_cut_into_blocks_of_the_same_area():
    parts = [shapely.Point(3000 * x, 700 * x * x).buffer(900) for x in range(6)]
    ground = shapely.union_all(parts)
    blocks = _cut_into_blocks(ground, 1000)
    assert shapely.area(blocks).sum() == pytest.approx(ground.area)
    assert max(math.hypot(x1 - x0, y1 - y0) for x0, y0, x1, y1 in shapely.bounds(blocks)) <= 1415
    corners = {
        tuple(math.floor(v / 1000) for v in block.representative_point().coords[0]) for block in blocks
    }
    assert len(corners) == len(blocks)


def test_lengths_are_true_on_both_sides_of_180_degrees(tmp_path):
    x, y = pyproj.Transformer.from_crs("EPSG:4326", POLAR.proj, always_xy=True).transform(180, 71)
    ground = shapely.Point(x, y).buffer(2000, quad_segs=1)
    slump_of_200_m = shapely.box(x - 100, y - 100, x + 100, y + 100)
    mapped = [CoverageArea(ground, MAPPED, "", geodesic_area_m2(ground, POLAR))]
    write_map(tmp_path / "map.gpkg", [footprint(slump_of_200_m)], POLAR, mapped, RECORD)
    labels = written_labels(tmp_path / "labels.gpkg", [slump_of_200_m])
    judged, _ = judged_map(tmp_path / "map.gpkg", labels, 0.0, 5.0)
    sides = np.hypot(*np.diff(shapely.get_coordinates(judged.truth[0]), axis=0).T)
    assert sides == pytest.approx([geodesic_perimeter_m(slump_of_200_m, POLAR) / 4] * 4, rel=1e-3)


def test_ground_with_edges_of_many_kilometres_keeps_its_outline(tmp_path):
    ground = shapely.box(-2_000_000, 1_000_000, -1_980_000, 1_100_000)
    mapped = [CoverageArea(ground, MAPPED, "", geodesic_area_m2(ground, POLAR))]
    # in the middle of the long edge, where it bends most, and just within and just beyond it
    near = [shapely.box(x, 1_050_000, x + 40, 1_050_040) for x in (-1_980_050, -1_979_990)]
    write_map(tmp_path / "map.gpkg", [footprint(near[0])], POLAR, mapped, RECORD)
    labels = written_labels(tmp_path / "labels.gpkg", near)
    judged, notes = judged_map(tmp_path / "map.gpkg", labels, 0.0, 5.0)
    assert (len(judged.truth), len(judged.predicted)) == (1, 1)
    assert [note for note in notes if "1 of 2 lie beyond the mapped ground" in note]
    assert shapely.area(judged.truth).sum() == pytest.approx(geodesic_area_m2(near[0], POLAR), rel=1e-3)
    measured = shapely.area(list(judged.ground_by_group.values())).sum()
    assert measured == pytest.approx(geodesic_area_m2(shapely.segmentize(ground, 1000), POLAR), rel=1e-6)


def test_footprints_below_the_score_are_left_out(tmp_path):
    slumps = [slump(i) for i in range(4)]
    pair = written_map(tmp_path / "map.gpkg", slumps), written_labels(tmp_path / "labels.gpkg", slumps)
    all_of_them, some = evaluate_maps([pair]), evaluate_maps([pair], min_score=0.4)
    assert all_of_them.footprints == 4
    assert some.footprints == 2
    assert some.figures["recall_50"].value == 0.5


def test_slumps_added_by_hand_are_not_the_maps(tmp_path):
    pair = (
        written_map(tmp_path / "map.gpkg", [slump(0)]),
        written_labels(tmp_path / "labels.gpkg", [slump(1)]),
    )
    add_by_hand(pair[0], slump(1))
    result = evaluate_maps([pair])
    assert (result.footprints, result.figures["recall_30"].value) == (1, 0)
    assert any("1 footprint without a score" in note for note in result.notes)


def test_footprints_that_a_review_has_rejected_are_no_truth(tmp_path):
    path = written_map(tmp_path / "map.gpkg", [slump(k) for k in range(4)])
    layers = read_layers(path)
    layers.footprints["review"] = ["accepted", "rejected", "accepted", "accepted"]
    write_layers(tmp_path / "reviewed.gpkg", layers)
    result = evaluate_maps([(path, tmp_path / "reviewed.gpkg")])
    assert (result.slumps, result.figures["precision_50"].value) == (3, 0.75)
    assert "1 of 4 features rejected by a review" in " ".join(result.notes)


def test_ground_without_slumps_counts_false_alarms(tmp_path):
    labels = written_labels(tmp_path / "labels.gpkg", [])
    result = evaluate_maps([(written_map(tmp_path / "map.gpkg", [slump(1)]), labels)])
    wanted = 100 / result.ground_km2
    assert result.figures["false_per_100_km2_empty"].value == pytest.approx(wanted)
    assert any("ground without slumps" in note for note in result.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_km": 0}, "block_km"),
        ({"block_km": math.nan}, "block_km"),
        ({"block_km": math.inf}, "block_km"),
        ({"min_score": 2}, "min_score"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(OptionsError, match=message):
        evaluate_maps([], **options)

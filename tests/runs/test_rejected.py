from __future__ import annotations

import numpy as np
import pytest
import shapely
from odc.geo.crs import CRS

from rtsmap.errors import LabelError
from rtsmap.mm.packs import read_index
from rtsmap.rasters import sources
from rtsmap.rasters.tiling import Window
from rtsmap.runs.chip_packs import PackOptions, pack
from rtsmap.runs.chipping import ChipOptions, cut_scene
from rtsmap.runs.rejected import RejectedPlaces
from rtsmap.simulate.presets import find_preset
from rtsmap.simulate.scenes import write_scene
from rtsmap.vectors.labels import Polygons, read_polygons, write_polygons

RESOLUTION_M = find_preset("demo").ground_sample_distance_m


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_scene("demo", 3, tmp_path_factory.mktemp("scene"), size_px=192)


def square(grid, row, col, side=10):
    """A square of the grid's CRS that covers these pixels."""
    (x0, y0), (x1, y1) = (grid.affine * at for at in ((col, row), (col + side, row + side)))
    return shapely.box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))


@pytest.fixture
def reviewed(tmp_path, scene):
    """A map in degrees: one footprint rejected, one accepted, one open, one rejected on a true slump."""
    grid = sources.probe(scene.scene).geobox
    truth = read_polygons(scene.truth).to_crs(grid.crs).geometries
    free = next(
        (row, col)
        for row in range(10, 170, 10)
        for col in range(10, 170, 10)
        if all(square(grid, row, col).disjoint(slump) for slump in truth)
    )
    largest = max(truth, key=lambda slump: slump.area)
    shapes = (square(grid, *free), square(grid, 100, 100), square(grid, 20, 100), largest)
    columns = {"review": ["rejected", "accepted", None, "rejected"]}
    path = tmp_path / "map.gpkg"
    write_polygons(path, Polygons(shapes, grid.crs, columns).to_crs(CRS("EPSG:4326")), "footprints")
    return path, free


def test_rejected_footprints_are_places_of_the_images_they_lie_on(tmp_path, scene, reviewed):
    path, (row, col) = reviewed
    folder = scene.scene.parent
    options = PackOptions(resolution_m=RESOLUTION_M, reviewed=path)
    (report,) = pack([folder], tmp_path / "scene.pack", options)
    assert any("2 rejected footprints, packed as 1 places" in note for note in report.notes)
    (image,) = read_index(tmp_path / "scene.pack")
    (place,) = image.hard
    wanted = Window(row, col, row + 10, col + 10)
    assert place.intersection(wanted) == wanted
    assert place.height <= 12
    assert place.width <= 12

    chips = ChipOptions(RESOLUTION_M, chip_px=96, overlap_px=0)
    cut_scene(scene.scene, out=tmp_path / "chips", labels=scene.truth, options=chips)
    pack([tmp_path / "chips"], tmp_path / "chips.pack", PackOptions(reviewed=path))
    seen = [(image.name, place) for image in read_index(tmp_path / "chips.pack") for place in image.hard]
    assert 1 <= len(seen) <= 4
    assert sum(place.height * place.width for _, place in seen) >= 100


def test_rejected_ground_elsewhere_is_told(tmp_path, scene, reviewed):
    path, _ = reviewed
    far = read_polygons(path)
    moved = tuple(shapely.transform(g, lambda xy: xy + np.array([0, 2])) for g in far.geometries)
    write_polygons(tmp_path / "far.gpkg", Polygons(moved, far.crs, far.columns), "footprints")
    options = PackOptions(resolution_m=RESOLUTION_M, reviewed=tmp_path / "far.gpkg")
    (report,) = pack([scene.scene.parent], tmp_path / "a.pack", options)
    assert any("none lies on these images" in note for note in report.notes)


def test_a_map_without_a_review_is_refused(tmp_path, scene, reviewed):
    with pytest.raises(LabelError, match="no column 'review'"):
        RejectedPlaces.read(scene.truth)
    polygons = read_polygons(reviewed[0])
    for verdict, told in (("accepted", "none of 4 footprints"), ("maybe", "'maybe'")):
        path = tmp_path / f"{verdict}.gpkg"
        write_polygons(path, Polygons(polygons.geometries, polygons.crs, {"review": [verdict] * 4}), "a")
        with pytest.raises(LabelError, match=told):
            RejectedPlaces.read(path)


def test_a_place_cut_by_the_border_ends_there(scene, reviewed):
    grid = sources.probe(scene.scene).geobox
    places = RejectedPlaces(Polygons((square(grid, -5, 186),), grid.crs))
    (window,) = places.windows(grid, np.zeros(grid.shape, np.int16))
    assert window == Window(0, 186, 5, 192)

"""Maps of an area are maps of all, cut by the stated rule; what lies wholly outside is not looked at."""

from __future__ import annotations

from dataclasses import replace

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rtsmap.cli.main import app
from rtsmap.errors import InputError, LabelError, PlanMismatchError
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.runs import mapping
from rtsmap.runs.chipping import INDEX, ChipOptions, cut_scene
from rtsmap.runs.in_process import InProcess
from rtsmap.runs.mapping import PredictOptions, predict
from rtsmap.runs.spreading import merge_run, predict_with
from rtsmap.vectors.geopackage import read_layers
from tests.runs.blob_scenes import LEFT, RESOLUTION_M, TOP, blob_labels, engine, write_dem, write_scene
from tests.runs.map_content import rows

EXACT = PredictOptions(simplify_m=0, min_speck_px=1, min_area_m2=0)
SHAPE = (420, 560)


class Watching:
    """A thresholding detector that remembers where it looked."""

    def __init__(self):
        self.windows = []

    def detect(self, chips):
        self.windows += [chip.tile.read for chip in chips]
        return ThresholdDetector(low=160, high=255).detect(chips)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene") / "s.tif", blob_labels(SHAPE, 5, 150))


@pytest.fixture(scope="module")
def whole(scene, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "m.gpkg"
    predict(scene.path, out=out, model=engine(), options=EXACT)
    return read_layers(out)


def on_ground(shape):
    """A shape in pixels (x = column, y = row) as one in metres."""
    return shapely.transform(shape, lambda xy: xy * [RESOLUTION_M, -RESOLUTION_M] + [LEFT, TOP])


def write(path, shapes, crs="EPSG:4326"):
    frame = geopandas.GeoSeries([on_ground(shape) for shape in shapes], crs="EPSG:32608")
    frame.segmentize(20).to_crs(crs).to_file(path)
    return path


points = st.tuples(st.integers(-60, SHAPE[1] + 60), st.integers(-60, SHAPE[0] + 60))
discs = st.builds(lambda at, size: shapely.Point(at).buffer(size, quad_segs=3), points, st.integers(20, 150))


@pytest.mark.parametrize("given_as", ["scene", "dem", "aoi"])
def test_an_input_is_never_the_output(scene, tmp_path, given_as):
    dem = write_dem(tmp_path / "dem.tif", scene.geobox, share=0.5)
    aoi = write(tmp_path / "site.gpkg", [shapely.Point(200, 200).buffer(80)])
    out = {"out": aoi} if given_as == "aoi" else {"out": tmp_path / "m.gpkg"}
    if given_as != "aoi":
        out["probability"] = {"scene": scene.path, "dem": dem}[given_as]
    taken = out.get("probability", aoi)
    before = taken.read_bytes()
    with pytest.raises(InputError, match=rf"{taken.name} is read to make the output"):
        predict(scene.path, str(tmp_path / "d*.tif"), model=engine(), aoi=aoi, overwrite=True, **out)
    assert not list(tmp_path.glob("*.rtsrun"))
    with pytest.raises(InputError, match=rf"{taken.name} is read to make the output"):
        predict_with(InProcess(), scene.path, dem, model=engine(), inputs={"aoi": aoi}, overwrite=True, **out)
    predict(scene.path, dem, out=tmp_path / "a.gpkg", model=engine(), options=EXACT, aoi=aoi)
    with pytest.raises(InputError, match=rf"{taken.name} is read to make the output"):
        merge_run(tmp_path / "a.rtsrun", model=engine(), overwrite=True, **out)
    assert taken.read_bytes() == before


@given(aoi=st.lists(discs, max_size=3), shut=st.lists(discs, max_size=3), crs=st.sampled_from([4326, 3413]))
@example(aoi=[shapely.Point(334, 317).buffer(26, 3)], shut=[shapely.Point(276, 284).buffer(50, 3)], crs=4326)
@settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_the_map_of_an_area_is_that_of_all_cut_by_the_rule(scene, whole, tmp_path_factory, *, aoi, shut, crs):
    folder = tmp_path_factory.mktemp("area")
    extent = shapely.box(0, 0, SHAPE[1], SHAPE[0])
    ground = shapely.intersection(extent, shapely.union_all(aoi)) if aoi else extent
    wanted = on_ground(shapely.difference(ground, shapely.union_all(shut)))
    files = {
        "aoi": write(folder / "aoi.gpkg", aoi, crs) if aoi else None,
        "exclude": write(folder / "shut.geojson", shut) if shut else None,
    }
    watching = Watching()
    command = {"out": folder / "m.gpkg", "model": engine(detector=watching), "options": EXACT, **files}
    if wanted.is_empty:
        with pytest.raises(InputError, match=r"does not meet the scene|nothing is left"):
            predict(scene.path, **command)
        return
    report = predict(scene.path, **command)
    found = read_layers(folder / "m.gpkg")
    centres = whole.footprints.representative_point()
    # a ten-thousandth of a pixel is what a way through another CRS may move an outline
    on_border = centres.distance(wanted.boundary) < 1e-3
    assert not on_border.any()
    assert rows(found.footprints) == rows(whole.footprints[centres.within(wanted)])
    by_status = found.coverage.dissolve("status").geometry
    mapped = by_status.get("mapped", shapely.Polygon())
    assert mapped.symmetric_difference(wanted).area < 1
    assert found.coverage.area.sum() == pytest.approx(SHAPE[0] * SHAPE[1] * 16)
    told = set(found.coverage.loc[found.coverage["status"] == "left out", "reason"])
    assert told <= ({"outside the area of interest"} if aoi else set()) | ({"excluded"} if shut else set())
    assert report.left_out == found.run_record["tiles_left_out"]
    for window in watching.windows[: report.tiles - report.left_out]:
        box = on_ground(shapely.box(window.col0, window.row0, window.col1, window.row1))
        assert box.distance(wanted) <= 500 + 1e-3


def test_tiles_away_from_the_area_are_not_looked_at(scene, tmp_path):
    small = write(tmp_path / "aoi.shp", [shapely.box(0, 0, 40, 40)])
    watching = Watching()
    report = predict(
        scene.path, out=tmp_path / "m.gpkg", model=engine(32, 0, watching), options=EXACT, aoi=small
    )
    # 500 m are 125 pixels
    assert report.left_out > 100
    assert max(max(w.row0, w.col0) for w in watching.windows) <= 40 + 125


def test_no_detector_is_asked_where_all_is_left_out_of_a_block(scene, tmp_path):
    small = write(tmp_path / "aoi.shp", [shapely.box(0, 0, 40, 40)])
    options = replace(EXACT, shard_tiles=1)
    report = predict(scene.path, out=tmp_path / "m.gpkg", model=engine(), options=options, aoi=small)
    again = predict(
        scene.path, out=tmp_path / "m.gpkg", model=engine(), options=options, aoi=small, overwrite=True
    )
    assert again.shards_computed == 0
    assert (again.left_out, again.footprints) == (report.left_out, report.footprints)


def test_another_area_is_refused_by_name_and_the_same_in_another_format_is_not(scene, tmp_path):
    shapes = [shapely.box(10, 10, 200, 200), shapely.box(250, 100, 300, 390)]
    command = {"out": tmp_path / "m.gpkg", "model": engine(), "options": EXACT, "overwrite": True}
    predict(scene.path, aoi=write(tmp_path / "a.gpkg", shapes), **command)
    report = predict(scene.path, aoi=write(tmp_path / "a.shp", shapes[::-1]), **command)
    assert report.shards_computed == 0
    other = write(tmp_path / "b.gpkg", shapes[:1])
    with pytest.raises(PlanMismatchError, match=r"inputs\.aoi\.sha256_of_polygons was"):
        predict(scene.path, aoi=other, **command)
    with pytest.raises(PlanMismatchError, match=r"inputs\.aoi\.sha256_of_polygons was .* now absent"):
        predict(scene.path, **command)


def test_areas_that_cannot_be_are_refused(scene, tmp_path):
    command = {"out": tmp_path / "m.gpkg", "model": engine(), "options": EXACT}
    away = write(tmp_path / "away.gpkg", [shapely.box(5000, 5000, 6000, 6000)])
    with pytest.raises(InputError, match="does not meet the scene"):
        predict(scene.path, aoi=away, **command)
    with pytest.raises(InputError, match="nothing is left to map"):
        predict(scene.path, exclude=write(tmp_path / "all.gpkg", [shapely.box(-9, -9, 900, 900)]), **command)
    with pytest.raises(LabelError, match="no such file"):
        predict(scene.path, aoi=tmp_path / "none.gpkg", **command)


def test_chips_are_those_that_touch_the_area(scene, tmp_path):
    area = shapely.box(100, 100, 300, 200)
    shut = shapely.box(0, 0, 130, 500)
    files = {"aoi": write(tmp_path / "a.gpkg", [area]), "exclude": write(tmp_path / "x.gpkg", [shut])}
    options = ChipOptions(4.0, 64)
    report = cut_scene(scene.path, out=tmp_path / "c", options=options, **files)
    index = geopandas.read_parquet(tmp_path / "c" / INDEX)
    cut_scene(scene.path, out=tmp_path / "all", options=options)
    everything = geopandas.read_parquet(tmp_path / "all" / INDEX)
    wanted = on_ground(shapely.difference(area, shut))
    meets = everything.intersection(wanted.buffer(1e-3)).area > 0.1
    assert index["chip"].tolist() == everything["chip"][meets].tolist()
    assert report.left_out == len(everything) - len(index) > 0


def test_the_command_takes_several_files(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(mapping, "engine_of", lambda *_, **__: engine())
    files = [write(tmp_path / f"{i}.gpkg", [shapely.box(i * 200, 0, i * 200 + 100, 100)]) for i in (0, 1)]
    lake = write(tmp_path / "lake.kml", [shapely.Point(50, 50).buffer(30)])
    command = ["predict", str(scene.path), "-o", str(tmp_path / "m.gpkg"), "--exclude", str(lake)]
    done = CliRunner().invoke(app, [*command, *(word for file in files for word in ("--aoi", str(file)))])
    assert done.exit_code == 0, done.stderr
    assert "outside the area" in done.stderr
    coverage = read_layers(tmp_path / "m.gpkg").coverage.set_index("reason")
    assert coverage.area["excluded"] == pytest.approx(np.pi * 120**2, rel=0.01)
    assert coverage.loc[[""]].area.sum() == pytest.approx(2 * 400**2 - np.pi * 120**2, rel=0.01)

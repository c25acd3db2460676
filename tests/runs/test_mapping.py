from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rtsmap
from rtsmap.errors import EngineError, InputError, OptionsError, PlanMismatchError, ShardError
from rtsmap.instances.calibration import tempered
from rtsmap.instances.detections import Detection
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.rasters.chips import Chip, ChipReader
from rtsmap.rasters.tiling import Window
from rtsmap.runs import detecting
from rtsmap.runs.in_process import InProcess
from rtsmap.runs.mapping import PredictOptions, predict
from rtsmap.runs.spreading import predict_with
from rtsmap.vectors.geopackage import read_layers, read_map
from tests.runs.blob_scenes import BlobScene, blob_labels, engine, write_dem, write_scene
from tests.runs.map_content import content, rows

EXACT = PredictOptions(simplify_m=0, min_speck_px=1, min_area_m2=0)


@dataclass
class CountingDetector:
    """A thresholding detector that remembers which tiles it saw, and fails where it is told to."""

    fails: frozenset[int] = frozenset()
    error: type[Exception] = RuntimeError
    seen: list[int] = field(default_factory=list)

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        self.seen += [chip.tile.index for chip in chips]
        if self.fails.intersection(chip.tile.index for chip in chips):
            raise self.error("the network fell over")
        return ThresholdDetector(low=160, high=255).detect(chips)


@pytest.fixture
def scene(tmp_path) -> BlobScene:
    return write_scene(tmp_path / "scene.tif", blob_labels((150, 210), 3, 25))


@given(
    shape=st.tuples(st.integers(20, 150), st.integers(20, 150)),
    seed=st.integers(0, 1000),
    chip=st.integers(16, 64),
    share=st.floats(0, 0.5),
    origin_share=st.floats(0, 0.99),
    shard=st.integers(1, 4),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_map_does_not_depend_on_tiles_or_shards(
    tmp_path_factory, *, shape, seed, chip, share, origin_share, shard
):
    folder = tmp_path_factory.mktemp("run")
    scene = write_scene(folder / "scene.tif", blob_labels(shape, seed, 12))
    dem = write_dem(folder / "dem.tif", scene.geobox, share=0.6)
    tiled = replace(EXACT, origin_px=int(origin_share * chip), shard_tiles=shard)
    predict(scene.path, dem, out=folder / "one.gpkg", model=engine(256, 0), options=EXACT)
    predict(scene.path, dem, out=folder / "many.gpkg", model=engine(chip, int(share * chip)), options=tiled)
    one, many = read_layers(folder / "one.gpkg"), read_layers(folder / "many.gpkg")
    assert len(one.footprints) == scene.labels.max()
    one_rows = rows(one.footprints, without=("n_parts",), digits=6)
    assert one_rows == rows(many.footprints, without=("n_parts",), digits=6)
    assert one.coverage.geometry.union_all().equals(many.coverage.geometry.union_all())


def test_footprints_are_the_blobs(tmp_path, scene):
    predict(scene.path, out=tmp_path / "m.gpkg", model=engine(), options=EXACT)
    found = read_map(tmp_path / "m.gpkg")
    areas_px = np.sort(found.geometry.area.to_numpy() / 16)
    assert areas_px == pytest.approx(np.sort(np.bincount(scene.labels.ravel())[1:]), abs=1e-6)
    holes = found.geometry.representative_point()
    cols, rows_ = ~scene.geobox.affine * (holes.x.to_numpy(), holes.y.to_numpy())
    hit = scene.labels[rows_.astype(int), cols.astype(int)]
    assert sorted(hit) == list(range(1, scene.labels.max() + 1))
    assert found["valid_share"].eq(1).all()


def test_a_scene_smaller_than_a_chip_is_mapped(tmp_path):
    scene = write_scene(tmp_path / "s.tif", blob_labels((9, 13), 1, 2, radius=4))
    report = predict(scene.path, out=tmp_path / "m.gpkg", model=engine(256, 64), options=EXACT)
    assert report.tiles == 1
    assert report.footprints == scene.labels.max() > 0


def test_without_and_with_half_an_elevation_model(tmp_path, scene):
    dem = write_dem(tmp_path / "dem.tif", scene.geobox, share=0.5)
    predict(scene.path, out=tmp_path / "none.gpkg", model=engine())
    predict(scene.path, dem, out=tmp_path / "half.gpkg", model=engine())
    none, half = read_map(tmp_path / "none.gpkg"), read_map(tmp_path / "half.gpkg")
    assert none["elevation_min_m"].isna().all()
    assert none["modalities"].eq("optical").all()
    middle = scene.geobox.boundingbox.left + scene.geobox.boundingbox.span_x / 2
    with_dem = half["modalities"].eq("optical,terrain")
    assert half.loc[with_dem].geometry.bounds["minx"].max() < middle + 8
    assert half.loc[~with_dem].geometry.bounds["minx"].min() > middle - 8
    assert with_dem.any()
    assert not with_dem.all()
    assert half.loc[with_dem, "elevation_min_m"].notna().all()
    assert half.loc[~with_dem, "elevation_min_m"].isna().all()
    # the plane rises to the east: downhill is west
    whole = half[with_dem & (half.geometry.bounds["maxx"] < middle - 40)]
    assert whole["slope_deg"].to_numpy() == pytest.approx(np.degrees(np.arctan(0.1)), abs=0.05)
    assert whole["aspect_deg"].to_numpy() == pytest.approx(270, abs=1)


def test_coverage_says_where_there_was_no_data(tmp_path):
    """A wedge of nodata: mapped and no data tile the scene, each right to a cell of 4 px at the border."""
    labels = blob_labels((200, 260), 5, 10)
    valid = np.add.outer(np.arange(200), np.arange(260)) > 150
    scene = write_scene(tmp_path / "s.tif", labels, valid)
    predict(scene.path, out=tmp_path / "m.gpkg", model=engine(), options=EXACT)
    layers = read_layers(tmp_path / "m.gpkg")
    by_status = layers.coverage.dissolve("status").geometry
    assert set(by_status.index) == {"mapped", "no data"}
    assert by_status["mapped"].intersection(by_status["no data"]).area == pytest.approx(0, abs=1e-3)
    assert by_status.area.sum() == pytest.approx(200 * 260 * 16)
    border_px = 151 * 2 * 4
    assert abs(by_status["mapped"].area / 16 - valid.sum()) < border_px
    # nothing is drawn where nothing was seen
    seen = shapely.area(layers.footprints.geometry.to_numpy()).sum() / 16
    assert seen == pytest.approx(np.count_nonzero(labels[valid]))


def test_tiles_with_too_little_data_are_skipped_and_counted(tmp_path):
    labels = np.zeros((128, 128), int)
    labels[100:110, 100:110] = 1
    valid = np.ones((128, 128), bool)
    valid[64:, 64:] = False
    valid[100:110, 100:110] = True
    scene = write_scene(tmp_path / "s.tif", labels, valid)
    options = replace(EXACT, min_valid_share=0.2)
    report = predict(scene.path, out=tmp_path / "m.gpkg", model=engine(64, 0), options=options)
    assert (report.tiles, report.no_data, report.footprints) == (4, 1, 0)
    coverage = read_layers(tmp_path / "m.gpkg").coverage
    assert sorted(coverage["status"]) == ["mapped", "no data", "no data"]
    assert any("20.0%" in reason for reason in coverage["reason"])


@dataclass(frozen=True, slots=True)
class EverythingDetector:
    """Takes every chip for one slump, data or not."""

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        return [
            [Detection(0.9, c.tile.read, np.full(c.tile.read.shape, 255, np.uint8), c.tile.index)]
            for c in chips
        ]


def test_a_slump_in_pieces_with_a_hole_has_the_length_of_all_its_rings(tmp_path):
    @dataclass(frozen=True, slots=True)
    class PiecesDetector:
        def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
            mask = np.zeros((40, 40), np.uint8)
            mask[5:15, 5:15] = mask[20:35, 20:35] = 255
            mask[25:30, 25:30] = 0
            return [[Detection(0.9, Window(0, 0, 40, 40), mask, c.tile.index)] for c in chips]

    scene = write_scene(tmp_path / "s.tif", np.zeros((60, 60), int))
    predict(scene.path, out=tmp_path / "m.gpkg", model=engine(64, 0, PiecesDetector()), options=EXACT)
    (perimeter_m,) = read_map(tmp_path / "m.gpkg")["perimeter_m"]
    assert perimeter_m == pytest.approx(4 * 4 * (10 + 15 + 5), rel=1e-3)


def test_valid_share_is_that_of_the_imagery_under_the_footprint(tmp_path):
    valid = np.ones((100, 100), bool)
    valid[:30] = False
    scene = write_scene(tmp_path / "s.tif", np.zeros((100, 100), int), valid)
    predict(scene.path, out=tmp_path / "m.gpkg", model=engine(64, 16, EverythingDetector()))
    (share,) = read_map(tmp_path / "m.gpkg")["valid_share"]
    assert share == pytest.approx(0.7)


def test_thresholds_change_without_computing_again(tmp_path, scene):
    detector = CountingDetector()
    predict(scene.path, out=tmp_path / "m.gpkg", model=engine(detector=detector), options=EXACT)
    first, seen = read_map(tmp_path / "m.gpkg"), len(detector.seen)
    middle = float(first["score"].median())
    stricter = replace(EXACT, min_score=middle)
    report = predict(
        scene.path, out=tmp_path / "m.gpkg", model=engine(detector=detector), options=stricter, overwrite=True
    )
    assert len(detector.seen) == seen
    assert report.shards_computed == 0
    assert report.footprints == (first["score"] >= middle).sum() < len(first)


def test_another_least_area_computes_nothing_again(tmp_path):
    labels = blob_labels((150, 150), 3, 12)
    labels[70:72, 70:73] = 30  # too small for a slump, unless told otherwise
    scene = write_scene(tmp_path / "s.tif", labels)
    detector = CountingDetector()
    given = {"out": tmp_path / "m.gpkg", "model": engine(detector=detector), "overwrite": True}
    first = predict(scene.path, options=replace(EXACT, min_area_m2=None), **given)
    seen = len(detector.seen)
    larger = predict(scene.path, options=replace(EXACT, min_area_m2=1000.0), **given)
    assert len(detector.seen) == seen
    assert 0 < larger.footprints < first.footprints
    assert larger.second_looks == first.second_looks
    smaller = predict(scene.path, options=replace(EXACT, min_area_m2=80.0), **given)
    assert smaller.footprints == first.footprints + 1


def test_an_output_that_exists_is_refused_before_any_work(tmp_path, scene):
    detector = CountingDetector()
    (tmp_path / "m.gpkg").write_text("precious")
    with pytest.raises(InputError, match="--overwrite"):
        predict(scene.path, out=tmp_path / "m.gpkg", model=engine(detector=detector))
    assert detector.seen == []
    assert (tmp_path / "m.gpkg").read_text() == "precious"
    predict(scene.path, out=tmp_path / "m.gpkg", model=engine(detector=detector), overwrite=True)
    assert len(read_map(tmp_path / "m.gpkg")) == scene.labels.max()


@pytest.mark.parametrize(("name", "says"), [("m.shp", "rtsmap export"), ("none/m.gpkg", "no folder")])
def test_outputs_that_cannot_be_are_refused(tmp_path, scene, name, says):
    with pytest.raises(InputError, match=says):
        predict(scene.path, out=tmp_path / name, model=engine())


def test_another_scene_or_option_in_the_run_directory_is_refused_by_name(tmp_path, scene):
    predict(scene.path, out=tmp_path / "m.gpkg", model=engine())
    other = write_scene(tmp_path / "other.tif", blob_labels((150, 210), 4, 25))
    with pytest.raises(PlanMismatchError, match=r"inputs\.scene\.sha256_of_samples"):
        predict(other.path, out=tmp_path / "m.gpkg", model=engine(), overwrite=True)
    with pytest.raises(PlanMismatchError, match=r"options\.batch_size was absent, now 2"):
        predict(
            scene.path,
            out=tmp_path / "m.gpkg",
            model=engine(),
            options=PredictOptions(batch_size=2),
            overwrite=True,
        )


def test_a_copied_scene_goes_on_with_the_run(tmp_path, scene):
    predict(scene.path, out=tmp_path / "m.gpkg", model=engine())
    moved = tmp_path / "elsewhere.tif"
    moved.write_bytes(scene.path.read_bytes())
    report = predict(moved, out=tmp_path / "m.gpkg", model=engine(), overwrite=True)
    assert report.shards_computed == 0


def test_a_tile_that_fails_is_retried_alone_then_recorded(tmp_path, scene, caplog):
    detector = CountingDetector(fails=frozenset({5}))
    report = predict(scene.path, out=tmp_path / "m.gpkg", model=engine(64, 0, detector), options=EXACT)
    ((tile, reason),) = report.failed
    assert tile == 5
    assert "the network fell over" in reason
    assert detector.seen.count(5) == 2
    coverage = read_layers(tmp_path / "m.gpkg").coverage.set_index("status")
    assert "the network fell over" in coverage.loc["failed", "reason"]
    # what failed is tried again by the same command, and nothing else is
    mended = CountingDetector()
    again = predict(
        scene.path, out=tmp_path / "m.gpkg", model=engine(64, 0, mended), options=EXACT, overwrite=True
    )
    assert again.failed == ()
    assert 5 in mended.seen
    predict(scene.path, out=tmp_path / "fresh.gpkg", model=engine(64, 0), options=EXACT)
    assert content(tmp_path / "m.gpkg") == content(tmp_path / "fresh.gpkg")


def test_a_failure_that_passes_leaves_no_trace(tmp_path, scene):
    class Hiccup(CountingDetector):
        def detect(self, chips):
            if not self.seen:
                self.seen.append(-1)
                raise RuntimeError("out of memory")
            return super().detect(chips)

    report = predict(scene.path, out=tmp_path / "m.gpkg", model=engine(detector=Hiccup()), options=EXACT)
    predict(scene.path, out=tmp_path / "calm.gpkg", model=engine(), options=EXACT)
    assert report.failed == ()
    assert content(tmp_path / "m.gpkg") == content(tmp_path / "calm.gpkg")


def test_ground_that_cannot_be_read_fails_alone(tmp_path, scene, monkeypatch):
    broken = Window(70, 70, 71, 71)
    real = ChipReader.read_block

    def read_block(self, window):
        if not window.intersection(broken).empty:
            raise InputError("scene.tif: block 7 is corrupt\nand more")
        return real(self, window)

    monkeypatch.setattr(ChipReader, "read_block", read_block)
    report = predict(scene.path, out=tmp_path / "m.gpkg", model=engine(64, 0), options=EXACT)
    assert [reason for _, reason in report.failed] == ["reading failed: scene.tif: block 7 is corrupt"]
    areas = read_layers(tmp_path / "m.gpkg").coverage.set_index("status").geometry
    assert 0 < areas["failed"].area <= 64 * 64 * 16
    assert areas["mapped"].area > 0


@pytest.mark.parametrize("error", [EngineError, TypeError])
def test_a_broken_model_or_program_stops_the_run(tmp_path, scene, error):
    detector = CountingDetector(fails=frozenset({5}), error=error)
    with pytest.raises(error, match="fell over"):
        predict(scene.path, out=tmp_path / "m.gpkg", model=engine(64, 0, detector))
    assert not (tmp_path / "m.gpkg").exists()


def test_a_network_that_always_fails_stops_the_run_which_then_goes_on(tmp_path, scene, monkeypatch):
    monkeypatch.setattr(detecting, "GIVE_UP_AFTER_TILES", 8)
    # the first block of 4 x 4 tiles is fine; after it nothing works any more
    broken = CountingDetector(
        fails=frozenset(range(35)) - {0, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 17, 21, 22, 23, 24}
    )
    command = {"out": tmp_path / "m.gpkg", "options": EXACT}
    with pytest.raises(
        EngineError, match=r"failed on \d+ tiles in a row, last with: detecting failed: the net"
    ):
        predict(scene.path, model=engine(32, 0, broken), **command)
    assert not (tmp_path / "m.gpkg").exists()
    mended = CountingDetector()
    report = predict(scene.path, model=engine(32, 0, mended), **command)
    assert report.failed == ()
    assert not set(mended.seen) & {0, 10, 24}
    predict(scene.path, out=tmp_path / "fresh.gpkg", model=engine(32, 0), options=EXACT)
    assert content(tmp_path / "m.gpkg") == content(tmp_path / "fresh.gpkg")


def test_a_detector_that_answers_nonsense_is_stopped(tmp_path, scene):
    @dataclass(frozen=True)
    class Forgetful:
        def detect(self, chips):
            return [[] for _ in chips[1:]]

    with pytest.raises(EngineError, match=r"answers for \d+ chips"):
        predict(scene.path, out=tmp_path / "m.gpkg", model=engine(detector=Forgetful()))


def test_a_damaged_shard_is_computed_again(tmp_path, scene, caplog):
    report = predict(scene.path, out=tmp_path / "m.gpkg", model=engine(), options=EXACT)
    before = content(tmp_path / "m.gpkg")
    victim = sorted(report.run_dir.glob("shard-*.arrow"))[1]
    victim.write_bytes(victim.read_bytes()[:-100])
    with caplog.at_level(logging.INFO, logger="rtsmap"):
        again = predict(scene.path, out=tmp_path / "m.gpkg", model=engine(), options=EXACT, overwrite=True)
    assert again.shards_computed == 1
    assert "is damaged" in caplog.text
    assert "not computed again" in caplog.text
    assert content(tmp_path / "m.gpkg") == before


def test_interrupting_keeps_finished_shards_and_says_how_to_go_on(tmp_path, caplog):
    scene = write_scene(tmp_path / "s.tif", blob_labels((300, 300), 3, 25))

    class Interrupted(CountingDetector):
        def detect(self, chips):
            if len(self.seen) > 20:
                raise KeyboardInterrupt
            return super().detect(chips)

    options = replace(EXACT, shard_tiles=2)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING, logger="rtsmap"):
        predict(scene.path, out=tmp_path / "m.gpkg", model=engine(detector=Interrupted()), options=options)
    assert "same command again" in caplog.text
    done = len(list((tmp_path / "m.rtsrun").glob("shard-*.arrow")))
    assert done > 0
    report = predict(scene.path, out=tmp_path / "m.gpkg", model=engine(), options=options)
    assert report.shards_reused == done
    assert report.footprints == scene.labels.max()


def test_a_full_disk_stops_the_run_and_keeps_what_is_finished(tmp_path, scene, monkeypatch):
    real, written = detecting.write_shard, []

    def write_shard(path, *arguments):
        if len(written) == 1:
            raise ShardError("No space left on device")
        written.append(path)
        real(path, *arguments)

    options = replace(EXACT, shard_tiles=1)
    monkeypatch.setattr(detecting, "write_shard", write_shard)
    with pytest.raises(ShardError, match="No space"):
        predict(scene.path, out=tmp_path / "m.gpkg", model=engine(), options=options)
    monkeypatch.undo()
    report = predict(scene.path, out=tmp_path / "m.gpkg", model=engine(), options=options)
    assert report.shards_reused == 1
    assert report.footprints == scene.labels.max()


def test_the_run_directory_can_be_chosen_and_discarded(tmp_path, scene):
    report = predict(
        scene.path, out=tmp_path / "m.gpkg", model=engine(), run_dir=tmp_path / "shards", discard_run=True
    )
    assert report.run_dir is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gpkg", "scene.tif"]


def test_an_empty_map_is_a_map(tmp_path):
    scene = write_scene(tmp_path / "s.tif", np.zeros((80, 80), int))
    report = predict(scene.path, out=tmp_path / "m.gpkg", model=engine())
    assert report.footprints == 0
    layers = read_layers(tmp_path / "m.gpkg")
    assert len(layers.footprints) == 0
    assert layers.coverage["status"].tolist() == ["mapped"]


def test_small_slumps_are_left_out_and_specks_do_not_count(tmp_path):
    labels = np.zeros((80, 80), int)
    labels[10:13, 10:13] = 1  # 9 px
    labels[40:50, 40:50] = 2
    labels[45, 45] = 0
    scene = write_scene(tmp_path / "s.tif", labels)
    predict(scene.path, out=tmp_path / "m.gpkg", model=engine(), options=PredictOptions(simplify_m=0))
    found = read_map(tmp_path / "m.gpkg")
    assert found.geometry.area.tolist() == [1600.0]
    coarse = PredictOptions(simplify_m=0, min_speck_px=200)
    report = predict(scene.path, out=tmp_path / "m.gpkg", model=engine(), options=coarse, overwrite=True)
    assert report.footprints == 1, "the largest piece stays, however small"
    options = PredictOptions(simplify_m=0, min_area_m2=100, min_speck_px=1)
    predict(scene.path, out=tmp_path / "m.gpkg", model=engine(), options=options, overwrite=True)
    areas = sorted(read_map(tmp_path / "m.gpkg").geometry.area)
    assert areas == [144.0, 1584.0]


def test_specks_do_not_make_a_slump_large_enough(tmp_path):
    """Four pieces of three pixels are more than ten pixels, but no slump."""

    @dataclass(frozen=True, slots=True)
    class SpeckDetector:
        def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
            mask = np.zeros((8, 8), np.uint8)
            mask[0:8:2, :3] = 255
            return [[Detection(0.9, Window(10, 10, 18, 18), mask, c.tile.index)] for c in chips]

    scene = write_scene(tmp_path / "s.tif", np.zeros((60, 60), int))
    report = predict(scene.path, out=tmp_path / "m.gpkg", model=engine(64, 0, SpeckDetector()))
    assert report.footprints == 0


def test_options_are_checked_at_the_door():
    assert PredictOptions.of(min_score=0.5) == PredictOptions(min_score=0.5)
    with pytest.raises(OptionsError, match=r"minscore; there are: .*min_score"):
        PredictOptions.of(minscore=0.5)
    for wrong in (
        {"min_score": 2},
        {"batch_size": 0},
        {"simplify_m": -1},
        {"min_valid_share": 1.5},
        {"min_area_m2": float("inf")},
        {"simplify_m": float("nan")},
    ):
        with pytest.raises(OptionsError, match=next(iter(wrong))):
            PredictOptions(**wrong)


@pytest.mark.parametrize("out", ["", ".", "map.tif"])
def test_an_output_that_is_no_geopackage_is_refused(tmp_path, scene, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    for map_scene in (predict, partial(predict_with, InProcess())):
        with pytest.raises(InputError, match=r"maps are written as \.gpkg"):
            map_scene(scene.path, out=out, model=engine())


def test_impossible_tiles_are_refused(tmp_path, scene):
    for options in (PredictOptions(chip_px=32, overlap_px=30), PredictOptions(chip_px=0)):
        with pytest.raises(OptionsError, match="half a chip"):
            predict(scene.path, out=tmp_path / "m.gpkg", model=engine(), options=options)


def test_predict_in_python_gives_a_frame_and_leaves_nothing(tmp_path, scene, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = rtsmap.predict(scene.path, model=engine(), min_area_m2=0)
    assert len(frame) == scene.labels.max()
    assert frame.crs.to_epsg() == 32608
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scene.tif"]
    kept = rtsmap.predict(scene.path, model=engine(), out=tmp_path / "m.gpkg", min_area_m2=0)
    assert rows(kept) == rows(frame)
    with pytest.raises(OptionsError, match="unknown option batchsize"):
        rtsmap.predict(scene.path, model=engine(), batchsize=3)


def test_ids_stay_when_the_model_changes_elsewhere(tmp_path, scene):
    """The id belongs to scene, grid and place, so that a correction of one map fits the next."""
    predict(scene.path, out=tmp_path / "a.gpkg", model=engine(64, 16), options=EXACT)
    picky = ThresholdDetector(low=210, high=255)
    predict(scene.path, out=tmp_path / "b.gpkg", model=engine(96, 8, picky), options=EXACT)
    a, b = (set(read_map(tmp_path / name)["id"]) for name in ("a.gpkg", "b.gpkg"))
    assert b < a
    assert b


@dataclass(frozen=True, slots=True)
class ScoredBlobs:
    """A thresholding detector whose scores go by where a blob lies on its tile."""

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        found = ThresholdDetector(low=160, high=255).detect(chips)
        return [
            [
                replace(one, score=0.05 + 0.9 * ((7 * one.window.col0 + one.window.row0) % 101) / 101)
                for one in part
            ]
            for part in found
        ]


@pytest.mark.parametrize("second_look", [True, False])
@pytest.mark.parametrize("temperature", [0.4, 3.0])
def test_a_temperature_changes_scores_and_nothing_else(tmp_path, scene, temperature, second_look):
    options = replace(EXACT, min_score=0.1, second_look=second_look)
    plain = engine(detector=ScoredBlobs())
    predict(scene.path, out=tmp_path / "plain.gpkg", model=plain, options=options)
    warm = replace(plain, temperature=temperature)
    told = replace(options, min_score=tempered(0.1, temperature))
    report = predict(
        scene.path, out=tmp_path / "warm.gpkg", model=warm, options=told, run_dir=tmp_path / "plain.rtsrun"
    )
    assert report.shards_computed == 0
    one, other = read_layers(tmp_path / "plain.gpkg"), read_layers(tmp_path / "warm.gpkg")
    assert len(one.footprints) > 5
    wanted = [tempered(score, temperature) for score in one.footprints["score"]]
    assert other.footprints["score"].to_numpy() == pytest.approx(wanted)
    rest = one.footprints.columns.drop("score")
    assert one.footprints[rest].equals(other.footprints[rest])
    assert (one.run_record["temperature"], other.run_record["temperature"]) == (1.0, temperature)


def test_a_threshold_is_that_of_the_scores_that_users_see(tmp_path, scene):
    warm = replace(engine(detector=ScoredBlobs()), temperature=0.5, min_score=0.7)
    options = replace(EXACT, second_look=False)
    predict(scene.path, out=tmp_path / "all.gpkg", model=warm, options=replace(options, min_score=0.0))
    predict(
        scene.path, out=tmp_path / "own.gpkg", model=warm, options=options, run_dir=tmp_path / "all.rtsrun"
    )
    every, own = read_map(tmp_path / "all.gpkg")["score"], read_map(tmp_path / "own.gpkg")["score"]
    assert 0 < len(own) < len(every)
    assert own.min() >= 0.7 > every.min()


def test_what_is_longer_than_slumps_are_is_told_once_and_by_its_place(tmp_path, scene, monkeypatch, caplog):
    monkeypatch.setattr("rtsmap.runs.mapping.LONGEST_SLUMP_M", 150.0)
    predict(scene.path, out=tmp_path / "m.gpkg", model=engine())
    found = read_map(tmp_path / "m.gpkg")
    bounds = found.geometry.bounds
    long = np.maximum(bounds["maxx"] - bounds["minx"], bounds["maxy"] - bounds["miny"]) > 150.0
    told = [record.getMessage() for record in caplog.records if "km long" in record.getMessage()]
    places = [f"{row.centroid_lat:.5f}, {row.centroid_lon:.5f}" for row in found[long].itertuples()]
    assert 0 < len(told) == len(places) < len(found)
    assert all(sum(place in line for line in told) == 1 for place in places)

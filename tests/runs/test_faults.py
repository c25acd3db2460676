"""Faults while a run goes on: what the user is told, and that the run that is started again is right."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.errors import RasterioIOError

from rtsmap import atomic
from rtsmap.errors import RtsmapError, RunError
from rtsmap.instances.detections import Detection
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.rasters import opening, reading, writing
from rtsmap.rasters.chips import Chip
from rtsmap.runs.mapping import PredictOptions, predict
from rtsmap.vectors.geopackage import read_layers
from tests.runs.blob_scenes import BlobScene, blob_labels, engine, grid, write_dem, write_scene
from tests.runs.map_content import content

OPTIONS = PredictOptions(simplify_m=0, min_speck_px=1, min_area_m2=0, shard_tiles=2, read_threads=2)


@dataclass
class Eventful:
    """A thresholding detector; before it looks at the chips of its n-th call, something happens."""

    happens: Callable[[], None]
    at: int
    calls: int = 0
    seen: list[int] = field(default_factory=list)
    halvings: int = 0

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        self.calls += 1
        if self.calls == self.at:
            self.happens()
        self.seen += [chip.tile.index for chip in chips]
        return ThresholdDetector(low=160, high=255).detect(chips)


@pytest.fixture
def scene(tmp_path) -> BlobScene:
    return write_scene(tmp_path / "scene.tif", blob_labels((260, 300), 3, 30))


@pytest.fixture
def dem(tmp_path, scene) -> Path:
    return write_dem(tmp_path / "dem.tif", scene.geobox, share=0.7)


@pytest.fixture
def wanted(tmp_path, scene, dem):
    predict(scene.path, dem, out=tmp_path / "whole.gpkg", model=engine(), options=OPTIONS)
    return content(tmp_path / "whole.gpkg")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(opening, "LOCAL_PAUSES_S", (0.0, 0.0))


def test_reads_that_fail_now_and_then_change_nothing(tmp_path, scene, dem, wanted, monkeypatch):
    real, here = reading._read_pixels, threading.local()

    def flaky(*args):
        here.reads = getattr(here, "reads", 0) + 1
        if here.reads % 3:
            raise RasterioIOError("the disk had a bad moment")
        return real(*args)

    monkeypatch.setattr(reading, "_read_pixels", flaky)
    report = predict(scene.path, dem, out=tmp_path / "m.gpkg", model=engine(), options=OPTIONS)
    assert not report.failed
    assert content(tmp_path / "m.gpkg") == wanted


@pytest.mark.parametrize("second_look", [True, False])
def test_a_damaged_block_is_failed_coverage_with_the_reason(tmp_path, scene, second_look):
    with rasterio.open(scene.path) as src:
        place = int(src.get_tag_item("BLOCK_OFFSET_2_2", "TIFF", 1))
    data = bytearray(scene.path.read_bytes())
    data[place : place + 40] = bytes(40)
    scene.path.write_bytes(data)
    options = PredictOptions(simplify_m=0, min_speck_px=1, min_area_m2=0, second_look=second_look)
    report = predict(scene.path, out=tmp_path / "m.gpkg", model=engine(), options=options)
    assert report.failed
    assert all("reading failed" in reason and "scene.tif" in reason for _, reason in report.failed)
    assert any("a part cannot be read" in note for note in report.notes)
    coverage = read_layers(tmp_path / "m.gpkg").coverage
    assert {"mapped", "failed"} <= set(coverage["status"])
    total = coverage.area.sum()
    assert total == pytest.approx(260 * 300 * 16, rel=1e-6)
    assert 0 < coverage[coverage["status"] == "failed"].area.sum() < total / 3


def test_a_vanished_input_stops_the_run_and_put_back_it_goes_on(tmp_path, scene, dem, wanted):
    hidden = tmp_path / "elsewhere"

    detector = Eventful(lambda: scene.path.rename(hidden), at=3)
    with pytest.raises(RunError, match=r"scene\.tif has vanished"):
        predict(scene.path, dem, out=tmp_path / "m.gpkg", model=engine(detector=detector), options=OPTIONS)
    assert not (tmp_path / "m.gpkg").exists()
    hidden.rename(scene.path)
    report = predict(scene.path, dem, out=tmp_path / "m.gpkg", model=engine(), options=OPTIONS)
    assert report.shards_reused >= 2
    assert content(tmp_path / "m.gpkg") == wanted


def interrupt():
    """Ctrl-C, to the thread that Python handles it in; another would not wake it from waiting."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_ctrl_c_finishes_the_shard_in_hand(tmp_path, scene, dem, wanted, caplog):
    before = signal.getsignal(signal.SIGINT)
    detector = Eventful(interrupt, at=3)
    with pytest.raises(KeyboardInterrupt):
        predict(scene.path, dem, out=tmp_path / "m.gpkg", model=engine(detector=detector), options=OPTIONS)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(list((tmp_path / "m.rtsrun").glob("shard-*.arrow"))) == 3
    assert "finishing the shard in hand" in caplog.text
    assert "3 of 9 shards finished" in caplog.text
    assert "run the same command again" in caplog.text
    again = Eventful(lambda: None, at=0)
    report = predict(scene.path, dem, out=tmp_path / "m.gpkg", model=engine(detector=again), options=OPTIONS)
    assert report.shards_reused == 3
    assert not set(detector.seen) & set(again.seen)
    assert content(tmp_path / "m.gpkg") == wanted


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_ctrl_c_twice_stops_at_once(tmp_path, scene):
    def twice():
        tries = 0
        while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            # one that comes just before Python waits for a lock is not seen before the next, and both are one
            if tries % 200 == 0:
                interrupt()
            tries += 1
            time.sleep(0.01)
        interrupt()

    detector = Eventful(twice, at=3)
    with pytest.raises(KeyboardInterrupt):
        predict(scene.path, out=tmp_path / "m.gpkg", model=engine(detector=detector), options=OPTIONS)
    assert len(list((tmp_path / "m.rtsrun").glob("shard-*.arrow"))) == 2


def test_halved_batches_are_recorded_also_by_the_run_that_goes_on(tmp_path, scene):
    detector = Eventful(lambda: None, at=2)
    detector.happens = lambda: setattr(detector, "halvings", detector.halvings + 2)
    for overwrite in (False, True):
        predict(
            scene.path,
            out=tmp_path / "m.gpkg",
            model=engine(detector=detector),
            options=OPTIONS,
            overwrite=overwrite,
        )
        assert read_layers(tmp_path / "m.gpkg").run_record["memory_halvings"] == 2


@pytest.mark.parametrize(("suffix", "nth"), [("plan.json", 1), (".arrow", 1), (".arrow", 4), ("m.gpkg", 1)])
def test_a_full_disk_is_a_sentence_and_leaves_no_broken_file(tmp_path, scene, monkeypatch, suffix, nth):
    real, writes = atomic._fsync, iter(range(1, 10_000))

    def full(path):
        if path.name.endswith(suffix) and next(writes) >= nth and is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    is_full = True
    monkeypatch.setattr(atomic, "_fsync", full)
    out = tmp_path / "m.gpkg"
    with pytest.raises(RtsmapError, match="No space left on device") as caught:
        predict(scene.path, out=out, model=engine(), options=OPTIONS)
    assert "space" in str(caught.value)
    assert not out.exists()
    assert not list(tmp_path.rglob("*.part"))
    finished = len(list((tmp_path / "m.rtsrun").glob("shard-*.arrow")))
    assert finished == {"plan.json": 0, "m.gpkg": 9}.get(suffix, nth - 1)
    is_full = False
    report = predict(scene.path, out=out, model=engine(), options=OPTIONS)
    assert report.shards_reused == finished


@pytest.mark.parametrize("what", ["scene", "dem"])
def test_a_changed_input_is_refused_with_what_changed(tmp_path, scene, dem, what):
    predict(scene.path, dem, out=tmp_path / "m.gpkg", model=engine(), options=OPTIONS)
    path = {"scene": scene.path, "dem": dem}[what]
    with rasterio.open(path, "r+") as dst:
        pixels = dst.read()
        dst.write(np.roll(pixels, 1, axis=2))
    with pytest.raises(RunError, match=rf"differs in: inputs\.{what}\.s"):
        predict(scene.path, dem, out=tmp_path / "m.gpkg", model=engine(), options=OPTIONS, overwrite=True)


def test_a_scene_at_the_pole_and_one_across_the_antimeridian_are_mapped(tmp_path):
    pixels = np.full((3, 80, 80), 90, np.uint8)
    pixels[0, 30:50, 20:60] = 200
    for name, crs, left, top in (
        ("pole", "EPSG:3413", -160.0, 160.0),
        ("dateline", "EPSG:32601", 208_000.0, 7_704_000.0),
    ):
        box = grid((80, 80), left=left, top=top)
        here = type(box)(box.shape, box.affine, crs)
        writing.write_geotiff(tmp_path / f"{name}.tif", pixels, here, band_names=("red", "green", "blue"))
        report = predict(tmp_path / f"{name}.tif", out=tmp_path / f"{name}.gpkg", model=engine())
        assert report.footprints == 1
        area = read_layers(tmp_path / f"{name}.gpkg").footprints["area_m2"].iloc[0]
        assert area == pytest.approx(20 * 40 * 16, rel=0.08)


@pytest.mark.parametrize(("west", "north"), [(179.97, 68.0), (-180.02, 68.0)])
def test_degrees_across_the_antimeridian(tmp_path, west, north):
    pixels = np.full((3, 100, 100), 90, np.uint8)
    pixels[0, 30:60, 30:60] = 200
    box = grid((100, 100))
    affine = type(box.affine)(6e-4, 0, west, 0, -1e-4, north)
    here = type(box)(box.shape, affine, "EPSG:4326")
    writing.write_geotiff(tmp_path / "s.tif", pixels, here, band_names=("red", "green", "blue"))
    report = predict(tmp_path / "s.tif", out=tmp_path / "m.gpkg", model=engine())
    assert report.footprints == 1

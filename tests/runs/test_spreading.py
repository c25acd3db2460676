"""The same map, whoever computes it and how many they are."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import shapely

from rtsmap.errors import OptionsError, RunError
from rtsmap.instances.detections import Detection
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.rasters.bands import OPTICAL_RGB, SPECTRAL, InputSpec, Modality
from rtsmap.rasters.chips import Chip
from rtsmap.rasters.writing import write_geotiff
from rtsmap.runs.in_process import InProcess
from rtsmap.runs.mapping import PredictOptions, predict
from rtsmap.runs.on_dask import OnDask
from rtsmap.runs.processes import Processes
from rtsmap.runs.spreading import merge_run, plan_run, predict_with
from rtsmap.runs.workers import Job, Share, tell_nobody
from rtsmap.vectors.geopackage import read_layers
from rtsmap.vectors.labels import Polygons, write_polygons
from tests.runs.blob_scenes import blob_labels, engine, write_dem, write_scene
from tests.runs.map_content import content

OPTIONS = PredictOptions(simplify_m=0, min_speck_px=1, min_area_m2=0, shard_tiles=1, read_threads=1)

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")


@dataclass(frozen=True, slots=True)
class NotedDetector:
    """Finds blobs and notes which process looked at which tiles; none begins before `together` are there."""

    notes: Path
    together: int = 1
    pause_s: float = 0.02

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        own = self.notes / str(os.getpid())
        own.touch()
        deadline = time.time() + 120
        while len(self.seen()) < self.together and time.time() < deadline:
            time.sleep(0.02)
        time.sleep(self.pause_s)
        with own.open("a") as stream:
            stream.write("".join(f"{chip.tile.index}\n" for chip in chips))
        return ThresholdDetector(low=160, high=255).detect(chips)

    def seen(self) -> dict[int, list[int]]:
        """Tiles by process."""
        return {int(p.name): [int(line) for line in p.read_text().split()] for p in self.notes.iterdir()}


@dataclass(frozen=True, slots=True)
class Inputs:
    scene: Path
    dem: Path
    wanted: dict


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    """A scene of 36 shards, and the content of the map made in one go."""
    folder = tmp_path_factory.mktemp("inputs")
    scene = write_scene(folder / "scene.tif", blob_labels((260, 300), 3, 30))
    dem = write_dem(folder / "dem.tif", scene.geobox, share=0.7)
    report = predict(scene.path, dem, out=folder / "m.gpkg", model=engine(), options=OPTIONS)
    assert report.shards_computed == 36
    assert report.second_looks > 10
    return Inputs(scene.path, dem, content(folder / "m.gpkg"))


@pytest.fixture
def noted(tmp_path) -> NotedDetector:
    (tmp_path / "notes").mkdir()
    return NotedDetector(tmp_path / "notes")


@pytest.fixture
def both(noted) -> NotedDetector:
    """One that waits for two processes."""
    return replace(noted, together=2)


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as made:
        yield made


def computed_by(detector: NotedDetector, *, processes: int) -> None:
    """Hold that so many processes computed something, and no tile was computed twice."""
    seen = detector.seen()
    tiles = [tile for own in seen.values() for tile in own]
    assert len(seen) == processes
    assert len(set(tiles)) == len(tiles)


def mapped(executor, inputs, out, detector) -> dict:
    model = engine(detector=detector)
    predict_with(executor, inputs.scene, inputs.dem, out=out, model=model, options=OPTIONS)
    assert not list(out.with_suffix(".rtsrun").rglob("claims"))
    return content(out)


def test_by_the_worker_of_this_process(tmp_path, inputs, noted):
    assert mapped(InProcess(), inputs, tmp_path / "m.gpkg", noted) == inputs.wanted
    computed_by(noted, processes=1)


def test_by_two_processes(tmp_path, inputs, both):
    assert mapped(Processes(2), inputs, tmp_path / "m.gpkg", both) == inputs.wanted
    computed_by(both, processes=2)


def test_by_two_processes_of_which_one_is_killed(tmp_path, inputs, both):
    killer = threading.Thread(target=kill_the_first, args=(both,), daemon=True)
    killer.start()
    assert mapped(Processes(2), inputs, tmp_path / "m.gpkg", both) == inputs.wanted
    killer.join()
    assert (tmp_path / "killed").exists()
    assert len(both.seen()) >= 2


INTERRUPTED = """
import sys
from pathlib import Path
from rtsmap.runs.processes import Processes
from tests.runs.test_spreading import NotedDetector, OPTIONS, engine, predict_with
scene, dem, out, notes = map(Path, sys.argv[1:])
model = engine(detector=NotedDetector(notes, together=2, pause_s=1.0))
if __name__ == "__main__":
    predict_with(Processes(2), scene, dem, out=out, model=model, options=OPTIONS)
"""


def test_after_ctrl_c_each_of_two_processes_finishes_its_shard(tmp_path, inputs, noted):
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    out = tmp_path / "m.gpkg"
    arguments = [sys.executable, tmp_path / "interrupted.py", inputs.scene, inputs.dem, out, noted.notes]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        arguments, env=variables, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while child.poll() is None and sum(map(len, noted.seen().values())) < 2:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGINT)
    _, told = child.communicate(timeout=120)
    assert child.returncode != 0
    assert "KeyboardInterrupt" in told
    tiles = [tile for own in noted.seen().values() for tile in own]
    shards = list(out.with_suffix(".rtsrun").glob("shard-*.arrow"))
    # what was begun is on disk, and nobody holds anything
    assert 2 <= len(shards) == len(tiles) < 36
    assert not list(out.with_suffix(".rtsrun").rglob("claims"))
    assert mapped(InProcess(), inputs, out, noted) == inputs.wanted


def kill_the_first(detector: NotedDetector) -> None:
    """Kill the first process that has looked at something."""
    deadline = time.time() + 120
    while not any((seen := detector.seen()).values()) and time.time() < deadline:
        time.sleep(0.02)
    os.kill(max(seen, key=lambda pid: len(seen[pid])), signal.SIGKILL)
    (detector.notes.parent / "killed").touch()


def test_by_shares_one_after_the_other(tmp_path, inputs, noted):
    run = tmp_path / "run"
    model = engine(detector=noted)
    plan_run(inputs.scene, inputs.dem, run, model=model, options=OPTIONS)
    assert sorted(p.name for p in run.iterdir()) == [".lock", "plan.json"]
    for i in (3, 1, 4, 2):
        with pytest.raises(RunError, match="not computed yet"):
            merge_run(run, tmp_path / "early.gpkg", model=engine())
        InProcess(wait=False).run(Job((run,), model, share=Share(i, 4)), tell_nobody)
    # the last one has done the second looks, too
    merge_run(run, tmp_path / "m.gpkg", model=engine())
    assert content(tmp_path / "m.gpkg") == inputs.wanted
    computed_by(noted, processes=1)
    assert not (tmp_path / "early.gpkg").exists()


@dataclass(frozen=True, slots=True)
class FailingDetector:
    """Finds blobs, and fails on one tile for good; looks have other numbers."""

    tile: int

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        if any(chip.tile.index == self.tile for chip in chips):
            raise RuntimeError("the network fell over")
        return ThresholdDetector(low=160, high=255).detect(chips)


@pytest.mark.parametrize("first", [1, 2])
def test_the_last_share_goes_on_although_a_tile_of_another_one_fails(tmp_path, inputs, first):
    run, model = tmp_path / "run", engine(detector=FailingDetector(0))
    plan_run(inputs.scene, inputs.dem, run, model=model, options=OPTIONS)
    for index in (first, 3 - first):
        InProcess(wait=False).run(Job((run,), model, share=Share(index, 2)), tell_nobody)
    report = merge_run(run, tmp_path / "m.gpkg", model=engine())
    assert [tile for tile, _ in report.failed] == [0]
    assert report.second_looks > 10


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_a_shard_that_is_damaged_after_all_was_done_is_computed_again(tmp_path, inputs, damage):
    out, given = tmp_path / "m.gpkg", {"model": engine(), "options": OPTIONS}
    predict_with(InProcess(), inputs.scene, inputs.dem, out=out, **given)
    run = out.with_suffix(".rtsrun")
    shard = run / "shard-000005.arrow"
    if damage == "removed":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:100])
        with pytest.raises(RunError, match="rtsmap work"):
            merge_run(run, out, model=engine(), overwrite=True)
    done = InProcess().run(Job((run,), engine()), tell_nobody)
    assert done.computed == 1
    merge_run(run, out, model=engine(), overwrite=True)
    assert content(out) == inputs.wanted


def test_a_discarded_run_leaves_nothing_behind(tmp_path, inputs):
    given = {"out": tmp_path / "m.gpkg", "model": engine(), "options": OPTIONS, "discard_run": True}
    predict_with(InProcess(), inputs.scene, inputs.dem, **given)
    assert not (tmp_path / "m.rtsrun").exists()
    predict_with(InProcess(), inputs.scene, inputs.dem, overwrite=True, **given)
    assert content(tmp_path / "m.gpkg") == inputs.wanted


def test_bands_areas_and_dates_reach_workers_that_know_the_run_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = blob_labels((150, 150), 3, 12)
    scene = write_scene(tmp_path / "scene.tif", np.zeros_like(labels))
    index = np.where(labels > 0, 0.05, 0.6).astype(np.float32)
    write_geotiff(tmp_path / "ndvi.tif", index, scene.geobox, band_names=("ndvi",))
    left, bottom, right, top = scene.geobox.boundingbox.bbox
    west = shapely.box(left, bottom, (left + right) / 2, top)
    write_polygons(tmp_path / "aoi.gpkg", Polygons((west,), scene.geobox.crs, {}), "area")
    spec = InputSpec(4.0, (OPTICAL_RGB, Modality("spectral", SPECTRAL.bands[1:2])))
    model = engine(detector=ThresholdDetector("spectral", 0, -1.0, 0.2), spec=spec)
    given = {"aoi": Path("aoi.gpkg"), "band_files": {"ndvi": Path("ndvi.tif")}}
    options = replace(OPTIONS, date="2020-07-05", scene_id="a scene")
    predict("scene.tif", out=tmp_path / "whole.gpkg", model=model, options=options, **given)
    spread = tmp_path / "spread.gpkg"
    predict_with(InProcess(), "scene.tif", out=spread, model=model, options=options, inputs=given)
    assert content(spread) == content(tmp_path / "whole.gpkg")
    found = read_layers(spread).footprints
    assert 0 < len(found) < labels.max()
    assert set(found["acquired"]) == {"2020-07-05"}


def test_by_a_dask_cluster_of_two_processes(tmp_path, inputs, both, cluster):
    executor = OnDask(cluster.scheduler_address, shards_a_task=2)
    assert mapped(executor, inputs, tmp_path / "m.gpkg", both) == inputs.wanted
    computed_by(both, processes=2)
    # the same cluster again, for another run of the same name
    shutil.rmtree(tmp_path / "m.rtsrun")
    (tmp_path / "m.gpkg").unlink()
    assert mapped(executor, inputs, tmp_path / "m.gpkg", both) == inputs.wanted


def test_by_a_dask_cluster_of_which_one_worker_is_killed(tmp_path, inputs, cluster, both):
    killer = threading.Thread(target=kill_the_first, args=(both,), daemon=True)
    killer.start()
    executor = OnDask(cluster.scheduler_address, shards_a_task=2)
    assert mapped(executor, inputs, tmp_path / "m.gpkg", both) == inputs.wanted
    killer.join()
    assert (tmp_path / "killed").exists()
    assert len(both.seen()) >= 2


def test_by_a_dask_cluster_that_workers_join_late(tmp_path, inputs, both, caplog):
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    with (
        # otherwise Dask would move a task to the late worker, most of the time
        dask.config.set({"distributed.scheduler.work-stealing": False}),
        distributed.LocalCluster(
            n_workers=0, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
        ) as growing,
    ):

        def grow() -> None:
            while "no workers yet" not in caplog.text:
                time.sleep(0.05)
            growing.scale(1)
            while not both.seen():
                time.sleep(0.05)
            growing.scale(2)

        thread = threading.Thread(target=grow, daemon=True)
        thread.start()
        executor = OnDask(growing.scheduler_address, shards_a_task=1)
        assert mapped(executor, inputs, tmp_path / "m.gpkg", both) == inputs.wanted
        thread.join()
    computed_by(both, processes=2)


def test_a_problem_of_the_scene_is_told_as_it_is(tmp_path, inputs):
    out, model = tmp_path / "m.gpkg", engine()
    plan_run(inputs.scene, inputs.dem, out.with_suffix(".rtsrun"), model=model, options=OPTIONS)
    (tmp_path / "m.rtsrun" / "plan.json").write_text("{")
    with pytest.raises(RunError, match=r"plan\.json cannot be read"):
        predict_with(InProcess(), inputs.scene, inputs.dem, out=out, model=model, options=OPTIONS)


def test_no_scheduler_is_told(tmp_path, inputs):
    with pytest.raises(RunError, match="no Dask scheduler answers"):
        OnDask("tcp://127.0.0.1:1").run(Job((tmp_path,)), tell_nobody)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "-1/4", "1/4/2", ""])
def test_shares_that_cannot_be_are_refused(text):
    with pytest.raises(OptionsError, match="share"):
        Share.parse(text)


def test_shares_are_a_partition():
    from tests.runs.test_plan import some_plan

    shards = some_plan((300, 300), 1).shards()
    shares = [Share(i, 7) for i in range(1, 8)]
    for scene in range(9):
        for shard in shards:
            assert sum(share.holds(shard, scene) for share in shares) == 1
        for count in range(1, 10):
            for share in shares:
                assert share.holds_any(count, scene) == any(share.holds(s, scene) for s in shards[:count])
    # scenes of one shard each are shared evenly
    assert [sum(share.holds(shards[0], scene) for scene in range(14)) for share in shares] == [2] * 7

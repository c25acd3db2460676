"""What a worker holds while it goes from scene to scene, and what it comes back for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rtsmap.instances.detections import Detection
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.rasters.chips import Chip
from rtsmap.runs.in_process import InProcess
from rtsmap.runs.many import plan_scenes
from rtsmap.runs.mapping import PredictOptions
from rtsmap.runs.scene_lists import read_scenes
from rtsmap.runs.spreading import merge_run, plan_run
from rtsmap.runs.workers import Job, Share, Worker, tell_nobody
from rtsmap.vectors.geopackage import read_run_record
from tests.runs.blob_scenes import blob_labels, engine, write_dem, write_scene


def test_of_scenes_that_wait_for_others_the_terrain_of_one_is_kept(tmp_path):
    (tmp_path / "scenes").mkdir()
    for name in "abc":
        scene = write_scene(tmp_path / "scenes" / f"{name}.tif", blob_labels((150, 150), 3, 8))
    dem = write_dem(tmp_path / "dem.tif", scene.geobox)
    items = read_scenes([tmp_path / "scenes"], [str(dem)])
    plan_scenes(items, tmp_path / "run", model=engine(), options=PredictOptions(shard_tiles=1))
    directories = tuple(tmp_path / "run" / item.name for item in items)
    worker = Worker(Job(directories, engine()))
    done = worker.do(Job(directories, engine(), share=Share(1, 2)), wait=False)
    assert done.computed > 3
    assert done.unfinished == directories
    held = [len(worker._open[directory].task.reader._cells._cells) for directory in directories]
    assert held == [0, 0, 1]


@dataclass(frozen=True, slots=True)
class FailingOnLooks:
    """Finds blobs on tiles, and fails on second looks, whose numbers are greater."""

    tiles: int

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        if any(chip.tile.index >= self.tiles for chip in chips):
            raise RuntimeError("out of memory")
        return ThresholdDetector(low=160, high=255).detect(chips)


def test_second_looks_that_failed_are_tried_again_by_the_next_worker(tmp_path):
    scene = write_scene(tmp_path / "s.tif", blob_labels((120, 120), 3, 8, radius=12))
    failing = engine(detector=FailingOnLooks(tiles=9))
    run = plan_run(scene.path, None, tmp_path / "run", model=failing).run
    assert len([tile for shard in run.plan.shards() for tile in shard.tiles]) == 9
    for model, failed in ((failing, True), (engine(), False)):
        InProcess().run(Job((run.directory,), model), tell_nobody)
        merged = merge_run(run.directory, tmp_path / "m.gpkg", model=engine(), overwrite=True)
        assert (read_run_record(merged.out)["second_looks"]["failed"] > 0) == failed

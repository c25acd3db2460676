"""What a worker holds while it goes from scene to scene."""

from __future__ import annotations

from rtsmap.runs.many import plan_scenes
from rtsmap.runs.mapping import PredictOptions
from rtsmap.runs.scene_lists import read_scenes
from rtsmap.runs.workers import Job, Share, Worker
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

from __future__ import annotations

import errno
import json
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from rtsmap.errors import PlanMismatchError, RunError
from rtsmap.rasters.tiling import TileOptions, plan_tiles
from rtsmap.runs import plan as plan_module
from rtsmap.runs.plan import Plan, exclusive, open_run, package_versions


def some_plan(shape=(100, 150), shard_tiles=2, **changes) -> Plan:
    fields = {
        "inputs": {"scene": {"sha256_of_samples": "aa", "shape": [1, 2]}, "dem": None},
        "model": {"name": "stand-in"},
        "options": {"batch_size": 4},
        "geobox": GeoBox.from_bbox((0, 0, shape[1] * 4, shape[0] * 4), "EPSG:32608", shape=shape),
        "tiles": TileOptions(32, 8),
        "shard_tiles": shard_tiles,
        "versions": package_versions(),
        "paths": {"scene": "a.tif", "dem": None},
    }
    return Plan(**{**fields, **changes})


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 5), st.integers(8, 40), st.data())
@settings(max_examples=50, deadline=None)
def test_every_tile_is_in_exactly_one_shard_and_every_shard_reads_its_tiles(h, w, block, chip, data):
    overlap = data.draw(st.integers(0, chip // 2))
    plan = some_plan((h, w), block, tiles=TileOptions(chip, overlap))
    shards = plan.shards()
    tiles = [tile for shard in shards for tile in shard.tiles]
    assert sorted(tiles, key=lambda t: t.index) == list(plan_tiles((h, w), plan.tiles))
    assert [shard.index for shard in shards] == list(range(len(shards)))
    for shard in shards:
        assert len(shard.tiles) <= block * block
        assert all(shard.window.contains(tile.read) for tile in shard.tiles)
        assert shard.window.row0 == min(tile.read.row0 for tile in shard.tiles)
        assert shard.window.col1 == max(tile.read.col1 for tile in shard.tiles)


def test_the_same_plan_resumes_even_when_files_were_moved(tmp_path):
    assert not open_run(tmp_path / "run", some_plan()).resumed
    moved = some_plan(paths={"scene": "elsewhere/a.tif", "dem": None})
    assert open_run(tmp_path / "run", moved).resumed


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"inputs": {"scene": {"sha256_of_samples": "bb", "shape": [1, 2]}, "dem": None}},
            "inputs.scene.sha256_of_samples was aa, now bb",
        ),
        ({"options": {"batch_size": 8}}, "options.batch_size was 4, now 8"),
        ({"model": {"name": "other"}}, "model.name was stand-in, now other"),
        ({"tiles": TileOptions(64, 8)}, "tiles.chip_px was 32, now 64"),
        ({"shard_tiles": 3}, "tiles.shard_tiles was 2, now 3"),
        ({"versions": {"rtsmap": "9"}}, "versions.rtsmap was 0.1.0, now 9"),
    ],
)
def test_another_plan_is_refused_and_every_difference_named(tmp_path, changes, named):
    open_run(tmp_path / "run", some_plan())
    with pytest.raises(PlanMismatchError) as caught:
        open_run(tmp_path / "run", some_plan(**changes))
    assert named in str(caught.value)


def test_a_run_learns_what_is_asked_for_now_unless_it_is_only_reopened(tmp_path):
    path = tmp_path / "run" / "plan.json"
    open_run(tmp_path / "run", some_plan(asked={"options": {"min_score": 0.5}}))
    moved = some_plan(paths={"scene": "b.tif"}, asked={"options": {"min_score": 0.4}})
    open_run(tmp_path / "run", moved, renew=False)
    assert json.loads(path.read_text())["asked"] == {"options": {"min_score": 0.5}}
    open_run(tmp_path / "run", moved)
    assert json.loads(path.read_text())["asked"] == {"options": {"min_score": 0.4}}
    assert json.loads(path.read_text())["paths"] == {"scene": "b.tif"}
    with pytest.raises(PlanMismatchError):
        open_run(tmp_path / "run", replace(moved, shard_tiles=9))


def test_a_shifted_grid_is_another_plan(tmp_path):
    open_run(tmp_path / "run", some_plan())
    box = some_plan().geobox
    with pytest.raises(PlanMismatchError, match=r"grid\.affine"):
        open_run(tmp_path / "run", some_plan(geobox=box.translate_pix(0.25, 0)))


def test_fingerprint_changes_with_the_plan_and_not_with_paths():
    plan = some_plan()
    assert plan.fingerprint == some_plan(paths={}).fingerprint
    assert plan.fingerprint != some_plan(options={"batch_size": 5}).fingerprint
    assert json.loads(json.dumps(plan.to_dict())) == plan.to_dict()


def test_a_folder_with_other_things_is_no_run(tmp_path):
    (tmp_path / "thesis.docx").write_text("")
    with pytest.raises(RunError, match=r"thesis\.docx"):
        open_run(tmp_path, some_plan())


def test_a_broken_plan_is_told(tmp_path):
    run = open_run(tmp_path / "run", some_plan())
    (run.directory / "plan.json").write_text("{")
    with pytest.raises(RunError, match="start again"):
        open_run(tmp_path / "run", some_plan())


def _hold(directory, ready, leave):
    with exclusive(directory):
        ready.set()
        leave.wait(30)


def test_one_process_at_a_time_plans_or_merges(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "_LOCK_WAIT_S", 0.3)
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, leave))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(RunError, match="another process"), exclusive(tmp_path):
            pass
        # the lock dies with its process, however it dies
        other.kill()
        other.join()
        with exclusive(tmp_path):
            pass
    finally:
        other.kill()
        other.join()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows locks otherwise")
def test_a_file_system_without_locks_is_warned_of_and_used(tmp_path, monkeypatch, caplog):
    def knows_none(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(plan_module, "_LOCK_WAIT_S", 0.1)
    monkeypatch.setattr(plan_module.fcntl, "flock", knows_none)
    assert open_run(tmp_path / "run", some_plan()).directory.is_dir()
    assert "without locks (Function not implemented)" in caplog.text


def test_plans_are_values():
    assert some_plan() == some_plan(paths={"scene": "b.tif"})
    assert replace(some_plan(), shard_tiles=5) != some_plan()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /proc")
def test_a_place_where_nothing_can_be_made_is_told():
    with pytest.raises(RunError, match="cannot be made there; name another place"):
        open_run(Path("/proc/map.rtsrun"), some_plan())

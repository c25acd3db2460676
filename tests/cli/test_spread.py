from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from rtsmap.cli.main import app
from rtsmap.runs import mapping, spreading, workers
from rtsmap.vectors.geopackage import read_map
from tests.runs.blob_scenes import BlobScene, blob_labels, engine, write_scene
from tests.runs.map_content import content
from tests.runs.test_mapping import CountingDetector


@pytest.fixture
def scene(tmp_path, monkeypatch) -> BlobScene:
    monkeypatch.chdir(tmp_path)
    for module in (mapping, workers):
        monkeypatch.setattr(module, "engine_of", lambda *_, **__: engine())
    monkeypatch.setattr(spreading, "engine_to_plan", lambda *_, **__: engine())
    monkeypatch.setattr(spreading, "engine_at_rest", lambda *_: engine())
    return write_scene(tmp_path / "scene.tif", blob_labels((150, 150), 3, 12))


def run(*arguments: str, code: int = 0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


def test_planned_worked_on_in_shares_and_merged_is_predicted(tmp_path, scene):
    run("predict", scene.path, "-o", "whole.gpkg", "--shard-tiles", "1")
    assert run("plan", scene.path, "--out", "run", "--shard-tiles", "1").stdout.strip() == "run"
    assert "not computed yet" in run("merge", "run", "-o", "m.gpkg", code=1).stderr
    first = run("work", "run", "--shard", "2/2").stderr
    assert "other shares are missing" in first
    assert "makes the map" not in first
    assert "makes the map" in run("work", "run", "--shard", "1/2").stderr
    assert "0 shards computed" in run("work", "run").stderr
    run("merge", "run", "-o", "m.gpkg")
    assert content(tmp_path / "m.gpkg") == content(tmp_path / "whole.gpkg")


@pytest.mark.usefixtures("scene")
def test_a_part_of_a_file_is_a_scene_like_any_other(tmp_path, monkeypatch):
    run("predict", "GTIFF_DIR:1:scene.tif", "-o", "whole.gpkg", "--shard-tiles", "1")
    monkeypatch.chdir("/")
    run("merge", tmp_path / "whole.rtsrun", "-o", tmp_path / "m.gpkg")
    run("work", tmp_path / "whole.rtsrun")
    merged, whole = read_map(tmp_path / "m.gpkg"), read_map(tmp_path / "whole.gpkg")
    assert len(whole)
    assert merged.equals(whole)


def test_the_map_is_made_again_with_other_thresholds_and_without_the_network(tmp_path, scene, monkeypatch):
    run("predict", "scene.tif", "-o", "m.gpkg")
    every = read_map(tmp_path / "m.gpkg")["score"]
    detector = CountingDetector()
    monkeypatch.setattr(spreading, "engine_at_rest", lambda *_: engine(detector=detector))
    run("merge", "m.rtsrun", "-o", "strict.gpkg", "--min-score", str(every.median()), "--simplify", "8")
    strict = read_map(tmp_path / "strict.gpkg")["score"]
    assert len(strict) == (every >= every.median()).sum()
    assert detector.seen == []
    assert "exists already" in run("merge", "m.rtsrun", "-o", "strict.gpkg", code=1).stderr


def test_runs_show_tells_how_far_a_run_is(scene, monkeypatch):
    run("plan", "scene.tif", "--out", "run", "--shard-tiles", "1")
    assert "shards    0 of 9 computed" in run("runs", "show", "run").stdout
    broken = engine(detector=CountingDetector(fails=frozenset({4})))
    monkeypatch.setattr(workers, "engine_of", lambda *_, **__: broken)
    told = run("work", "run", "--shard", "1/2", code=3).stderr
    assert "run: tiles or second looks that failed: 1 `rtsmap work run` tries them again" in " ".join(
        told.split()
    )
    found = json.loads(run("runs", "show", "run", "--json").stdout)
    assert (found["shards"], found["done"], found["finished_scenes"], found["workers"]) == (9, 5, 0, [])
    ((_, tile, reason),) = found["failed"]
    assert tile == 4
    assert "fell over" in reason
    assert "tile 4: detecting failed" in run("runs", "show", "run").stdout
    run("work", "run", code=3)
    told = run("merge", "run", "-o", "m.gpkg", code=3).stderr
    assert "run `rtsmap work run`, then merge with --overwrite, to try them again" in " ".join(told.split())


def test_what_is_no_run_is_told(tmp_path, scene):
    for command in (["work", "."], ["merge", ".", "-o", "m.gpkg"], ["runs", "show", "."]):
        assert "no run directory" in run(*command, code=1).stderr


def test_an_executor_is_one(scene):
    both = run("predict", "scene.tif", "--workers", "2", "--scheduler", "tcp://x:1", code=1)
    assert "give one of them" in both.stderr
    run("plan", "scene.tif", "--out", "run")
    assert "job arrays" in run("work", "run", "--workers", "2", "--shard", "1/2", code=1).stderr


@pytest.mark.usefixtures("scene")
def test_a_share_without_a_shard_does_not_miss_others_that_are_there():
    run("plan", "scene.tif", "--out", "run")
    assert "not finished" in run("work", "run", "--shard", "2/2").stderr
    run("work", "run", "--shard", "1/2")
    told = run("work", "run", "--shard", "2/2").stderr
    assert "0 shards computed" in told
    assert "makes the map" in told
    assert "not finished" not in told


def test_a_review_outlives_the_map_being_made_again(tmp_path, scene):
    run("predict", "scene.tif", "-o", "m.gpkg")
    rows = [{"id": identity, "review": "accepted"} for identity in read_map(tmp_path / "m.gpkg")["id"]]
    (tmp_path / "r.json").write_text(json.dumps({"format": "rtsmap-review-1", "reviews": rows}))
    run("review", "apply", "m.gpkg", "r.json")
    for command in (["merge", "m.rtsrun"], ["predict", "scene.tif"]):
        told = " ".join(run(*command, "-o", "m.gpkg", "--overwrite").stderr.split())
        assert f"Note: m.gpkg: {len(rows)} reviews of the map that was replaced went over" in told
        assert read_map(tmp_path / "m.gpkg")["review"].tolist() == ["accepted"] * len(rows)
    least = read_map(tmp_path / "m.gpkg")["score"].max()
    told = " ".join(
        run("merge", "m.rtsrun", "-o", "m.gpkg", "--overwrite", "--min-score", least).stderr.split()
    )
    assert f"had {len(rows) - 1} reviews of footprints that are gone" in told
    assert len(read_map(tmp_path / "m.replaced.gpkg")) == len(rows)

"""A run killed anywhere and started again gives what an uninterrupted run gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from rtsmap.runs.mapping import predict
from tests.runs.blob_scenes import blob_labels, engine, write_dem, write_scene
from tests.runs.killed_run import OPTIONS, PLACES
from tests.runs.map_content import content
from tests.runs.test_mapping import CountingDetector

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")


@dataclass(frozen=True, slots=True)
class Inputs:
    scene: Path
    dem: Path
    wanted: dict
    tiles_of: dict
    looks: set


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    """A scene of 9 shards, and the content of its uninterrupted map."""
    folder = tmp_path_factory.mktemp("inputs")
    scene = write_scene(folder / "scene.tif", blob_labels((260, 300), 3, 30))
    dem = write_dem(folder / "dem.tif", scene.geobox, share=0.7)
    report = predict(scene.path, dem, out=folder / "whole.gpkg", model=engine(), options=OPTIONS)
    assert report.shards_computed == 9
    tiles_of = {path.name: tiles_in(path) for path in report.run_dir.glob("shard-*.arrow")}
    looks = {p.relative_to(report.run_dir) for p in (report.run_dir / "looks").rglob("*") if p.is_file()}
    assert looks
    return Inputs(scene.path, dem, content(folder / "whole.gpkg"), tiles_of, looks)


def tiles_in(shard: Path) -> list[int]:
    with pa.ipc.open_file(str(shard)) as reader:
        head = json.loads(reader.schema.metadata[b"rtsmap"])
    return [tile["tile"] for tile in head["tiles"]]


def killed(inputs: Inputs, out: Path, place: str, visit: int) -> None:
    """Run in a process of its own until it kills itself."""
    program = [sys.executable, "-m", "tests.runs.killed_run"]
    arguments = [str(inputs.scene), str(inputs.dem), str(out), place, str(visit)]
    done = subprocess.run(
        program + arguments, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("place", "visit"),
    [
        ("planning", 1),
        ("reading", 5),
        ("inference", 17),
        ("inside a shard", 4),
        ("writing a shard", 4),
        ("linking", 5),
        ("inference", 45),
        ("looking again", 5),
        ("writing a shard", 16),
        ("merging", 7),
        ("writing the map", 1),
        ("ending the map", 1),
    ],
)
def test_killed_and_started_again_is_uninterrupted(tmp_path, inputs, place, visit):
    out = tmp_path / "m.gpkg"
    killed(inputs, out, place, visit)
    assert not out.exists()
    finished = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "m.rtsrun").glob("shard-*.arrow")}
    detector = CountingDetector()
    report = predict(inputs.scene, inputs.dem, out=out, model=engine(detector=detector), options=OPTIONS)
    assert content(out) == inputs.wanted
    # what was finished was neither computed nor written again
    assert report.shards_reused == len(finished)
    assert report.shards_computed == 9 - len(finished)
    assert len(set(detector.seen)) == len(detector.seen)
    tiles_in_finished = {tile for name in finished for tile in inputs.tiles_of[name]}
    assert tiles_in_finished.isdisjoint(detector.seen)
    for name, written in finished.items():
        assert (report.run_dir / name).stat().st_mtime_ns == written
    # and nothing is left lying about
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gpkg", "m.rtsrun"]
    left = {p.name for p in report.run_dir.iterdir()} - {".lock", "plan.json", "looks"}
    assert left == {f"shard-{i:06d}.arrow" for i in range(9)}
    looks = {p.relative_to(report.run_dir) for p in (report.run_dir / "looks").rglob("*") if p.is_file()}
    assert looks == inputs.looks


def test_every_place_is_tried():
    tried = test_killed_and_started_again_is_uninterrupted.pytestmark[0].args[1]
    assert {place for place, _ in tried} == set(PLACES)


def test_killed_three_times_in_a_row(tmp_path, inputs):
    out = tmp_path / "m.gpkg"
    for place, visit in (("reading", 4), ("writing a shard", 2), ("merging", 3)):
        killed(inputs, out, place, visit)
    predict(inputs.scene, inputs.dem, out=out, model=engine(), options=OPTIONS)
    assert content(out) == inputs.wanted

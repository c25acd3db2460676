"""`rtsmap report` and `rtsmap review apply` at the command line."""

from __future__ import annotations

import json

import numpy as np
import shapely
from typer.testing import CliRunner

from rtsmap.cli.main import app
from rtsmap.vectors.geopackage import read_map, write_map
from tests.runs.blob_scenes import grid, write_scene
from tests.vectors.samples import RECORD, UTM, footprint


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_a_map_is_shown_and_reviewed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene = write_scene(tmp_path / "scene.tif", np.ones((40, 60), int))
    box = shapely.box(*grid((40, 60)).boundingbox)
    slumps = [footprint(box.buffer(-20 - 5 * number), UTM, number) for number in range(2)]
    write_map(tmp_path / "map.gpkg", slumps, UTM, [], RECORD)
    done = run("report", "map.gpkg", "--scene", scene.path, "--limit", 1)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == "map_report.html"
    assert "pictures are of the 1 most uncertain of 2 footprints" in " ".join(done.stderr.split())
    assert run("report", "map.gpkg", "--scene", scene.path).exit_code == 1

    document = {
        "format": "rtsmap-review-1",
        "reviews": [{"id": slumps[0].id, "review": "rejected", "comment": "ж"}],
    }
    (tmp_path / "r.json").write_text(json.dumps(document), encoding="utf-8")
    done = run("review", "apply", "map.gpkg", "r.json")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == "map.gpkg"
    assert "0 accepted, 1 rejected, 1 undecided; 1 with a comment" in " ".join(done.stderr.split())
    assert set(read_map(tmp_path / "map.gpkg")["review"].dropna()) == {"rejected"}
    document["reviews"][0]["id"] = "unknown"
    (tmp_path / "r.json").write_text(json.dumps(document), encoding="utf-8")
    assert run("review", "apply", "map.gpkg", "r.json").exit_code == 1

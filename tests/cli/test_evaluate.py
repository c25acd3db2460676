"""`rtsmap evaluate` at the command line."""

from __future__ import annotations

import json

import numpy as np
from typer.testing import CliRunner

from rtsmap.cli.main import app
from rtsmap.instances.coco_scores import coco_results
from rtsmap.instances.detections import Detection
from rtsmap.rasters.tiling import Window
from tests.runs.test_evaluating import slump, written_labels, written_map


def evaluate_map(*arguments):
    return CliRunner().invoke(app, ["evaluate", "map", *map(str, arguments)])


def test_figures_are_printed_and_written(tmp_path):
    slumps = [slump(0), slump(1)]
    pair = written_map(tmp_path / "map.gpkg", slumps[:1]), written_labels(tmp_path / "labels.gpkg", slumps)
    done = evaluate_map(*pair, "--out", tmp_path / "figures.json")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("1 footprints, 2 true slumps on 1.")
    recall = next(line for line in done.stdout.splitlines() if line.startswith("recall_30 "))
    assert recall.split()[1] == "0.500"
    assert json.loads((tmp_path / "figures.json").read_text())["footprints"] == 1
    again = evaluate_map(*pair, "--out", tmp_path / "figures.json")
    assert again.exit_code == 1
    assert evaluate_map(*pair, "--out", tmp_path / "figures.json", "--overwrite").exit_code == 0


def test_files_come_in_pairs(tmp_path):
    done = evaluate_map(tmp_path / "map.gpkg")
    assert done.exit_code == 1
    assert "maps and labels in turn" in " ".join(done.stderr.split())


def test_results_are_scored_and_written_again(tmp_path):
    (tmp_path / "images").mkdir()
    picture = {"id": 1, "file_name": "a.png", "height": 20, "width": 20}
    ring = [0, 0, 10, 0, 10, 10, 0, 10]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 100, "bbox": [0, 0, 10, 10]}
    labels = {"images": [picture], "annotations": [{**annotation, "segmentation": [ring]}]}
    (tmp_path / "coco.json").write_text(json.dumps(labels))
    found = Detection(0.7, Window(0, 0, 10, 10), np.full((10, 10), 255, np.uint8), 0)
    (tmp_path / "found.json").write_text(json.dumps(coco_results(1, [found], (20, 20))))
    arguments = ["evaluate", "chips", tmp_path / "coco.json", "--results", tmp_path / "found.json"]
    arguments += ["--submission", tmp_path / "again.json", "--out", tmp_path / "figures.csv"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert "1 chips, 1 detections" in done.stdout
    assert next(line for line in done.stdout.splitlines() if line.startswith("AP50")).split()[1] == "1.000"
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(
        (tmp_path / "found.json").read_text()
    )
    assert (tmp_path / "figures.csv").exists()

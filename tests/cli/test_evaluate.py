"""`rtsmap evaluate` at the command line."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from rtsmap import models
from rtsmap.cli.main import app
from rtsmap.instances.coco_scores import coco_results
from rtsmap.instances.detections import Detection
from rtsmap.rasters.tiling import Window
from tests.runs.test_calibrating import RIGHT, WRONG, scored_map
from tests.runs.test_evaluating import slump, written_labels, written_map
from tests.test_models import bundle


def evaluate_map(*arguments):
    return CliRunner().invoke(app, ["evaluate", "map", *map(str, arguments)])


def test_figures_are_printed_and_written(tmp_path):
    slumps = [slump(0), slump(1)]
    pair = written_map(tmp_path / "map.gpkg", slumps[:1]), written_labels(tmp_path / "labels.gpkg", slumps)
    done = evaluate_map(*pair, "--out", tmp_path / "figures.json")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("1 footprint, 2 true slumps on 1.")
    recall = next(line for line in done.stdout.splitlines() if line.startswith("recall_30 "))
    assert recall.split()[1] == "0.500"
    assert json.loads((tmp_path / "figures.json").read_text())["footprints"] == 1
    again = evaluate_map(*pair, "--out", tmp_path / "figures.json")
    assert again.exit_code == 1
    assert evaluate_map(*pair, "--out", tmp_path / "figures.json", "--overwrite").exit_code == 0


def test_figures_and_a_curve_may_have_the_same_name_and_never_the_same_file(tmp_path):
    slumps = [slump(0)]
    pair = written_map(tmp_path / "map.gpkg", slumps), written_labels(tmp_path / "labels.gpkg", slumps)
    clash = ("--out", tmp_path / "one.curve.csv", "--curve", tmp_path / "one.png", "--overwrite")
    done = evaluate_map(*pair, *clash)
    assert done.exit_code == 1
    assert "would be written twice" in " ".join(done.stderr.split())
    assert not list(tmp_path.glob("one.*"))
    assert evaluate_map(*pair, "--out", tmp_path / "one.json", "--curve", tmp_path / "one.png").exit_code == 0
    written = {path.name for path in tmp_path.glob("one.*")}
    assert written == {"one.json", "one.csv", "one.png", "one.curve.csv"}


def test_figures_of_nothing_are_dashes(tmp_path):
    pair = (
        written_map(tmp_path / "map.gpkg", [slump(0)]),
        written_labels(tmp_path / "labels.gpkg", [slump(0)]),
    )
    done = evaluate_map(*pair)
    assert "nan" not in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("false_per_100_km2_empty_maps")]
    assert line.split()[1:] == ["-"]


def test_files_come_in_pairs(tmp_path):
    done = evaluate_map(tmp_path / "map.gpkg")
    assert done.exit_code == 1
    assert "each map with its labels after it, MAP.gpkg LABELS, got 1 file" in " ".join(done.stderr.split())


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
    arguments += ["--sheet", tmp_path / "sheet.png"]
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert "1 chip, 1 detection, " in done.stdout
    assert next(line for line in done.stdout.splitlines() if line.startswith("AP50")).split()[1] == "1.000"
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(
        (tmp_path / "found.json").read_text()
    )
    assert (tmp_path / "figures.csv").exists()
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000


def evaluate_calibration(*arguments):
    return CliRunner().invoke(app, ["evaluate", "calibration", *map(str, arguments)])


def test_a_curve_is_drawn_with_its_points(tmp_path):
    slumps = [slump(0), slump(1)]
    pair = written_map(tmp_path / "map.gpkg", slumps), written_labels(tmp_path / "labels.gpkg", slumps)
    done = evaluate_map(*pair, "--curve", tmp_path / "curve.png", "--out", tmp_path / "f.json")
    assert done.exit_code == 0, done.output
    assert "slumps     2, footprints     2" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} >= {"curve.png", "curve.curve.csv", "f.json", "f.csv"}
    assert sum(map(sum, json.loads((tmp_path / "f.json").read_text())["sizes"].values())) == 4
    odd = evaluate_map(*pair, "--curve", tmp_path / "curve.txt")
    assert odd.exit_code == 1
    assert ".png" in odd.stderr


def test_scores_are_calibrated_and_the_card_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = bundle(tmp_path / "shipped" / "tiny")
    monkeypatch.setattr(models, "bundle_roots", lambda: (tmp_path / "shipped",))
    scored = scored_map(tmp_path / "map.gpkg", RIGHT + WRONG, card.sha256)
    labels = written_labels(tmp_path / "labels.gpkg", [slump(number) for number in range(len(RIGHT))])
    told = (scored, "--truth", labels)
    done = evaluate_calibration(
        *told, "--precision", 0.7, "--out", "c.json", "--diagram", "c.png", "--write-card", "tiny"
    )
    assert done.exit_code == 0, done.output
    assert "15 footprints, 8 of them true" in done.stdout
    assert (
        "score >= 0.3 gives precision 0.727 (0.434 to 0.903), on 11 footprints, 8 of them true" in done.stdout
    )
    assert done.stdout.splitlines()[-1] == "tiny-calibrated"
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"c.json", "c.csv", "c.reliability.csv", "c.png", "tiny-calibrated"}
    verified = CliRunner().invoke(app, ["models", "verify", "./tiny-calibrated"])
    assert verified.exit_code == 0, verified.output
    assert "temperature of scores" in CliRunner().invoke(app, ["models", "show", "./tiny-calibrated"]).stdout
    assert models.read_card(card.folder) == card
    again = evaluate_calibration(*told, "--write-card", "tiny")
    assert again.exit_code == 1
    assert "--card-out" in again.stderr


def test_a_precision_that_cannot_be_reached_is_said_and_not_written(tmp_path):
    card = bundle(tmp_path / "tiny")
    scored = scored_map(tmp_path / "map.gpkg", RIGHT + WRONG, card.sha256)
    labels = written_labels(tmp_path / "labels.gpkg", [slump(number) for number in range(len(RIGHT))])
    done = evaluate_calibration(scored, "--truth", labels, "--precision", 0.99, "--write-card", card.folder)
    assert done.exit_code == 1
    assert "precision 0.99 CANNOT BE REACHED" in done.stdout
    assert "precision is not reached" in " ".join(done.stderr.split())
    assert models.read_card(card.folder) == card
    few = scored_map(tmp_path / "few.gpkg", RIGHT[:3] + WRONG[:2])
    done = evaluate_calibration(few, "--truth", labels)
    assert done.exit_code == 0
    assert "CANNOT BE CLAIMED: 5 footprints are too few" in done.stdout

"""`rtsmap evaluate` at the command line."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from rtsmap.cli.main import app
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

"""The examples run, and leave what they say."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rtsmap.vectors.geopackage import read_map

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
HELD_ELSEWHERE = {
    "pack_training_data.py",  # need data or hours; what they call has tests of its own
    "publish_starter.py",
    "train_starter.py",
}


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a scene was simulated and mapped by the first example."""
    folder = tmp_path_factory.mktemp("example")
    example("map_a_scene").main(folder, size_px=256)
    return folder


def test_a_scene_is_mapped(folder):
    slumps = read_map(folder / "slumps.gpkg")
    assert len(slumps) > 0
    assert (slumps["score"] >= 0.4).all()


def test_a_map_is_shared(folder, tmp_path, capsys):
    example("share_a_map").main(folder / "slumps.gpkg", tmp_path)
    assert "shapefile: names have ten characters" in capsys.readouterr().out
    made = {path.name for path in tmp_path.iterdir()}
    assert {
        "slumps.csv",
        "slumps.kml",
        "polar.shp",
        "report.html",
        "arts.geojson",
        "pdg.gpkg",
        "item.json",
    } <= made
    assert set(read_map(folder / "slumps.gpkg")["review"].dropna()) == {"accepted"}


def test_chips_are_cut(folder, tmp_path, capsys):
    example("cut_chips").main(
        folder / "scene.tif", folder / "dem.tif", folder / "truth.gpkg", tmp_path / "chips"
    )
    assert "red, green, blue, shape (3, 128, 128)" in capsys.readouterr().out


def test_every_example_is_held_by_a_test():
    text = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert path.name in HELD_ELSEWHERE or f'example("{path.stem}")' in text, path.name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell):
    """What a shell asks when somebody presses the tabulator after `rtsmap`, and what it is told."""
    asked = {
        "bash": {"COMP_WORDS": "rtsmap re", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "rtsmap re"},
        "fish": {"_TYPER_COMPLETE_ARGS": "rtsmap re", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }
    variables = {**os.environ, "_RTSMAP_COMPLETE": f"complete_{shell}", **asked[shell]}
    code = "from rtsmap.cli.main import app; app(prog_name='rtsmap')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False, timeout=60
    )
    assert "report" in done.stdout, done.stderr
    assert "review" in done.stdout
    assert "predict" not in done.stdout

"""`rtsmap simulate`."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from rtsmap.cli import simulate
from rtsmap.errors import InputError, OptionsError

APP = typer.Typer()
APP.command()(simulate.command)


def run(*arguments):
    return CliRunner().invoke(APP, [str(a) for a in arguments])


def test_a_scene_is_made_and_its_files_are_named(tmp_path):
    done = run(tmp_path, "--preset", "demo", "--seed", 3, "--size-px", 128)
    assert done.exit_code == 0, done.output
    for name in ("scene.tif", "dem.tif", "truth.gpkg", "lookalikes.gpkg"):
        assert (tmp_path / name).exists()
        assert name in done.output.replace("\n", "")
    again = run(tmp_path, "--preset", "demo", "--seed", 3, "--size-px", 128)
    assert isinstance(again.exception, InputError)
    assert run(tmp_path, "--preset", "demo", "--seed", 3, "--size-px", 128, "--overwrite").exit_code == 0


def test_an_unknown_preset_names_those_there_are(tmp_path):
    wrong = run(tmp_path, "--preset", "nonsense")
    assert isinstance(wrong.exception, OptionsError)
    assert "benchmark-1" in str(wrong.exception)

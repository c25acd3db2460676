from __future__ import annotations

import errno
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import rtsmap
from rtsmap.cli.main import app, guarded
from rtsmap.errors import InputError, PlanMismatchError, ShardError, WeightsError
from tests.rasters.files import write

COMMANDS = ["info", "predict", "tile", "export", "simulate", "pack", "train", "demo", "doctor", "models"]


def test_help_names_every_command_and_every_command_has_examples():
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    for name in COMMANDS:
        assert name in shown.stdout
        text = CliRunner().invoke(app, [name, "--help"]).stdout
        assert "Usage" in text
        assert "Example" in text or name == "models"
    for name in ("list", "show", "verify", "publish"):
        assert "Example" in CliRunner().invoke(app, ["models", name, "--help"]).stdout


@pytest.mark.parametrize(("command", "flag"), [("predict", "--timings"), ("merge", "--second-look")])
def test_flags_take_no_value_and_their_help_names_none(command, flag):
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, "--help"]).stdout
    (line,) = [line for line in shown.splitlines() if f" {flag} " in line]
    assert "bool" not in line.lower()


def test_no_help_text_loses_its_brackets():
    """rich takes [default: 4] for a style and shows nothing of it."""

    def texts(command):
        for parameter in command.params:
            yield parameter.help or ""
        for part in getattr(command, "commands", {}).values():
            yield from texts(part)

    found = list(texts(typer.main.get_command(app)))
    assert len(found) > 100
    assert [text for text in found if re.search(r"\[[a-z#/@]", text)] == []


def test_version():
    shown = CliRunner().invoke(app, ["--version"])
    assert shown.stdout.strip() == f"rtsmap {rtsmap.__version__}"


def test_wrong_usage_is_2():
    assert CliRunner().invoke(app, ["predict"]).exit_code == 2
    assert CliRunner().invoke(app, ["predict", "a.tif", "--nonsense"]).exit_code == 2
    assert CliRunner().invoke(app, ["nonsense"]).exit_code == 2


def one_command(raises: BaseException) -> typer.Typer:
    """An app whose only command fails in a certain way, behind the handler."""
    small = typer.Typer()

    def command() -> None:
        raise raises

    small.command()(guarded(command))
    return small


@pytest.mark.parametrize("error", [InputError, PlanMismatchError, ShardError, WeightsError])
def test_errors_of_ours_are_a_message_without_traceback_and_1(error):
    shown = CliRunner().invoke(one_command(error("scene.tif: has no CRS")), [])
    assert shown.exit_code == 1
    assert "scene.tif: has no CRS" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert shown.stdout == ""


def test_a_message_keeps_its_brackets():
    """rich would take [optical] for a style."""
    shown = CliRunner().invoke(one_command(InputError("layer [optical] of [red]")), [])
    assert "layer [optical] of [red]" in shown.stderr


def test_a_bug_is_70_with_traceback_and_a_sentence():
    shown = CliRunner().invoke(one_command(ZeroDivisionError("oops")), [])
    assert shown.exit_code == 70
    assert "Traceback" in shown.stderr
    assert "ZeroDivisionError: oops" in shown.stderr
    assert "bug of rtsmap" in shown.stderr


def test_interrupting_is_130():
    shown = CliRunner().invoke(one_command(KeyboardInterrupt()), [])
    assert shown.exit_code == 130
    assert "Traceback" not in shown.stderr


def test_a_reader_that_leaves_early_is_no_bug():
    shown = CliRunner().invoke(one_command(BrokenPipeError(errno.EPIPE, "Broken pipe")), [])
    assert shown.exit_code == 1
    assert "bug" not in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_command_may_choose_its_exit_code():
    assert CliRunner().invoke(one_command(typer.Exit(3)), []).exit_code == 3
    assert CliRunner().invoke(one_command(typer.BadParameter("no")), []).exit_code == 2


def test_the_script_starts():
    out = subprocess.run(
        [sys.executable, "-c", "from rtsmap.cli.main import run; run()", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == f"rtsmap {rtsmap.__version__}"


@pytest.mark.parametrize(
    "code",
    [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG],
)
def test_a_place_that_cannot_be_written_to_is_no_bug(code, capsys):
    def command() -> None:
        raise OSError(code, os.strerror(code), "/media/disk/m.rtsrun")

    with pytest.raises(typer.Exit) as left:
        guarded(command)()
    told = capsys.readouterr().err
    assert left.value.exit_code == 1
    assert "/media/disk/m.rtsrun" in told
    assert os.strerror(code) in told
    assert "Traceback" not in told
    assert ("A folder is wanted" in told) == (code in {errno.ENOTDIR, errno.EEXIST})


def test_files_that_are_not_there_are_told_without_numbers(tmp_path):
    for command in (
        ["review", "apply", "map.gpkg", "absent.json"],
        ["evaluate", "chips", "absent.json"],
        ["predict", "absent.csv"],
        ["predict", "a.npz", "--image-ids", "absent.json"],
    ):
        shown = CliRunner().invoke(app, [str(tmp_path / word) if "." in word else word for word in command])
        assert shown.exit_code == 1, shown.output
        assert "o such file" in shown.stderr
        assert "Errno" not in shown.stderr


def test_names_of_files_are_never_cut_off(tmp_path):
    path = write(tmp_path / f"{'a_long_name_' * 8}.tif", np.ones((3, 300, 300), np.uint8))
    shown = CliRunner(env={"COLUMNS": "60"}).invoke(app, ["info", str(path)])
    assert path.name in re.sub(r"\s+", "", shown.stdout.partition("CRS")[0])


def test_an_error_before_any_progress_stands_on_the_first_line(tmp_path):
    shown = CliRunner().invoke(app, ["merge", str(tmp_path / "absent"), "-o", str(tmp_path / "m.gpkg")])
    assert shown.stderr.startswith("Error: ")

"""The examples run, and leave what they say."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rtsmap.cli.main import app
from rtsmap.vectors.geopackage import read_map
from tests.runs.blob_scenes import blob_labels, engine, write_scene

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
    assert "shapefile: names have ten bytes" in capsys.readouterr().out
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


def test_work_is_shared(folder, tmp_path, capsys):
    example("share_the_work").main(folder / "scene.tif", folder / "dem.tif", tmp_path)
    told = capsys.readouterr().out
    assert "1 of 1 have all their tiles" in told
    one, many = read_map(tmp_path / "shared.gpkg"), read_map(tmp_path / "many.gpkg")
    assert len(one) == len(many) == len(read_map(folder / "slumps.gpkg"))
    assert (tmp_path / "probability.tif").exists()


def test_chips_of_eight_bands_are_used(tmp_path, capsys):
    example("chips_of_eight_bands").main(tmp_path)
    told = capsys.readouterr().out
    assert "1 image with" in told
    assert json.loads((tmp_path / "results.json").read_text())[0]["image_id"] == 0


def test_a_map_is_judged(folder, tmp_path, capsys):
    example("judge_a_map").main(folder / "slumps.gpkg", folder / "truth.gpkg", tmp_path)
    told = capsys.readouterr().out
    assert "f1_30" in told
    assert "rts-starter" in told
    assert (tmp_path / "scores.csv").exists()


def test_a_model_is_trained(tmp_path, capsys):
    example("train_a_model").main(tmp_path, steps=3, size_px=160)
    assert "mine 0.1.0: " in capsys.readouterr().out


def documented():
    """Rows of the table of docs/python.md: commands, dotted names, example."""
    for line in (EXAMPLES.parent / "docs" / "python.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            commands, functions, script = (
                re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|")
            )
            yield commands, functions, script


def test_every_command_has_a_typed_function_and_an_example():
    rows = list(documented())
    named = " ".join(command for commands, _, _ in rows for command in commands)
    for command in app.registered_commands:
        assert command.name in named
    for dotted in (name for _, functions, _ in rows for name in functions):
        module, _, name = dotted.rpartition(".")
        if module.rpartition(".")[2][0].isupper():
            module, _, kind = module.rpartition(".")
            function = getattr(getattr(importlib.import_module(module), kind), name)
        else:
            function = getattr(importlib.import_module(module), name)
        signature = inspect.signature(function)
        assert signature.return_annotation is not signature.empty, dotted
        untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
        assert untyped in ([], ["self"]), dotted
        assert inspect.getdoc(function), dotted
    for _, functions, scripts in rows:
        if not scripts:
            continue
        text = (EXAMPLES / scripts[0]).read_text(encoding="utf-8")
        assert any(name.rpartition(".")[2] + "(" in text for name in functions), scripts


RTSMAP = """#!{python}
import sys
from rtsmap.runs import many, mapping, spreading, workers
from tests.runs.blob_scenes import engine
for module in (mapping, workers):
    module.engine_of = lambda *_, **__: engine()
for module in (many, spreading):
    module.engine_to_plan = lambda *_, **__: engine()
spreading.engine_at_rest = lambda *_: engine()
from rtsmap.cli.main import run
run()
"""
SBATCH = """#!/bin/bash
# runs at once what SLURM would run some time, with the variables that it gives
array=
while [[ $1 == --* ]]; do
    case $1 in
        --array=1-*) array=${1#--array=1-} ;;
        --parsable | --dependency=afterany:[0-9]*) ;;
        *) echo "sbatch: what is $1?" >&2; exit 1 ;;
    esac
    shift
done
for ((i = 1; i <= ${array:-1}; i++)); do
    [[ -z $array ]] || export SLURM_ARRAY_TASK_ID=$i SLURM_ARRAY_TASK_COUNT=$array
    bash "$@" >&2 || exit 1
done
echo "4711;cluster"
"""


def program(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.skipif(shutil.which("bash") is None, reason="SLURM has bash")
def test_a_slurm_array_maps_scenes(tmp_path):
    """With SLURM's commands played by a script, and the network by a threshold."""
    root, folder = EXAMPLES.parent, tmp_path / "two scenes"
    folder.mkdir()
    for number in range(2):
        write_scene(folder / f"s{number}.tif", blob_labels((150, 150), number, 12))
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin" / "rtsmap", RTSMAP.format(python=sys.executable))
    program(tmp_path / "bin" / "sbatch", SBATCH)
    variables = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(root)}
    out = tmp_path / "map.gpkg"
    command = ["bash", EXAMPLES / "slurm" / "submit.sh", folder, "", tmp_path / "run", out, "2"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert set(read_map(out)["scene_id"]) == {"s0", "s1"}
    assert done.stderr.count("0 shards computed") == 1, "the last job finds nothing left"


@pytest.mark.skipif(shutil.which("bash") is None, reason="SLURM has bash")
def test_scripts_for_slurm_are_bash_and_ask_for_what_sbatch_knows():
    scripts = sorted((EXAMPLES / "slurm").glob("*.sh"))
    assert [script.stem for script in scripts] == ["finish", "submit", "work"]
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        lines = script.read_text(encoding="utf-8").splitlines()
        asked = {line.split()[1].partition("=")[0] for line in lines if line.startswith("#SBATCH")}
        known = {"--job-name", "--cpus-per-task", "--mem", "--gres", "--time", "--requeue", "--signal"}
        assert asked <= known


def test_scenes_are_mapped_with_dask_jobqueue(tmp_path, monkeypatch, capsys):
    """With a cluster of this machine in the place of SLURM's."""
    distributed = pytest.importorskip("distributed")
    asked = {}

    class Cluster(distributed.LocalCluster):
        def __init__(self, **given):
            asked.update(given)
            super().__init__(n_workers=1, threads_per_worker=given["cores"], dashboard_address=":0")

        def adapt(self, *, minimum_jobs, maximum_jobs):
            assert 1 <= minimum_jobs <= maximum_jobs

    monkeypatch.setitem(sys.modules, "dask_jobqueue", SimpleNamespace(SLURMCluster=Cluster))
    scene = write_scene(tmp_path / "scene.tif", blob_labels((150, 150), 1, 12))
    out = tmp_path / "map.gpkg"
    example("map_on_slurm").main([str(scene.path)], out, jobs=2, model=engine())
    assert f"slumps from 1 scenes: {out}" in capsys.readouterr().out
    assert len(read_map(out)) > 0
    assert asked["processes"] == 1


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

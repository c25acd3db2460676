from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rtsmap.errors import EngineError, InputError, OptionsError, PlanMismatchError, RunError, WeightsError
from rtsmap.mm.backbones import FUSION
from rtsmap.mm.held_out import best_threshold
from rtsmap.mm.packs import Spectral, write_pack
from rtsmap.mm.publish import PublishOptions, publish
from rtsmap.mm.recipe import Recipe
from rtsmap.mm.stages import (
    Packs,
    Teller,
    _open_run,
    _Training,
    averaged_weights,
    run_recipe,
    steps_done,
)
from rtsmap.mm.train import Ranks, read_rows
from tests.mm.labelled import labelled_image
from tests.mm.small_recipes import recipe, recipe_data

STAGES = ("optical", "terrain", "fused")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """A run that nothing interrupted."""
    run_recipe(recipe(folder), folder / "whole")
    return folder / "whole"


def state(run: Path, stage: str):
    return torch.load(run / stage / "last.pt", weights_only=True)


def leaves(value, path=""):
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, f"{path}/{key}")]
    if isinstance(value, (list, tuple)):
        return [leaf for i, item in enumerate(value) for leaf in leaves(item, f"{path}/{i}")]
    return [(path, value)]


class Stopped(Exception):  # noqa: N818
    pass


def test_killed_at_a_random_step_and_started_again_it_ends_with_the_same_weights(folder, whole):
    steps = sum(stage.options.steps for stage in recipe(folder).stages.values())
    kill_after, stop_after = random.randint(1, steps), random.randint(1, steps)
    run = folder / "killed"
    program = [sys.executable, "-m", "tests.mm.killed_training", str(folder), str(run), str(kill_after)]
    killed = subprocess.run(program, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    seen = iter(range(1, steps + 1))

    def stop(_stage, done, _total):
        # counts the starts of stages too, so it may come before the first step
        if done and next(seen, 0) == stop_after:
            raise Stopped

    try:
        run_recipe(recipe(folder), run, tell=Teller(progress=stop))
    except Stopped:
        run_recipe(recipe(folder), run)
    for stage in STAGES:
        expected = dict(leaves(state(whole, stage)))
        for path, value in leaves(state(run, stage)):
            same = torch.equal(value, expected[path]) if torch.is_tensor(value) else value == expected[path]
            assert same, f"{stage}{path} after a kill at {kill_after} and a stop at {stop_after}"
        for name in ("log.jsonl", "validation.jsonl"):
            rows, there = read_rows(run / stage / name), read_rows(whole / stage / name)
            for row in (*rows, *there):
                row.pop("seconds_per_step", None)
            assert rows == there


def test_two_processes_learn_what_one_does_that_adds_up_two_batches(folder, tmp_path):
    data = recipe_data(folder)
    # by chance layers drop out and regions are drawn, by the draws of each process
    data["network"] = {**data["network"], "drop_path": 0.0}
    del data["data"]["held_out"], data["stages"]["fused"]
    path, run = tmp_path / "pair.toml", tmp_path / "run 2"
    path.write_text(Recipe.from_dict(data).to_toml())
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = [sys.executable, *torchrun, "-m", "rtsmap", "train", str(path), "--out", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    data["training"] = {**data["training"], "accumulate": 2}
    run_recipe(Recipe.from_dict(data), tmp_path / "run 1")
    for stage in ("optical", "terrain"):
        alone, together = (averaged_weights(tmp_path / f"run {processes}" / stage) for processes in (1, 2))
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, msg=f"{stage} {name}")


@pytest.mark.parametrize("left", ["record.json.part", "record.json", "config.toml.part"])
def test_a_stop_in_the_very_first_moment_blocks_no_second_start(folder, tmp_path, left):
    packs = Packs.find(recipe(folder))
    (tmp_path / left).write_text("{")
    _open_run(tmp_path, recipe(folder), packs, {"device": "cpu", "processes": 1})
    assert Recipe.read(tmp_path / "config.toml") == recipe(folder)
    assert len(json.loads((tmp_path / "record.json").read_text())["starts"]) == 1
    (tmp_path / "record.json").unlink()
    with pytest.raises(RunError, match="not empty and holds no training"):
        _open_run(tmp_path, recipe(folder), packs, {"device": "cpu", "processes": 1})


def test_a_finished_run_is_left_as_it_is(folder, whole):
    before = (whole / "fused" / "last.pt").stat().st_mtime_ns
    run_recipe(recipe(folder), whole)
    assert (whole / "fused" / "last.pt").stat().st_mtime_ns == before
    assert len(json.loads((whole / "record.json").read_text())["starts"]) == 2


@pytest.mark.parametrize("kept", [0, 1])
def test_a_stop_in_the_last_look_at_held_out_chips_loses_nothing(folder, whole, tmp_path, kept):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    rows, sheet = run / "fused" / "validation.jsonl", run / "fused" / "predictions.png"
    sheet.unlink()
    lines = rows.read_text().splitlines(keepends=True)
    # the stop came in the middle of a row
    rows.write_text("".join(lines[:kept]) + lines[-1][:20])
    refusal = r"(stopped in its last look|nothing was measured on held-out chips).* run rtsmap train again"
    with pytest.raises(RunError, match=refusal):
        publish(run, "x", tmp_path / "bundle", PublishOptions(licence="x"))
    if not kept:
        told = PublishOptions(licence="x", score_threshold=0.3)
        assert publish(run, "x", tmp_path / "told", told).score_threshold == 0.3
    run_recipe(recipe(folder), run)
    assert rows.read_text() == "".join(lines[:kept] + lines[-1:])
    assert sheet.exists()
    card = publish(run, "x", tmp_path / "bundle", PublishOptions(licence="x"))
    assert card.score_threshold == best_threshold(read_rows(rows))


def test_frozen_backbones_are_those_of_the_unimodal_stages_and_the_rest_learns(whole):
    fused = averaged_weights(whole / "fused")
    for modality in ("optical", "terrain"):
        alone = averaged_weights(whole / modality)
        names = [name for name in alone if name.startswith(f"{FUSION}branch.")]
        assert names
        for name in names:
            here = name.replace("fusion.branch.", f"fusion.branches.{modality}.")
            assert torch.equal(fused[here], alone[name]), name
    neck = [name for name in fused if ".neck." in name]
    assert any(not torch.equal(fused[name], averaged_weights(whole / "optical")[name]) for name in neck)
    crossings = [name for name in fused if f"{FUSION}crossings" in name]
    assert any(fused[name].abs().max() > 0 for name in crossings)


def test_the_run_says_what_it_did(folder, whole):
    assert Recipe.read(whole / "config.toml") == recipe(folder)
    record = json.loads((whole / "record.json").read_text())
    assert [Path(pack["path"]).name for pack in record["packs"]] == ["held_out.pack", "train.pack"]
    assert record["packs"][1]["slumps"] == 6
    for stage in STAGES:
        with (whole / stage / "log.csv").open() as file:
            table = list(csv.DictReader(file))
        rows = read_rows(whole / stage / "log.jsonl")
        assert [float(row["loss"]) for row in table] == [row["loss"] for row in rows]
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (whole / "fused" / "predictions.png").read_bytes().startswith(b"\x89PNG")
    assert not (whole / "optical" / "predictions.png").exists()
    assert [row["step"] for row in read_rows(whole / "fused" / "validation.jsonl")] == [2, 3]
    assert not (whole / "optical" / "validation.jsonl").exists()


def test_another_recipe_or_other_packs_are_refused_by_name(folder, whole):
    with pytest.raises(PlanMismatchError, match=r"seed: 4 now, 3 then"):
        run_recipe(recipe(folder, seed=4), whole)
    other = folder / "train2.pack"
    write_pack(other, [labelled_image(11)])
    with pytest.raises(PlanMismatchError, match=r"pack .*train2.pack was not there"):
        run_recipe(recipe(folder), whole)
    other.unlink()
    with pytest.raises(RunError, match="not empty and holds no training"):
        run_recipe(recipe(folder), folder)


def test_packs_of_another_resolution_are_refused(tmp_path):
    one = recipe(tmp_path)
    for resolution_m in (4.0, 4.01):
        write_pack(tmp_path / "train2.pack", [replace(labelled_image(11), resolution_m=resolution_m)])
        assert len(Packs.find(one).groups["train"]) == 4
    write_pack(tmp_path / "train2.pack", [replace(labelled_image(11), resolution_m=2.0)])
    with pytest.raises(InputError, match=r"train2\.pack: a pixel of 'image 11' shows 2 m.*resolution_m = 4"):
        run_recipe(one, tmp_path / "run")


def test_another_number_of_processes_goes_on_only_where_nothing_was_begun(folder, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    record = json.loads((run / "record.json").read_text())
    record["starts"][-1]["processes"] = 2
    (run / "record.json").write_text(json.dumps(record))
    # nothing is left to do
    run_recipe(recipe(folder), run)
    (run / "record.json").write_text(json.dumps(record))
    (run / "fused" / "last.pt").unlink()
    with pytest.raises(
        PlanMismatchError, match=r"by 2 processes, now there is 1.*torchrun --nproc-per-node 2"
    ):
        run_recipe(recipe(folder), run)
    assert json.loads((run / "record.json").read_text()) == record
    for stage in ("optical", "terrain"):
        (run / stage / "last.pt").unlink()
    run_recipe(recipe(folder), run)


def test_a_process_without_a_gpu_of_its_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "127")
    with pytest.raises(EngineError, match="cannot use device 'cuda:127'"):
        run_recipe(recipe(tmp_path, device="auto"), tmp_path / "run")


def test_one_gpu_is_not_shared_by_processes(tmp_path):
    with pytest.raises(OptionsError, match=r"'cuda:0' is one GPU, for 2 processes; wanted cuda"):
        run_recipe(recipe(tmp_path, device="cuda:0"), tmp_path / "run", ranks=Ranks(0, 2))


def test_groups_and_stages_in_another_order_are_another_training(tmp_path):
    data, packs = recipe_data(tmp_path), Packs({}, {})
    group = data["data"]["groups"].pop("train")
    data["data"]["groups"] = {"one": group, "two": group}
    _open_run(tmp_path / "run", Recipe.from_dict(data), packs, {"processes": 1})
    data["network"] = dict(reversed(data["network"].items()))
    _open_run(tmp_path / "run", Recipe.from_dict(data), packs, {"processes": 1})
    data["data"]["groups"] = {"two": group, "one": group}
    data["stages"] = {name: data["stages"][name] for name in ("terrain", "optical", "fused")}
    told = (
        "data.groups: in the order two, one now, one, two then; "
        "stages: in the order terrain, optical, fused now, optical, terrain, fused then"
    )
    with pytest.raises(PlanMismatchError, match=re.escape(told)):
        _open_run(tmp_path / "run", Recipe.from_dict(data), packs, {"processes": 1})


def test_a_run_of_an_older_rtsmap_goes_on_with_the_defaults_of_new_numbers(folder, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    text = (run / "config.toml").read_text()
    older = text.replace("gradient_checkpointing = false\n", "")
    assert older != text
    (run / "config.toml").write_text(older)
    run_recipe(recipe(folder), run)
    assert (run / "config.toml").read_text() == text


@pytest.mark.parametrize("named", ["backbone_weights", "start"])
def test_files_of_later_stages_are_tried_before_anything_is_trained(tmp_path, named):
    data = recipe_data(tmp_path)
    missing, other = tmp_path / "missing.pyth", tmp_path / "other.pyth"
    torch.save({"model_state": {"norm": torch.ones(1)}}, other)
    for path in (missing, other):
        value = {"terrain": str(path)} if named == "backbone_weights" else str(path)
        data["stages"]["terrain"] |= {named: value}
        with pytest.raises(WeightsError, match=path.name):
            run_recipe(Recipe.from_dict(data), tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"fusion.levels": [5]}, "levels must be among the strides"),
        ({"fusion.levels": []}, "levels must be among the strides"),
        ({"terrain.num_heads": 3}, "must be a multiple of num_heads 3"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_before_anything_is_trained(tmp_path, setting, told):
    data = recipe_data(tmp_path)
    data["network"] = {**data["network"], **setting}
    del data["stages"]["terrain"]
    data["stages"]["fused"]["backbones"] = "free"
    with pytest.raises(OptionsError, match=rf"^stage 'fused': \[network\]: .*{told}"):
        run_recipe(Recipe.from_dict(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [{"x": 1}, [1], {"step": "2", "average": {}}, {"step": Path("x")}])
def test_a_checkpoint_of_another_program_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(WeightsError, match=r"last\.pt: not a checkpoint of rtsmap.*; remove it"):
        steps_done(tmp_path)


def test_a_pack_whose_path_looks_like_a_pattern_is_found(tmp_path):
    folder = tmp_path / "run [a]"
    folder.mkdir()
    data = recipe_data(folder)["data"]
    data["groups"]["train"]["packs"] = [str(folder / "train.pack")]
    assert len(Packs.find(recipe(folder, data=data)).groups["train"]) == 3


def test_ground_that_is_held_out_must_not_be_learnt_from(tmp_path):
    data = {
        "groups": {"a": {"packs": [str(tmp_path / "train.pack")]}},
        "held_out": {"b": [str(tmp_path / "both.pack")]},
    }
    one = recipe(tmp_path, data=data)
    write_pack(tmp_path / "both.pack", [labelled_image(1)])
    with pytest.raises(InputError, match="the group 'group 1' is also learnt from"):
        Packs.find(one)
    with pytest.raises(InputError, match="no pack fits"):
        Packs.find(recipe(tmp_path, data={"groups": {"a": {"packs": [str(tmp_path / "no*.pack")]}}}))
    with pytest.raises(OptionsError, match="no group of packs"):
        recipe(tmp_path, data={"groups": {}})


@pytest.mark.parametrize("bands", [["red", "green", "blue", "nir"], ["red", "green", "blue"]])
def test_imagery_with_infrared_in_it_is_never_taken_away(tmp_path, bands):
    shape = (96, 80)
    infrared = Spectral(("nir",), np.full((1, *shape), 90, np.float32), np.ones(shape, np.bool_))
    data = recipe_data(tmp_path)
    data["network"] = {key: value for key, value in data["network"].items() if key != "terrain"}
    write_pack(tmp_path / "train.pack", [replace(labelled_image(3), spectral=infrared)])
    data["data"] |= {"modalities": ["optical", "spectral"], "bands": {"optical": bands}}
    data["data"]["bands"]["spectral"] = ["ndvi"] if "nir" in bands else ["nir"]
    data["chips"] |= {"augment": {"spectral_missing_share": 1.0}}
    del data["stages"]["terrain"], data["data"]["held_out"]
    data["stages"]["fused"]["backbones"] = "free"
    one = Recipe.from_dict(data)
    training = _Training(one, Packs.find(one), tmp_path, "cpu", Ranks(), Teller(), tensorboard=False)
    for stage in ("optical", "fused"):
        layers = training._source(stage).draw(0).layers
        assert layers["optical"].valid.any()
        assert sum(not layer.valid.any() for layer in layers.values()) == (stage == "fused")


def training_with(tmp_path, **augment):
    data = recipe_data(tmp_path)
    write_pack(tmp_path / "train.pack", [labelled_image(3)])
    data["chips"] |= {"augment": augment}
    one = Recipe.from_dict(data)
    return _Training(one, Packs.find(one), tmp_path, "cpu", Ranks(), Teller(), tensorboard=False)


def test_terrain_alone_is_never_older_than_its_slumps(tmp_path):
    training = training_with(tmp_path, dem_older_share=1.0, dem_missing_share=0.0)
    # the hollows of these slumps are 3 m deep
    for stage, is_deep in (("terrain", True), ("fused", False)):
        draws = [training._source(stage).draw(number) for number in range(6)]
        floors = [d.layers["terrain"].pixels[0][d.masks.any(axis=0)] for d in draws]
        assert (np.median(np.concatenate(floors)) < -2) == is_deep


def test_imagery_goes_missing_where_a_stage_has_terrain_beside_it(tmp_path):
    training = training_with(tmp_path, optical_missing_share=1.0, dem_missing_share=0.0)
    for stage, seen in (("optical", "optical"), ("terrain", "terrain"), ("fused", "terrain")):
        layers = training._source(stage).draw(0).layers
        assert [name for name, layer in layers.items() if layer.valid.any()] == [seen]

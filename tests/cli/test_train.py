from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from rtsmap.cli.main import app
from rtsmap.mm.packs import read_index
from rtsmap.models import read_card
from rtsmap.vectors.geopackage import read_layers

RECIPE = """
seed = 1
[data]
resolution_m = 4.0
[data.groups.train]
packs = ["train.pack"]
[chips]
chip_px = 64
[network]
embed_dim = 8
stage_blocks = [1, 1, 1, 1]
fpn_channels = 16
mask_channels = 16
mask_convs = 1
box_fc_channels = 32
rois_per_chip = 16
rpn_proposals = 20
[training]
batch_size = 1
steps = 1
[stages.optical]
kind = "unimodal"
modality = "optical"
loss = "pixels"
[stages.fused]
kind = "multimodal"
"""


def told(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.stderr
    return done


def test_from_chips_to_a_model_that_predicts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told("simulate", "scene", "--preset", "training", "--size-px", 160)
    files = ("scene/scene.tif", "--dem", "scene/dem.tif")
    told("tile", *files, "--labels", "scene/truth.gpkg", "--chip-px", 96, "--out", "chips")
    packed = told("pack", "chips", "--out", "train.pack")
    assert packed.stdout.strip() == "train.pack"
    assert all(image.has_terrain for image in read_index(Path("train.pack")))
    Path("mine.toml").write_text(RECIPE)
    trained = told("train", "mine.toml", "--set", "stages.fused.steps=2", "--set", "device=cpu")
    assert trained.stdout.strip() == "mine_run"
    assert "fused step 2 of 2: loss" in trained.stderr
    assert "from stage optical" in trained.stderr
    published = told("models", "publish", "mine_run", "mine", "--licence", "test only", "--out", "bundle")
    assert published.stdout.strip() == "bundle"
    assert "whole" in told("models", "verify", "bundle").stdout
    told("predict", *files, "--model", "bundle", "--out", "map.gpkg", "--device", "cpu", "--no-second-look")
    assert set(read_layers(Path("map.gpkg")).coverage["status"]) == {"mapped"}
    assert read_card("bundle").licence == "test only"


def test_a_recipe_can_be_shown_and_is_refused_where_it_is_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = told("train", "tiny", "--show")
    Path("mine.toml").write_text(shown.stdout)
    assert told("train", "mine.toml", "--show").stdout == shown.stdout
    refused = CliRunner().invoke(app, ["train", "tiny", "--set", "stages.fused.stps=3"])
    assert refused.exit_code == 1
    assert "stages.fused.steps" in refused.stderr
    absent = CliRunner().invoke(app, ["train", "tiny"])
    assert absent.exit_code == 1
    assert "packs/train.pack" in absent.stderr
    assert not Path("tiny_run").exists()

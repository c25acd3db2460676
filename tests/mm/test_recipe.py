from __future__ import annotations

from pathlib import Path

import pytest

from rtsmap.errors import OptionsError
from rtsmap.mm.recipe import RECIPES, Recipe, find_recipe, flat
from rtsmap.mm.register import NetworkConfig
from rtsmap.mm.tables import parse
from rtsmap.mm.train import learning_rate
from tests.mm.small_recipes import recipe, recipe_data

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_survive_the_way_to_toml_and_back(name):
    one = Recipe.read(find_recipe(name))
    assert Recipe.from_dict(parse(one.to_toml(), "again")) == one
    for stage in one.stages:
        NetworkConfig.from_mapping(one.network_of(stage))


def test_the_small_recipe_makes_the_network_of_the_shipped_model_but_for_the_fusion_that_measured_best():
    import json

    from rtsmap.models import find_bundle

    shipped = json.loads((find_bundle("rts-starter") / "model.json").read_text())
    shipped.pop("views", None)
    better = {"fusion.interleaved": True, "fusion.residual_to": "sum", "fusion.mlp_ratio": 2.0}
    assert Recipe.read(find_recipe("small")).network == shipped | better


def test_the_papers_recipe_is_what_its_authors_publish():
    """Figures of their repository SAMPermafrostAssessment and of Detectron2's MViTv2, which it builds on."""
    one = Recipe.read(find_recipe("paper"))
    network = NetworkConfig.from_mapping(one.network_of("optical"))
    assert [side * network.enlarge for side in network.anchor_px] == [16, 32, 64, 128, 256]
    assert one.chips.chip_px * network.enlarge == 800
    assert (network.embed_dim, network.stage_blocks, network.window, network.table_px) == (
        96,
        (1, 2, 5, 2),
        56,
        224,
    )
    assert (network.rpn_convs, network.rpn_proposals, network.rois_per_chip) == (2, 1000, 512)
    assert (network.cascade_iou, network.cascade_weights) == ((0.5, 0.6, 0.7), (1, 1, 1))
    assert (network.min_score, network.nms_iou, network.max_per_chip) == (0.05, 0.5, 100)
    for stage in one.stages.values():
        options = stage.options
        assert (options.lr, options.weight_decay, options.beta2) == (1.6e-4, 0.1, 0.999)
        assert options.steps * options.batch_size == pytest.approx(100 * 756)
        assert options.warmup_steps == pytest.approx(0.0037 * options.steps, rel=0.01)
        assert [options.lr * 0.1**n for n in range(3)] == pytest.approx(
            [learning_rate(options, round(share * options.steps)) for share in (0.77, 0.78, 0.93)]
        )
    augment = one.chips.augment
    assert not one.chips.quarter_turns
    assert augment.gain_sd == augment.gamma_sd == augment.haze_share == augment.noise_dn == 0


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("stages.fusd.steps=3", "unknown key 'stages.fusd'; the nearest known one is 'stages.fused'"),
        ("stages.fused.stps=3", "'stages.fused.steps'"),
        ("network.fusion=['cbam']", "'fusion' must be str"),
        ("network.fusoin=cbam", "'network.fusion'"),
        ("network.terrain.embed_dmi=3", "'network.terrain.embed_dim'"),
        ("network.fusion.levls=[4]", "'network.fusion.levels'"),
        ("network.fusion=cbm", "unknown fusion 'cbm'"),
        ("network.embed_dim=2.5", "'embed_dim' must be int"),
        ("chips.augment.gain=0.1", "'chips.augment.gain_sd'"),
        ("dat.x=3", "'data'"),
        ("seed=true", "'seed' must be a whole number"),
        ("stages.fused.backbones=partly", "frozen_stages"),
        ("stages.fused.start=scratch", "frozen at random"),
        ("stages.fused.backbone_weights.optical=a.pyth", "overwritten by those of optical and terrain"),
        ("stages.fused.steps=20", "dense_only_steps = 20 leaves none of the 20 steps to the heads"),
        ("chips.zoom_sd=-0.2", "zoom_sd=-0.2"),
        ("chips.augment.haze_share=1.5", "[chips.augment]: strengths must not be negative"),
        ("chips.augment.gain_sd=-0.1", "gain_sd=-0.1"),
        ("stages.fused.clip_norm=0", "must be positive: clip_norm=0.0"),
        ("seed=-1", "seed=-1"),
        ("network.fusion=data_level", "cannot take those of the unimodal stages"),
        ('data.modalities=["radar"]', "optical, spectral, terrain"),
        ("data.bands.spectral=['nir']", "not among modalities"),
        ("data.bands.terrain=['nir']", "must be among relative_elevation"),
        ("data.bands.optical=['red', 'red']", "each once"),
        ("stages.fused.modality=optical", "a multimodal one names none"),
        ('data.modalities=["optical"]', "unknown key 'network.terrain.embed_dim'"),
        ("stages.optical.backbone_weights.terrain=a.pyth", "backbone_weights for ['terrain']"),
        ("data.groups.train.share=nan", "share > 0"),
        ("data.groups.train.share=inf", "share > 0"),
        ("network.terrain.stage_blocks=[1, 1, 1]", "four stage_blocks"),
        ("network.terrain.stage_blocks=[1, 1, 1, 1, 1]", "four stage_blocks"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(tmp_path, setting, told):
    path = tmp_path / "a.toml"
    path.write_text(find_recipe("tiny").read_text())
    with pytest.raises(OptionsError) as refused:
        Recipe.read(path, [setting])
    assert told in str(refused.value)
    assert setting in str(refused.value)


def test_settings_change_one_number(tmp_path):
    changed = Recipe.read(find_recipe("tiny"), ["stages.fused.lr=0.5", "network.terrain.embed_dim=24"])
    assert changed.stages["fused"].options.lr == 0.5
    assert changed.stages["optical"].options.lr == 1e-3
    assert changed.network["terrain.embed_dim"] == 24


def test_settings_that_would_change_nothing_are_refused(tmp_path):
    with pytest.raises(OptionsError, match=r"own steps; set stages.optical.steps, stages.terrain.steps, st"):
        Recipe.read(find_recipe("tiny"), ["training.steps=3"])
    shown = tmp_path / "shown.toml"
    shown.write_text(Recipe.read(find_recipe("tiny")).to_toml())
    for setting in ("seed=5", "training.lr=1.0"):
        with pytest.raises(OptionsError, match=f"--set {setting}: changes nothing"):
            Recipe.read(shown, [setting])
    # one stage without its own is enough
    assert Recipe.read(find_recipe("tiny"), ["seed=5"]).stages["terrain"].options.seed == 6
    assert Recipe.read(find_recipe("tiny"), ["training.dense_loss=2"]).stages["fused"].options.dense_loss == 2


def test_a_stage_starts_from_the_last_ones_that_fit(tmp_path):
    data = recipe_data(tmp_path)
    stages = data["stages"]
    stages["free"] = {"kind": "multimodal", "steps": 1}
    stages["optical2"] = {"kind": "unimodal", "modality": "optical", "steps": 1}
    stages["anew"] = {"kind": "multimodal", "start": "scratch", "steps": 1}
    one = recipe(tmp_path, stages=stages)
    assert one.earlier("optical") == {}
    assert one.earlier("fused") == {"optical": "optical", "terrain": "terrain"}
    assert one.earlier("free") == {"fused": ""}
    assert one.earlier("optical2") == {"optical": ""}
    assert one.earlier("anew") == {}
    assert len({stage.options.seed for stage in one.stages.values()}) == len(stages)


def test_frozen_backbones_each_come_from_somewhere(tmp_path):
    stages = recipe_data(tmp_path)["stages"]
    del stages["terrain"]
    with pytest.raises(OptionsError, match="those of terrain would be frozen at random"):
        recipe(tmp_path, stages=stages)
    stages["fused"]["backbone_weights"] = {"terrain": "terrain.pyth"}
    assert recipe(tmp_path, stages=stages).earlier("fused") == {"optical": "optical"}


def test_one_backbone_on_all_bands_goes_by_the_leading_name(tmp_path):
    network = {"fusion": "data_level"}
    stages = {"fused": {"kind": "multimodal", "backbones": "frozen"}}
    stages["fused"]["backbone_weights"] = {"optical": "a.pyth"}
    assert recipe(tmp_path, network=network, stages=stages).backbones_of("fused") == ("optical",)
    stages["fused"]["backbone_weights"] = {"optical": "a.pyth", "terrain": "b.pyth"}
    with pytest.raises(OptionsError, match=r"backbone_weights for \['terrain'\], which it does not have"):
        recipe(tmp_path, network=network, stages=stages)


def test_a_file_for_the_guide_leaves_the_backbone_beside_it_at_random(tmp_path):
    network = {"optical": {"guide": "mobilenet_v2"}}
    optical = {"kind": "unimodal", "modality": "optical", "backbone_weights": {"optical": "a.pth"}}
    with pytest.raises(OptionsError, match=r"those of optical would be frozen at random.*earlier stage$"):
        recipe(tmp_path, network=network, stages={"one": {**optical, "backbones": "frozen"}})
    later = {"kind": "unimodal", "modality": "optical", "backbones": "frozen"}
    recipe(tmp_path, network=network, stages={"one": optical, "two": later})


def test_one_modality_alone_keeps_its_numbers(tmp_path):
    one = recipe(tmp_path)
    assert one.network_of("terrain")["terrain.embed_dim"] == 16
    assert "terrain.embed_dim" not in one.network_of("optical")
    assert one.spec("terrain").names == ("terrain",)
    assert one.spec("fused").names == ("optical", "terrain")


def test_a_recipe_that_is_not_there_names_those_that_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionsError, match="paper, small, tiny"):
        find_recipe("large")
    assert flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}
    (Path(tmp_path) / "broken.toml").write_text("seed = ")
    with pytest.raises(OptionsError, match="is not TOML"):
        Recipe.read(tmp_path / "broken.toml")

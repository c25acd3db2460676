"""A recipe with a guide: ImageNet's weights are read once, and a started stage has them in its checkpoint."""

from __future__ import annotations

import pytest
import torch
import torchvision

from rtsmap.errors import OptionsError, WeightsError
from rtsmap.mm.recipe import RECIPES, Recipe
from rtsmap.mm.stages import Teller, averaged_weights, run_recipe
from tests.mm.small_recipes import NETWORK, recipe, recipe_data

GUIDE = "detector.backbone.fusion.branch.guide."


class Stopped(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Weights of torchvision's MobileNetV2, by chance instead of from ImageNet."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pth"
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), path)
    return path


def guided(folder, weights, **changes):
    stages = recipe_data(folder)["stages"]
    optical = {
        **stages["optical"],
        "steps": 2,
        "keep_every": 1,
        "backbone_weights": {"optical": str(weights)},
    }
    terrain = {**stages["terrain"], "steps": 1}
    fused = {**stages["fused"], "steps": 1, "accumulate": 1}
    network = {**NETWORK, "optical": {"guide": "mobilenet_v2"}}
    return recipe(
        folder, network=network, stages={"optical": optical, "terrain": terrain, "fused": fused}, **changes
    )


def test_a_guided_recipe_trains_and_goes_on_without_the_file(tmp_path, imagenet):
    weights, told = tmp_path / "mobilenet.pth", []
    weights.write_bytes(imagenet.read_bytes())

    def stop(_stage, row):
        if row["step"] == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run_recipe(guided(tmp_path, weights), tmp_path / "run", tell=Teller(row=stop, note=told.append))
    assert any("guide of 'optical' from" in note for note in told)
    weights.unlink()
    run_recipe(guided(tmp_path, weights), tmp_path / "run")
    alone = averaged_weights(tmp_path / "run" / "optical")
    joins = [name for name in alone if name.startswith(f"{GUIDE}joins")]
    assert len(joins) == 4
    assert any(alone[name].abs().max() > 0 for name in joins), "the projections have learnt nothing"
    # the fused stage has the guide of the stage before it, frozen with the backbone
    fused = averaged_weights(tmp_path / "run" / "fused")
    for name in (name for name in alone if name.startswith(GUIDE)):
        assert torch.equal(fused[name.replace("fusion.branch.", "fusion.branches.optical.")], alone[name])


def test_a_file_that_is_not_there_is_named_before_anything_is_trained(tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.pth"):
        run_recipe(guided(tmp_path, tmp_path / "absent.pth"), tmp_path / "run")
    assert not (tmp_path / "run" / "optical" / "last.pt").exists()


def test_the_small_recipe_takes_the_guide_as_its_text_says():
    text = (RECIPES / "small.toml").read_text()
    path = "stages.optical.backbone_weights.optical=mobilenet_v2-b0353104.pth"
    assert path in text
    one = Recipe.read(RECIPES / "small.toml", [path])
    assert one.network_of("fused")["optical.guide"] == one.network_of("optical")["optical.guide"]
    assert "optical.guide" not in one.network_of("terrain")
    with pytest.raises(OptionsError, match="guide must be one of"):
        Recipe.read(RECIPES / "small.toml", ["network.optical.guide=resnet"])

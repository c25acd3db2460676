"""From chips of eight bands to a network that has learnt from them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from rtsmap.errors import InputError, OptionsError
from rtsmap.mm.augment import AugmentOptions, turn, zoom
from rtsmap.mm.packs import read_index, write_pack
from rtsmap.mm.samples import SampleOptions, make_sample
from rtsmap.mm.stages import Packs, Teller, run_recipe
from rtsmap.mm.train import read_rows
from rtsmap.rasters.bands import OPTICAL_RGB, SPECTRAL, TERRAIN, InputSpec, Modality
from rtsmap.rasters.eight_bands import EIGHT_BANDS
from rtsmap.rasters.tiling import Window
from rtsmap.runs.chip_packs import PackOptions, pack
from rtsmap.runs.chip_scores import LabelledChips, find_on_chips, picture_chip
from rtsmap.runs.chip_sheet import draw_sheet
from rtsmap.runs.engine import Engine
from tests.mm.labelled import labelled_image
from tests.mm.small_recipes import recipe, recipe_data
from tests.rasters.test_eight_bands import eight

SHAPE = (72, 80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three chips of which the labels name pictures, as the published labels do."""
    folder = tmp_path_factory.mktemp("npz")
    (folder / "images").mkdir()
    images, annotations = [], []
    for number in range(3):
        array = eight(SHAPE, number)
        array[:4, :, 4] = np.nan
        np.savez(folder / "images" / f"{number}.npz", image=array)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 72, "width": 80})
        ring = [[10, 5, 50, 5, 50, 45, 10, 45]]
        annotations.append({"id": number, "image_id": number, "segmentation": ring, "area": 1600})
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


@pytest.fixture(scope="module")
def packed(folder):
    (report,) = pack([folder / "coco.json"], folder / "eight.pack", PackOptions(resolution_m=4.0))
    return report


def first(path):
    image = next(iter(read_index(path)))
    return image.read(Window(0, 0, *image.shape))


def test_a_pack_holds_what_the_chips_held_and_says_what_it_left_out(folder, packed):
    assert packed.with_terrain == packed.images == 3
    assert "shaded relief is left out" in packed.notes[1]
    assert "nir" in packed.notes[2]
    image, array = first(packed.path), eight(SHAPE)
    np.testing.assert_array_equal(image.optical, np.rint(array[..., :3]).transpose(2, 0, 1))
    names = image.spectral.names
    for name in ("ndvi", "ndwi"):
        band = array[..., EIGHT_BANDS.index(name)]
        np.testing.assert_allclose(image.spectral.pixels[names.index(name)], band, atol=1e-3)
    assert not image.terrain.valid[:4].any()
    assert image.terrain.valid[4:].all()
    np.testing.assert_allclose(image.terrain.relative_elevation[4:], array[4:, :, 4], atol=0.01)
    assert image.terrain.gradient is None


def test_evaluation_shows_the_network_what_training_showed(folder, packed, tmp_path):
    spec = InputSpec(4.0, (OPTICAL_RGB, SPECTRAL, Modality("terrain", TERRAIN.bands[:1])))
    shown = []

    class Seer:
        def detect(self, chips):
            shown.extend(chips)
            return [[] for _ in chips]

    chips = LabelledChips.read(folder / "coco.json")
    assert find_on_chips(chips, Engine(spec, 96, 0, {}, Seer, min_score=0.5)) == []
    images = list(read_index(packed.path))
    assert len(shown) == len(images) == 3
    for chip, image in zip(shown, images, strict=True):
        pixels = image.read(Window(0, 0, *image.shape))
        for name, layer in make_sample(pixels, spec, SampleOptions(), None).layers.items():
            np.testing.assert_array_equal(chip.layers[name].valid, layer.valid)
            # packs hold whole colours and half precision
            atol = {"optical": 0.51, "spectral": 0.07, "terrain": 0.01}[name]
            np.testing.assert_allclose(chip.layers[name].pixels, layer.pixels, atol=atol)
    draw_sheet(tmp_path / "sheet.png", chips, [], min_score=0.5)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_lack_what_only_eight_bands_have(tmp_path):
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "a.png")
    layers = picture_chip(tmp_path / "a.png", InputSpec(4.0, (OPTICAL_RGB, SPECTRAL))).layers
    assert layers["optical"].valid.all()
    assert not layers["spectral"].valid.any()
    with pytest.raises(OptionsError, match="the model wants nir"):
        picture_chip(tmp_path / "a.png", InputSpec(4.0, (SPECTRAL,)))


def test_turning_and_zooming_treat_all_bands_alike(packed):
    image = first(packed.path)
    turned = turn(image, 1, mirror=True)
    # the same turn once more is its own way back
    back = turn(turned, 1, mirror=True)
    np.testing.assert_array_equal(back.spectral.pixels, image.spectral.pixels)
    np.testing.assert_array_equal(back.terrain.relative_elevation, image.terrain.relative_elevation)
    np.testing.assert_array_equal(turned.optical, image.optical.transpose(0, 2, 1))
    np.testing.assert_array_equal(turned.spectral.pixels, image.spectral.pixels.transpose(0, 2, 1))
    larger = zoom(image, (144, 160))
    assert larger.spectral.pixels.shape == (3, 144, 160)
    assert larger.spectral.pixels.mean() == pytest.approx(image.spectral.pixels.mean(), rel=0.01)


def test_what_an_image_lacks_is_missing_never_made_up(packed):
    image = first(packed.path)
    spec = InputSpec(4.0, (OPTICAL_RGB, SPECTRAL, TERRAIN))
    layers = make_sample(image, spec, SampleOptions(), None).layers
    assert layers["spectral"].valid.all()
    # slope and shading cannot be made from heights above their surroundings
    assert not layers["terrain"].valid.any()
    assert not layers["terrain"].pixels.any()
    plain = make_sample(labelled_image(), spec, SampleOptions(), None).layers
    assert not plain["spectral"].valid.any()
    assert plain["terrain"].valid.all()
    gone = SampleOptions(augment=AugmentOptions(spectral_missing_share=1.0))
    layers = make_sample(image, spec, gone, np.random.default_rng(0)).layers
    assert not layers["spectral"].valid.any()
    assert layers["optical"].valid.all()


def of_bands(folder, bands, **data):
    """A recipe of one stage on the packed chips; `plain.pack` has natural colour and full terrain."""
    words = recipe_data(folder)
    write_pack(folder / "plain.pack", [labelled_image(5)])
    packs = [str(folder / "eight.pack")]
    stage = {**words["stages"]["fused"], "backbones": "free", "steps": 2, "accumulate": 1}
    network = {key: value for key, value in words["network"].items() if key != "terrain"}
    return recipe(
        folder,
        data={
            "groups": {"a": {"packs": packs + data.pop("more", [])}},
            "held_out": words["data"]["held_out"],
            "bands": bands,
            **data,
        },
        network=network,
        stages={"fused": stage},
    )


def test_all_three_modalities_can_be_learnt_from_beside_plain_images(folder, packed, tmp_path):
    one = of_bands(
        folder,
        {"spectral": ["ndvi", "nir"], "terrain": ["relative_elevation"]},
        modalities=["optical", "spectral", "terrain"],
        more=[str(folder / "plain.pack")],
    )
    assert one.spec("fused").modalities[1].band_names == ("ndvi", "nir")
    run_recipe(one, tmp_path / "run")
    assert [row["step"] for row in read_rows(tmp_path / "run" / "fused" / "log.jsonl")] == [1, 2]


def test_infrared_may_stand_beside_the_colours_where_every_image_has_it(folder, packed, tmp_path):
    bands = {"optical": ["red", "green", "blue", "nir"]}
    plain = str(folder / "plain.pack")
    with pytest.raises(InputError, match=r"plain\.pack: 'image 5' has no nir.*'spectral'"):
        Packs.find(of_bands(folder, bands, modalities=["optical"], more=[plain]))
    one = of_bands(folder, bands, modalities=["optical"], held_out={})
    run_recipe(one, tmp_path / "run")
    assert (tmp_path / "run" / "fused" / "last.pt").exists()


def test_terrain_that_cannot_be_used_is_told(folder, packed, tmp_path):
    told = []
    run_recipe(of_bands(folder, {}), tmp_path / "run", tell=Teller(note=told.append))
    assert any("3 of 3 images hold heights without gradients" in note for note in told)

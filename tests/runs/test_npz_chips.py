"""Chips of eight bands in predict and tile: COCO results and chips without a place, never a map."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from pycocotools.coco import COCO
from typer.testing import CliRunner

from rtsmap.cli.main import app
from rtsmap.errors import BandError, InputError, LabelError, OptionsError
from rtsmap.instances.coco_scores import mask_of
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.mm.packs import read_index
from rtsmap.rasters.bands import NIR, OPTICAL_RGB, SPECTRAL, TERRAIN, InputSpec, Modality
from rtsmap.rasters.eight_bands import EIGHT_BANDS
from rtsmap.rasters.tiling import Window
from rtsmap.runs import npz_chips
from rtsmap.runs.chip_packs import PackOptions, pack
from rtsmap.runs.npz_chips import npz_files, predict_chips
from rtsmap.runs.npz_tiles import cut_chips
from rtsmap.vectors.geopackage import write_map
from rtsmap.vectors.profiles import ProfileOptions, export_profile
from tests.rasters.test_eight_bands import eight
from tests.runs.blob_scenes import blob_labels, engine, write_scene
from tests.vectors.samples import GRID

SHAPES = {"7": (40, 60), "12": (50, 30), "30": (64, 64)}
COLOURS_AND_MORE = InputSpec(4.0, (OPTICAL_RGB, SPECTRAL, Modality("terrain", TERRAIN.bands[:1])))
SEES = engine(64, 0, ThresholdDetector(low=230, high=255), COLOURS_AND_MORE)


@pytest.fixture
def folder(tmp_path):
    """Chips with a bright rectangle each, and labels that name pictures with other ids."""
    (tmp_path / "chips").mkdir()
    images, annotations = [], []
    for number, (stem, (height, width)) in enumerate(SHAPES.items(), 500):
        array = eight((height, width), number)
        array[10:20, 5 : 15 + number % 7, 0] = 250
        array[:2, :, 4], array[-3:, :, 5], array[0, 0, :3] = np.nan, -9999, np.nan
        np.savez(tmp_path / "chips" / f"{stem}.npz", image=array)
        images.append({"id": number, "file_name": f"{stem}.jpg", "height": height, "width": width})
        ring = [5, 10, 15 + number % 7, 10, 15 + number % 7, 20, 5, 20]
        annotations.append(
            {"id": number, "image_id": number, "category_id": 3, "segmentation": [ring], "area": 100}
        )
    labels = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "rts"}]}
    (tmp_path / "coco.json").write_text(json.dumps(labels))
    return tmp_path


def masks(results):
    return {r["image_id"]: mask_of(r["segmentation"], tuple(r["segmentation"]["size"])) for r in results}


def test_results_are_the_slumps_under_the_ids_that_files_have(folder):
    report = predict_chips([folder / "chips"], out=folder / "r.json", model=SEES)
    results = json.loads((folder / "r.json").read_text())
    assert report.chips == report.slumps == len(results) == 3
    found = masks(results)
    assert set(found) == {7, 12, 30}
    for stem, shape in SHAPES.items():
        array = np.load(folder / "chips" / f"{stem}.npz")["image"]
        np.testing.assert_array_equal(found[int(stem)], array[..., 0] == 250)
        assert found[int(stem)].shape == shape
    listed = COCO(folder / "r_images.json")
    assert {i["id"]: i["file_name"] for i in listed.loadImgs(listed.getImgIds())}[12] == "12.npz"
    assert len(listed.loadRes(str(folder / "r.json")).getAnnIds()) == 3


def test_ids_come_from_a_coco_file_or_are_counted_and_said(folder):
    report = predict_chips(
        [folder / "chips"], out=folder / "a.json", model=SEES, image_ids=folder / "coco.json"
    )
    assert report.images is None
    assert set(masks(json.loads((folder / "a.json").read_text()))) == {500, 501, 502}
    (folder / "chips" / "7.npz").rename(folder / "chips" / "seven.npz")
    report = predict_chips([folder / "chips"], out=folder / "b.json", model=SEES)
    assert "numbers from 1" in report.notes[0]
    with pytest.raises(InputError, match=r"no image for 1 chips, first seven\.npz"):
        predict_chips([folder / "chips"], out=folder / "c.json", model=SEES, image_ids=folder / "coco.json")
    assert not list(folder.glob("c*.json.part")) + list(folder.glob("c.json"))


def test_the_model_is_shown_its_bands_by_name_on_the_scale_of_the_set(folder):
    shown = []

    class Seer:
        def detect(self, chips):
            shown.extend(chips)
            return [[] for _ in chips]

    predict_chips([folder / "chips"], out=folder / "r.json", model=engine(64, 0, Seer(), COLOURS_AND_MORE))
    arrays = [np.load(folder / "chips" / f"{stem}.npz")["image"] for stem in sorted(SHAPES)]
    near_infrared = [chip.layers["spectral"].pixels[0] for chip in shown]
    everything = np.concatenate([pixels.ravel() for pixels in near_infrared])
    assert np.percentile(everything, 1) == pytest.approx(NIR.mean - 1.75 * NIR.sd, abs=3)
    for chip, array in zip(shown, arrays, strict=True):
        ndwi = array[..., EIGHT_BANDS.index("ndwi")]
        np.testing.assert_array_equal(chip.layers["spectral"].pixels[2], ndwi)
        heights = chip.layers["terrain"]
        np.testing.assert_array_equal(heights.valid, np.isfinite(array[..., 4]))
        assert chip.geobox.crs is None


def test_a_band_that_chips_lack_is_told_and_its_modality_may_be_left_out(folder):
    shown = []

    class Seer:
        def detect(self, chips):
            shown.extend(chips)
            return [[] for _ in chips]

    wants_slope = engine(64, 0, Seer())
    with pytest.raises(BandError, match=r"wants slope in its modality terrain.*--without terrain"):
        predict_chips([folder / "chips"], out=folder / "r.json", model=wants_slope)
    assert not shown
    predict_chips([folder / "chips"], out=folder / "r.json", model=wants_slope, without=["terrain"])
    assert len(shown) == 3
    assert not any(chip.layers["terrain"].valid.any() for chip in shown)
    for without, said in ((["optical"], "cannot go without optical"), (["radar"], "no modality radar")):
        with pytest.raises(OptionsError, match=said):
            predict_chips([folder / "chips"], out=folder / "x.json", model=wants_slope, without=without)


def test_chips_are_never_a_map_and_never_mixed_with_scenes(folder):
    with pytest.raises(InputError, match="no place on Earth"):
        predict_chips([folder / "chips"], out=folder / "m.gpkg", model=SEES)
    write_scene(folder / "scene.tif", blob_labels((60, 60), 3, 3))
    with pytest.raises(InputError, match=r"scene\.tif: is no chip"):
        npz_files([folder / "chips", folder / "scene.tif"])
    assert npz_files([folder / "scene.tif"]) == npz_files([folder]) == []
    assert len(npz_files([str(folder / "chips" / "*.npz")])) == 3


def test_the_command_says_what_it_found_and_what_chips_have_no_use_for(folder, monkeypatch):
    monkeypatch.setattr(npz_chips, "engine_of", lambda *_, **__: SEES)
    chips = str(folder / "chips")
    refused = CliRunner().invoke(app, ["predict", chips, "-o", str(folder / "r.json"), "--dem", "a.tif"])
    assert refused.exit_code == 1
    assert "leave --dem out" in refused.stderr
    done = CliRunner().invoke(app, ["predict", chips, "-o", str(folder / "r.json")])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == str(folder / "r.json")
    assert "3 slumps with a score of at least 0.5 on 3 chips" in " ".join(done.stderr.split())
    again = CliRunner().invoke(app, ["predict", chips, "-o", str(folder / "r.json")])
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr


def test_chips_that_were_cut_make_the_same_pack_as_the_archives(folder):
    cut_chips([folder / "chips"], out=folder / "cut", labels=folder / "coco.json", resolution_m=4.0)
    options = PackOptions(resolution_m=4.0, images=folder / "chips")
    pack([folder / "coco.json"], folder / "a.pack", options)
    (report,) = pack([folder / "cut"], folder / "b.pack", PackOptions())
    assert report.groups == 3
    assert [note for note in report.notes if "a group of its own" in note]
    assert not [note for note in report.notes if "metres" in note]
    sides = [{i.name.partition(".")[0]: i for i in read_index(folder / f"{n}.pack")} for n in "ab"]
    assert set(sides[0]) == set(sides[1]) == set(SHAPES)
    for stem, one in sides[0].items():
        a, b = (side.read(Window(0, 0, *side.shape)) for side in (one, sides[1][stem]))
        for name in ("optical", "optical_valid", "labels", "resolution_m"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        np.testing.assert_array_equal(a.terrain.relative_elevation, b.terrain.relative_elevation)
        np.testing.assert_array_equal(a.terrain.valid, b.terrain.valid)
        np.testing.assert_array_equal(a.spectral.pixels, b.spectral.pixels)
        assert a.spectral.names == b.spectral.names
        assert a.labels.any()


def test_cut_chips_have_no_place_and_appear_whole_or_not_at_all(folder):
    report = cut_chips([folder / "chips"], out=folder / "cut", labels=folder / "coco.json")
    assert (report.chips, report.annotations) == (3, 3)
    with rasterio.open(folder / "cut" / "optical" / "000000.tif") as src:
        assert src.crs is None
        assert src.descriptions == ("red", "green", "blue")
        assert src.read_masks(1)[0, 0] == 0
    truth = COCO(folder / "cut" / "annotations.json")
    assert truth.loadCats(truth.getCatIds())[0]["id"] == truth.loadAnns([1])[0]["category_id"]
    write_map(folder / "m.gpkg", [], GRID.crs, [], {"plan": {}})
    with pytest.raises(InputError, match="no place on Earth, where the map is"):
        export_profile(
            folder / "m.gpkg", folder / "x.json", "challenge", options=ProfileOptions(chips=folder / "cut")
        )
    with pytest.raises(InputError, match="--overwrite"):
        cut_chips([folder / "chips"], out=folder / "cut")
    (folder / "chips" / "30.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"30\.npz"):
        cut_chips([folder / "chips"], out=folder / "cut", overwrite=True)
    assert len(list((folder / "cut").rglob("*.tif"))) == 9
    (folder / "cut" / "mine.pack").write_text("mine")
    (folder / "chips" / "30.npz").unlink()
    cut_chips([folder / "chips"], out=folder / "cut", overwrite=True)
    assert (folder / "cut" / "mine.pack").read_text() == "mine"
    assert not (folder / "cut" / "annotations.json").exists()
    assert not list(folder.glob(".*"))


def test_labels_must_list_every_chip_and_be_of_its_shape(folder):
    labels = json.loads((folder / "coco.json").read_text())
    labels["images"][0]["height"] = 41
    (folder / "other.json").write_text(json.dumps(labels))
    with pytest.raises(LabelError, match=r"7\.npz is \(40, 60\)"):
        cut_chips([folder / "chips"], out=folder / "cut", labels=folder / "other.json")
    labels["images"] = labels["images"][1:]
    (folder / "other.json").write_text(json.dumps(labels))
    with pytest.raises(LabelError, match="not labelled"):
        cut_chips([folder / "chips"], out=folder / "cut", labels=folder / "other.json")
    with pytest.raises(LabelError, match="COCO file"):
        cut_chips([folder / "chips"], out=folder / "cut", labels=folder / "slumps.gpkg")
    assert not (folder / "cut").exists()

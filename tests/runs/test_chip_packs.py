from __future__ import annotations

import json
import tempfile
from functools import partial

import numpy as np
import pytest
from PIL import Image

from rtsmap.errors import InputError, LabelError, OptionsError
from rtsmap.mm.packs import read_index
from rtsmap.rasters.tiling import Window
from rtsmap.runs.chip_packs import MadeScene, PackOptions, label_numbers, pack
from rtsmap.runs.chipping import ChipOptions, cut_scene
from rtsmap.simulate.presets import find_preset
from rtsmap.simulate.scenes import write_scene

RESOLUTION_M = find_preset("demo").ground_sample_distance_m


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_scene("demo", 3, tmp_path_factory.mktemp("scene"), size_px=192)


def whole(image):
    return image.read(Window(0, 0, *image.shape))


def test_chips_hold_what_the_scene_itself_would(tmp_path, scene):
    options = ChipOptions(RESOLUTION_M, chip_px=192, overlap_px=0)
    cut_scene(scene.scene, scene.dem, out=tmp_path / "chips", labels=scene.truth, options=options)
    (report,) = pack([tmp_path / "chips"], tmp_path / "chips.pack", PackOptions())
    folder = scene.scene.parent
    pack([folder], tmp_path / "scene.pack", PackOptions(resolution_m=RESOLUTION_M))
    (chip,), (direct,) = (list(read_index(tmp_path / f"{name}.pack")) for name in ("chips", "scene"))
    assert (chip.group, direct.group) == ("chips", folder.name)
    assert chip.resolution_m == direct.resolution_m == RESOLUTION_M
    assert not chip.has_kinds
    assert direct.has_kinds
    mine, theirs = whole(chip), whole(direct)
    np.testing.assert_array_equal(mine.optical_valid, theirs.optical_valid)
    valid = mine.optical_valid
    np.testing.assert_array_equal(mine.optical[:, valid], theirs.optical[:, valid])
    np.testing.assert_array_equal(mine.terrain.valid, theirs.terrain.valid)
    known = mine.terrain.valid
    np.testing.assert_allclose(mine.terrain.gradient[:, known], theirs.terrain.gradient[:, known], atol=1e-3)
    # outlines are rounded by COCO, so a pixel on the border may differ
    assert ((mine.labels > 0) == (theirs.labels > 0)).mean() > 0.99
    assert report.slumps == len(chip.slumps) >= 1


def test_scenes_are_made_while_packing_and_are_those_of_their_seeds(tmp_path, scene, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    made = [MadeScene(f"demo-{seed}", partial(write_scene, "demo", seed, size_px=192)) for seed in (3, 4)]
    (report,) = pack([], tmp_path / "anew.pack", PackOptions(resolution_m=RESOLUTION_M), made=made)
    assert (report.images, report.groups, report.with_terrain) == (2, 2, 2)
    assert not list((tmp_path / "scratch").iterdir())
    first, second = read_index(tmp_path / "anew.pack")
    assert (first.group, second.group) == ("demo-3", "demo-4")
    pack([scene.scene.parent], tmp_path / "scene.pack", PackOptions(resolution_m=RESOLUTION_M))
    (wanted,) = read_index(tmp_path / "scene.pack")
    mine, theirs = whole(first), whole(wanted)
    for name in ("optical", "labels", "kinds"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), name)
    np.testing.assert_array_equal(mine.terrain.gradient, theirs.terrain.gradient)
    assert not np.array_equal(whole(second).optical, mine.optical)


def test_nothing_is_no_pack(tmp_path):
    with pytest.raises(OptionsError, match="nothing to pack"):
        pack([], tmp_path / "x.pack", PackOptions())


def coco_folder(folder, names=("a.png", "b.png", "c.png")):
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, name in enumerate(names):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "height": 40, "width": 50})
        square = [10, 5, 30, 5, 30, 25, 10, 25]
        annotations.append(
            {"id": number, "image_id": number, "segmentation": [square], "area": 400, "iscrowd": 0}
        )
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder / "coco.json"


def test_plain_pictures_are_packed_and_split_by_group(tmp_path):
    names = [f"{i}.png" for i in range(12)]
    coco = coco_folder(tmp_path, names)
    (tmp_path / "groups.json").write_text(json.dumps([names[i : i + 3] for i in range(0, 12, 3)]))
    options = PackOptions(groups=tmp_path / "groups.json", hold_out=0.5)
    kept, held = pack([coco], tmp_path / "real.pack", options)
    assert held.path.name == "real_held_out.pack"
    left, right = (list(read_index(report.path)) for report in (kept, held))
    assert len(left) + len(right) == 12
    assert not {i.group for i in left} & {i.group for i in right}
    assert kept.groups + held.groups == 4
    pixels = np.asarray(Image.open(tmp_path / "images" / left[0].name))
    image = whole(left[0])
    np.testing.assert_array_equal(image.optical, pixels.transpose(2, 0, 1))
    assert (image.labels[5:25, 10:30] == 1).all()
    assert image.labels.sum() == 400


def test_names_of_groups_that_are_not_there_are_told(tmp_path, scene):
    coco, groups = coco_folder(tmp_path), tmp_path / "groups.json"
    groups.write_text(json.dumps([["b.png", "a.png"], [scene.scene.parent.name, "elsewhere"]]))
    options = PackOptions(groups=groups, resolution_m=RESOLUTION_M)
    (report,) = pack([coco, scene.scene.parent], tmp_path / "real.pack", options)
    assert report.notes == (f"{groups}: 1 of its 4 names are no pictures or folders here: elsewhere",)
    of_scene = min("elsewhere", scene.scene.parent.name)
    groups_there = [image.group for image in read_index(tmp_path / "real.pack")]
    assert groups_there == ["a.png", "a.png", "c.png", of_scene]
    groups.write_text("[[")
    for source in (coco, scene.scene.parent):
        with pytest.raises(InputError, match=r"groups\.json: cannot be read as JSON"):
            pack([source], tmp_path / "b.pack", options)


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "L"])
def test_pictures_that_are_not_rgb_are_refused_as_they_are_when_scored(tmp_path, mode):
    coco = coco_folder(tmp_path)
    Image.new(mode, (50, 40)).save(tmp_path / "images" / "b.png")
    with pytest.raises(InputError, match=r"b\.png: wanted an RGB picture, got mode .*; convert it"):
        pack([coco], tmp_path / "real.pack", PackOptions())


def test_pictures_without_groups_are_noted(tmp_path):
    (report,) = pack([coco_folder(tmp_path)], tmp_path / "real.pack", PackOptions())
    assert "every picture is a group of its own" in report.notes[0]
    (report,) = pack([tmp_path / "coco.json"], tmp_path / "one.pack", PackOptions(group="one"))
    assert report.groups == 1
    assert "--resolution-m" in report.notes[0]
    assert [image.resolution_m for image in read_index(tmp_path / "one.pack")] == [None] * 3
    options = PackOptions(group="one", resolution_m=3.0)
    (report,) = pack([tmp_path / "coco.json"], tmp_path / "known.pack", options)
    assert report.notes == ()
    assert [image.resolution_m for image in read_index(tmp_path / "known.pack")] == [3.0] * 3


def test_small_slumps_lie_on_large_ones_and_crowds_are_ignored():
    def ring(x, y, side):
        return [[x, y, x + side, y, x + side, y + side, x, y + side]]

    runs = {"size": [20, 20], "counts": [0, 40, 360]}
    labels = label_numbers(
        [
            {"segmentation": ring(8, 8, 4), "area": 16},
            {"segmentation": ring(4, 4, 12), "area": 144},
            {"segmentation": runs, "area": 40, "iscrowd": 1},
        ],
        (20, 20),
    )
    assert (labels[:, :2] == -1).all()
    assert (labels[8:12, 8:12] == 2).all()
    assert (labels == 1).sum() == 144 - 16
    assert not label_numbers([], (4, 5)).any()


def test_what_cannot_be_packed_is_refused(tmp_path, scene):
    with pytest.raises(InputError, match="wanted a folder of"):
        pack([tmp_path], tmp_path / "a.pack", PackOptions())
    cut_scene(scene.scene, out=tmp_path / "chips", options=ChipOptions(RESOLUTION_M, chip_px=192))
    with pytest.raises(LabelError, match="tile --labels"):
        pack([tmp_path / "chips"], tmp_path / "a.pack", PackOptions())
    coco = coco_folder(tmp_path / "real")
    with pytest.raises(OptionsError, match="one side is empty"):
        pack([coco], tmp_path / "a.pack", PackOptions(group="one", hold_out=0.1))
    pack([coco], tmp_path / "a.pack", PackOptions())
    with pytest.raises(InputError, match="--overwrite"):
        pack([coco], tmp_path / "a.pack", PackOptions())
    (tmp_path / "real" / "images" / "b.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"b\.png"):
        pack([coco], tmp_path / "b.pack", PackOptions())

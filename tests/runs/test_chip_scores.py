from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rtsmap.errors import InputError, LabelError, OptionsError
from rtsmap.instances.detections import Detection
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from rtsmap.rasters.tiling import Window
from rtsmap.runs.chip_scores import (
    LabelledChips,
    find_on_chips,
    picture_chip,
    read_groups,
    read_results,
    score_chips,
)
from rtsmap.runs.engine import Engine

SPEC = InputSpec(4.0, (OPTICAL_RGB, TERRAIN))


class BrightSquares:
    """Finds the bounding box of what is bright; asserts what a chip of a picture must hold."""

    def detect(self, chips):
        return [self._found(chip) for chip in chips]

    def _found(self, chip):
        assert chip.layers["optical"].valid.all()
        assert not chip.layers["terrain"].valid.any()
        rows, cols = np.nonzero(chip.layers["optical"].pixels[0] > 200)
        if not len(rows):
            return []
        window = Window(int(rows.min()), int(cols.min()), int(rows.max()) + 1, int(cols.max()) + 1)
        return [Detection(0.9, window, np.full(window.shape, 255, np.uint8), chip.tile.index)]


ENGINE = Engine(SPEC, 256, 64, {}, BrightSquares, min_score=0.5)


@pytest.fixture
def labelled(tmp_path):
    """Five pictures with a labelled square each; the square of the last one cannot be seen."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i in range(1, 6):
        pixels = np.full((60, 80, 3), 90, np.uint8)
        if i < 5:
            pixels[10 : 10 + 5 * i, 20:50] = 250
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 60, "width": 80})
        ring = [20, 10, 50, 10, 50, 10 + 5 * i, 20, 10 + 5 * i]
        annotations.append(
            {"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "segmentation": [ring]}
            | {"bbox": [20, 10, 30, 5 * i], "area": 150 * i}
        )
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "rts"}]}
    (tmp_path / "coco.json").write_text(json.dumps(document))
    (tmp_path / "groups.json").write_text(json.dumps([["1.png", "2.png"]]))
    return tmp_path


def test_what_is_seen_scores_and_what_is_not_is_missed(labelled):
    chips = LabelledChips.read(labelled / "coco.json", groups=labelled / "groups.json")
    assert set(chips.group_of.values()) == {"1.png", "3.png", "4.png", "5.png"}
    results = find_on_chips(chips, ENGINE)
    figures = score_chips(chips, results, min_score=0.5)
    assert figures["precision_50"].value == 1
    assert figures["recall_50"].value == figures["recall_30"].value == 0.8
    # 80 of the 101 recall points of COCO's curve, and that of recall 0
    assert figures["AP50"].value == pytest.approx(81 / 101)
    low, high = figures["recall_30"].interval
    assert low < 0.8 <= high
    none = score_chips(chips, results, min_score=0.95, settings="challenge", resamples=2)
    assert none["recall_30"].value == 0
    assert none["AP50"].value == pytest.approx(81 / 101)


def test_scores_of_chips_have_the_models_temperature(labelled):
    chips = LabelledChips.read(labelled / "coco.json")
    plain, warm = (find_on_chips(chips, replace(ENGINE, temperature=t)) for t in (1.0, 2.0))
    assert {result["score"] for result in plain} == {0.9}
    # odds of 9 become odds of 3
    assert [result["score"] for result in warm] == pytest.approx([0.75] * len(plain))


def test_groups_are_called_after_their_first_name_in_whatever_order(tmp_path):
    path = tmp_path / "groups.json"
    for listed in ([["b", "a"], [], ["d", "c"]], [["c", "d"], ["a", "b"]]):
        path.write_text(json.dumps(listed))
        assert read_groups(path) == {"a": "a", "b": "a", "c": "c", "d": "c"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"valley": ["1", "2"]}', "wanted lists of names"),
        ('["a.png", "b.png"]', "wanted lists of names"),
        ("[[1, 2]]", "wanted lists of names"),
        ("{not json", "cannot be read as JSON"),
        ('[["a", "b"], ["c", "b"]]', "'b' is in two groups"),
    ],
)
def test_files_that_hold_no_groups_are_refused(tmp_path, text, told):
    (tmp_path / "groups.json").write_text(text)
    with pytest.raises(InputError, match=rf"groups\.json: .*{told}"):
        read_groups(tmp_path / "groups.json")


def test_pictures_of_another_size_than_their_labels_are_refused(labelled):
    Image.new("RGB", (160, 120)).save(labelled / "images" / "2.png")
    with pytest.raises(InputError, match=r"2\.png: 120 rows and 160 columns, but the labels say 60 and 80"):
        find_on_chips(LabelledChips.read(labelled / "coco.json"), ENGINE)


def test_unusable_files_are_named(labelled, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json: cannot be read"):
        LabelledChips.read(tmp_path / "nowhere.json")
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(LabelError, match="no images and no annotations"):
        LabelledChips.read(tmp_path / "odd.json")
    with pytest.raises(InputError, match="name the folder"):
        LabelledChips.read(labelled / "coco.json", images=tmp_path / "pictures")
    with pytest.raises(LabelError, match="a list of COCO results"):
        read_results(tmp_path / "odd.json", LabelledChips.read(labelled / "coco.json"))
    with pytest.raises(InputError, match="cannot be read as a picture"):
        picture_chip(tmp_path / "odd.json", SPEC)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(InputError, match="RGB picture, got mode L"):
        picture_chip(tmp_path / "grey.png", SPEC)
    chips = LabelledChips.read(labelled / "coco.json")
    with pytest.raises(OptionsError, match="stock, challenge"):
        score_chips(chips, [], min_score=0.5, settings="other")

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from rtsmap.errors import InputError
from rtsmap.instances.coco_scores import coco_results, pixel_overlaps
from rtsmap.instances.detections import Detection
from rtsmap.rasters.tiling import Window
from rtsmap.runs.chip_scores import LabelledChips
from rtsmap.runs.chip_sheet import draw_sheet, worst_and_best

SHAPE = (40, 60)


def square(score, row, col, side=20):
    mask = np.full((side, side), 255, np.uint8)
    return Detection(score, Window(row, col, row + side, col + side), mask, 0)


@pytest.fixture
def chips(tmp_path):
    """Grey pictures: found, half found, missed, missed more, nothing there and nothing found."""
    (tmp_path / "images").mkdir()
    names = ("found", "half", "missed", "missed_more", "nothing")
    images, annotations = [], []
    for number, name in enumerate(names, 1):
        Image.fromarray(np.full((*SHAPE, 3), 128, np.uint8)).save(tmp_path / "images" / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.png", "height": SHAPE[0], "width": SHAPE[1]})
        right = 35 if name == "missed_more" else 25
        ring = [5, 5, right, 5, right, 25, 5, 25]
        if name != "nothing":
            annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": [ring]})
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return LabelledChips.read(tmp_path / "coco.json")


@pytest.fixture
def results():
    return coco_results(1, [square(0.9, 5, 5), square(0.2, 15, 35)], SHAPE) + coco_results(
        2, [square(0.8, 5, 15)], SHAPE
    )


def names(ranked):
    return [image["file_name"].removesuffix(".png") for image, _ in ranked]


def test_overlaps_are_counted_in_pixels(chips, results):
    overlaps = pixel_overlaps(chips.document, results)
    assert overlaps == {1: (400, 800), 2: (200, 600), 3: (0, 400), 4: (0, 600), 5: (0, 0)}


def test_chips_are_ranked_by_overlap_then_by_what_is_wrong(chips, results):
    worst, best = worst_and_best(chips, results, 3)
    assert names(worst) == ["missed_more", "missed", "half"]
    assert names(best) == ["found"]
    worst, best = worst_and_best(chips, results, 1)
    assert (names(worst), names(best)) == (["missed_more"], ["found"])
    assert best[0][1] == 0.5


def test_outlines_are_drawn_where_the_score_suffices(chips, results, tmp_path):
    yellow, cyan = {}, {}
    for min_score in (0.1, 0.95):
        draw_sheet(tmp_path / f"{min_score}.png", chips, results, min_score=min_score)
        with Image.open(tmp_path / f"{min_score}.png") as sheet:
            pixels = np.asarray(sheet.convert("RGB")).astype(int)
        red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
        yellow[min_score] = int(((red > 200) & (green > 160) & (blue < 120)).sum())
        cyan[min_score] = int(((red < 90) & (green > 180) & (blue > 200)).sum())
    assert yellow[0.1] > 2 * yellow[0.95] > 0
    assert all(count > 500 for count in cyan.values())


def test_a_sheet_of_nothing_and_of_wrong_pictures(chips, tmp_path):
    bare = LabelledChips({**chips.document, "annotations": []}, chips.images, chips.group_of)
    draw_sheet(tmp_path / "bare.png", bare, [], min_score=0.5)
    assert (tmp_path / "bare.png").exists()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(chips.images / "found.png")
    with pytest.raises(InputError, match=r"found\.png: \(8, 8\) pixels.*\(40, 60\)"):
        draw_sheet(tmp_path / "sheet.png", chips, [], min_score=0.5)
    (chips.images / "missed_more.png").unlink()
    with pytest.raises(InputError, match=r"missed_more\.png: cannot be read"):
        draw_sheet(tmp_path / "sheet.png", chips, [], min_score=0.5)
    assert not (tmp_path / "sheet.png").exists()

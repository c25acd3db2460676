from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco_mask

from rtsmap.instances.coco_scores import coco_results, coco_scores
from rtsmap.instances.detections import Detection
from rtsmap.mm.samples import Sample
from rtsmap.mm.validate import average_precision, best_f1, match_sample
from rtsmap.rasters.tiling import Window

SIDE_PX = 40
Mask = npt.NDArray[np.bool_]


def block(rows: slice, cols: slice) -> Mask:
    mask = np.zeros((SIDE_PX, SIDE_PX), np.bool_)
    mask[rows, cols] = True
    return mask


def sample_of(slumps: Sequence[Mask], ignored: Mask | None = None) -> Sample:
    nothing = np.zeros((SIDE_PX, SIDE_PX), np.bool_)
    masks = np.array(slumps, np.bool_).reshape(-1, SIDE_PX, SIDE_PX)
    kinds = nothing.astype(np.uint8)
    boxes = np.zeros((len(masks), 4), np.float32)
    return Sample("one", {}, boxes, masks, nothing if ignored is None else ignored, kinds)


def detection_of(mask: Mask, score: float) -> Detection:
    return Detection(score, Window(0, 0, SIDE_PX, SIDE_PX), mask.astype(np.uint8) * 255, 0)


def coco_truth(slumps: Sequence[Mask]) -> dict[str, Any]:
    annotations = []
    for number, mask in enumerate(slumps, start=1):
        runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        annotations.append(
            {
                "id": number,
                "image_id": 0,
                "category_id": 1,
                "iscrowd": 0,
                "area": float(mask.sum()),
                "bbox": coco_mask.toBbox(runs).tolist(),
                "segmentation": {"size": [SIDE_PX, SIDE_PX], "counts": runs["counts"].decode("ascii")},
            }
        )
    return {
        "images": [{"id": 0, "height": SIDE_PX, "width": SIDE_PX}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "slump"}],
    }


def test_a_rough_outline_does_not_keep_a_good_one_from_its_slump():
    slump = block(slice(0, 20), slice(0, 20))
    rough = detection_of(block(slice(0, 20), slice(0, 8)), 0.9)
    good = detection_of(block(slice(0, 20), slice(0, 18)), 0.8)
    hits = match_sample([good, rough], sample_of([slump]))
    assert average_precision(hits, 1, 0.5) == 0.5
    assert best_f1(hits, 1, 0.5) == (pytest.approx(2 / 3), 0.8, 0.5, 1.0)
    assert best_f1(hits, 1, 0.3) == (1.0, 0.9, 1.0, 1.0)


@pytest.mark.parametrize("seed", range(8))
def test_ap50_is_that_of_pycocotools(seed: int):
    rng = np.random.default_rng(seed)

    def disturbed(row: int, col: int) -> Mask:
        top, left, high, wide = np.array([row, col, 10, 10]) + rng.integers(-3, 4, size=4)
        return block(slice(max(top, 0), top + high), slice(max(left, 0), left + wide))

    corners = [(2, 2), (2, 22), (22, 2), (22, 22)]
    slumps = [block(slice(row, row + 10), slice(col, col + 10)) for row, col in corners]
    shapes = [disturbed(*corners[number % 4]) for number in range(9)]
    detections = [
        detection_of(mask, score)
        for mask, score in zip(shapes, rng.permuted(np.linspace(0.1, 0.9, 9)), strict=True)
    ]
    theirs = coco_scores(coco_truth(slumps), coco_results(0, detections, (SIDE_PX, SIDE_PX)))["AP50"]
    ours = average_precision(match_sample(detections, sample_of(slumps)), len(slumps), 0.5)
    # they read precision at 101 points of recall; each of four steps may hold one of them more or less
    assert ours == pytest.approx(theirs, abs=0.04)


def test_what_lies_on_ignored_ground_is_not_judged():
    slump, ignored = block(slice(0, 10), slice(0, 10)), block(slice(20, 40), slice(0, 40))
    found = [detection_of(slump, 0.7), detection_of(block(slice(25, 35), slice(0, 10)), 0.9)]
    hits = match_sample(found, sample_of([slump], ignored))
    assert [hit.score for hit in hits] == [0.7]
    assert average_precision(hits, 1, 0.5) == 1.0

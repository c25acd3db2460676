from __future__ import annotations

import contextlib
import io
import json
from collections import Counter

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from rtsmap.errors import LabelError
from rtsmap.instances.coco_scores import (
    CHALLENGE,
    STOCK,
    coco_intervals,
    coco_results,
    coco_scores,
    mask_of,
    object_matches,
    pixel_overlaps,
    usable_document,
    usable_results,
)
from rtsmap.instances.detections import Detection, Side
from rtsmap.instances.run_lengths import runs_of
from rtsmap.rasters.tiling import Window

SHAPE = (120, 160)


def document(seed, images=6):
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(1, images + 1):
        for _ in range(int(rng.integers(0, 5))):
            x, y = rng.uniform(0, 100), rng.uniform(0, 70)
            w, h = rng.uniform(8, 60), rng.uniform(8, 50)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    pictures = [
        {"id": i, "file_name": f"{i}.png", "height": SHAPE[0], "width": SHAPE[1]}
        for i in range(1, images + 1)
    ]
    return {"images": pictures, "annotations": annotations, "categories": [{"id": 1, "name": "rts"}]}


def guesses(truth, seed):
    """Detections near the truth, and some nowhere."""
    rng = np.random.default_rng(seed)
    results = []
    for annotation in truth["annotations"] + truth["annotations"][:3]:
        x, y, w, h = np.array(annotation["bbox"]) + rng.normal(0, 4, 4)
        window = Window(*(int(np.clip(v, 0, 150)) for v in (y, x, y + max(h, 4), x + max(w, 4))))
        window = window.intersection(Window(0, 0, *SHAPE))
        if not window.empty:
            found = Detection(
                float(rng.random()), window, np.full(window.shape, 200, np.uint8), 0, Side.NONE, ("optical",)
            )
            results += coco_results(annotation["image_id"], [found], SHAPE)
    return results


def by_pycocotools(truth, results, settings):
    """COCOeval as its own documentation uses it, from files' worth of JSON."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps({"info": {}, **truth}))
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(json.loads(json.dumps(results))), "segm")
        if settings is CHALLENGE:
            evaluation.params.maxDets = [1, 5, 10]
            evaluation.params.areaRng = [[0, 1e10], [0, 300], [300, 2000], [2000, 1e10]]
        evaluation.evaluate()
        evaluation.accumulate()
        if settings is STOCK:
            evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(5))
def test_stock_scores_are_those_of_pycocotools(seed):
    truth = document(seed)
    results = guesses(truth, seed)
    stats = by_pycocotools(truth, results, STOCK).stats
    ours = list(coco_scores(truth, results, STOCK).values())
    assert np.allclose(np.nan_to_num(ours, nan=-1), stats[:9], atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_challenge_scores_are_those_of_pycocotools(seed):
    truth = document(seed)
    results = guesses(truth, seed)
    precision = by_pycocotools(truth, results, CHALLENGE).eval["precision"]
    ours = coco_scores(truth, results, CHALLENGE)
    for number, name in enumerate(("AP", "AP_small", "AP_medium", "AP_large")):
        values = precision[:, :, :, number, 2]
        wanted = values[values > -1].mean() if (values > -1).any() else np.nan
        assert ours[name] == pytest.approx(wanted, nan_ok=True, abs=1e-12)


def test_perfect_and_empty_results():
    truth = document(1)
    perfect = []
    for annotation in truth["annotations"]:
        runs = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], *SHAPE))
        runs["counts"] = runs["counts"].decode()
        perfect.append(
            {"image_id": annotation["image_id"], "category_id": 1, "segmentation": runs, "score": 1.0}
        )
    assert coco_scores(truth, perfect)["AP"] == pytest.approx(1)
    nothing = coco_scores(truth, [])
    assert nothing["AP"] == nothing["AR100"] == 0


def test_order_does_not_matter_and_inputs_stay_as_they_are():
    truth = document(2)
    results = guesses(truth, 2)
    before = json.dumps([truth, results])
    one, other = coco_scores(truth, results), coco_scores(truth, results[::-1])
    assert one == pytest.approx(other, nan_ok=True)
    assert json.dumps([truth, results]) == before


def test_numbers_of_labels_and_classes_do_not_matter():
    truth = document(3)
    results = [{**one, "segmentation": one["segmentation"]} for one in guesses(truth, 3)]
    wanted = coco_scores(truth, results)
    assert 0 < wanted["AP50"] < 1
    labels = truth["annotations"]
    seen = Counter()
    by_image = []
    for label in labels:
        seen[label["image_id"]] += 1
        by_image.append({**label, "id": seen[label["image_id"]]})
    classes = [{"id": 0, "name": "slumps"}, {"id": 3, "name": "rts"}]
    for other in (
        {**truth, "annotations": [{**label, "id": number} for number, label in enumerate(labels)]},
        {**truth, "annotations": by_image},
        {**truth, "annotations": [{**label, "category_id": 3} for label in labels], "categories": classes},
        {**truth, "annotations": [{**label, "category_id": 0} for label in labels], "categories": []},
    ):
        usable = usable_document(other)
        for category in (0, 3):
            found = usable_results(usable, [{**one, "category_id": category} for one in results])
            assert coco_scores(usable, found) == pytest.approx(wanted, nan_ok=True)
            assert {one["category_id"] for one in found} == {usable["annotations"][0]["category_id"]}


def test_labels_that_leave_open_what_is_a_slump_are_refused():
    truth = document(3)
    first, *others = truth["annotations"]
    with pytest.raises(LabelError, match="2 categories, 1, 2; wanted slumps only"):
        usable_document({**truth, "annotations": [{**first, "category_id": 2}, *others]})
    crowd = {**first, "category_id": 2, "iscrowd": 1}
    assert len(usable_document({**truth, "annotations": [crowd, *others]})["annotations"]) == len(others) + 1
    with pytest.raises(LabelError, match="images is empty"):
        usable_document({**truth, "images": []})
    with pytest.raises(LabelError, match="two images have the id 1"):
        usable_document({**truth, "images": truth["images"] + truth["images"][:1]})


def test_results_of_other_images_are_refused():
    with pytest.raises(LabelError, match="another split"):
        coco_scores(document(0), [{"image_id": 99, "category_id": 1, "segmentation": {}, "score": 1.0}])


def test_intervals_hold_the_score_and_need_groups():
    truth = document(3, images=12)
    results = guesses(truth, 3)
    scores = coco_scores(truth, results)
    intervals = coco_intervals(truth, results, str, resamples=40)
    for name in ("AP", "AP50", "AR100"):
        low, high = intervals[name]
        assert low <= scores[name] <= high
        assert low < high
    assert coco_intervals(truth, results, lambda _: "one") == {}


def test_object_matches_of_a_known_case():
    picture = {"id": 7, "file_name": "a.png", "height": 20, "width": 20}
    squares = [[0, 0, 10, 0, 10, 10, 0, 10], [10, 10, 20, 10, 20, 20, 10, 20]]
    annotations = [
        {"id": i, "image_id": 7, "category_id": 1, "segmentation": [ring]}
        for i, ring in enumerate(squares, 1)
    ]
    truth = {"images": [picture], "annotations": annotations}
    half = Detection(0.9, Window(0, 0, 10, 5), np.full((10, 5), 255, np.uint8), 0)
    off = Detection(0.8, Window(0, 15, 5, 20), np.full((5, 5), 255, np.uint8), 0)
    results = coco_results(7, [half, off], (20, 20))
    at_half = object_matches(truth, results, 0.5)[7]
    assert (at_half.true_positives, at_half.false_positives, at_half.false_negatives) == (1, 1, 1)
    assert at_half.pairs[0].iou == pytest.approx(0.5)
    assert object_matches(truth, results, 0.51)[7].true_positives == 0


def square(x, y, side=10):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def one_image(*labels):
    picture = {"id": 7, "file_name": "a.png", "height": 40, "width": 40}
    annotations = [{"image_id": 7, **label} for label in labels]
    return {"images": [picture], "annotations": annotations}


def test_crowds_are_neither_found_nor_missed():
    truth = usable_document(
        one_image({"segmentation": square(0, 0)}, {"segmentation": square(20, 20, 20), "iscrowd": 1})
    )
    places = ((0, 0), (25, 25), (0, 30))
    found = [{"image_id": 7, "segmentation": square(x, y), "score": 0.9} for x, y in places]
    results = usable_results(truth, found)
    matches = object_matches(truth, results, 0.5)[7]
    assert (matches.true_positives, matches.false_positives, matches.false_negatives) == (1, 1, 0)
    assert pixel_overlaps(truth, results) == {7: (100, 200)}
    assert coco_scores(truth, results[:2])["AP50"] == pytest.approx(1)


def test_scores_are_the_same_whichever_kind_of_segmentation_results_have():
    truth = document(1)
    rings = [
        {"image_id": label["image_id"], "segmentation": label["segmentation"], "score": 0.1 * number}
        for number, label in enumerate(truth["annotations"][:-1])
    ]
    runs = usable_results(truth, rings)
    lists = [{**one, "segmentation": uncompressed(one["segmentation"])} for one in runs]
    assert usable_results(truth, runs) == usable_results(truth, lists) == runs


def uncompressed(runs):
    pixels = mask_of(runs, tuple(runs["size"])).ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], pixels, [2]])))
    return {"size": runs["size"], "counts": np.diff(edges, prepend=0).tolist()}


def test_labels_without_area_crowd_or_class_get_them():
    (label,) = usable_document(one_image({"segmentation": square(0, 0)}))["annotations"]
    assert {key: label[key] for key in ("id", "category_id", "iscrowd", "area", "bbox")} == {
        "id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "area": 100,
        "bbox": [0, 0, 10, 10],
    }
    nulls = dict.fromkeys(("id", "category_id", "iscrowd", "area", "bbox"))
    assert usable_document(one_image({"segmentation": square(0, 0), **nulls}))["annotations"] == [label]
    for stranger in (8, None, [7], {}):
        strangers = one_image({"segmentation": square(0, 0), "image_id": stranger})
        assert usable_document(strangers)["annotations"] == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"area": "100"}, "annotation 5: its area is '100'"),
        ({"area": float("nan")}, "annotation 5: its area is nan"),
        ({"iscrowd": "0"}, "annotation 5: its iscrowd is '0', wanted 0 or 1"),
        ({"category_id": [1]}, r"of the category \[1\]"),
    ],
)
def test_annotations_that_cannot_be_used_are_told(changes, says):
    with pytest.raises(LabelError, match=says):
        usable_document(one_image({"segmentation": square(0, 0), "id": 5, **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id": [7]}, "a number for an id"),
        ({"file_name": 7}, "a text for a file_name"),
        ({"height": 0}, "0 x 40 high and wide"),
        ({"height": 40.5}, "40.5 x 40 high and wide"),
        ({"width": 10**9}, "40 x 1000000000 high and wide"),
    ],
)
def test_images_that_cannot_be_are_told(changes, says):
    truth = one_image({"segmentation": square(0, 0)})
    with pytest.raises(LabelError, match=says):
        usable_document({**truth, "images": [{**truth["images"][0], **changes}]})
    other = {**truth["images"][0], "id": "a"}
    with pytest.raises(LabelError, match="both numbers and texts"):
        usable_document({**truth, "images": [*truth["images"], other]})


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_are_read_as_they_are_packed(seed):
    random = np.random.default_rng(seed)
    mask = ndimage.zoom(random.random((9, 9)) > 0.5, 1 + 30 * seed, order=0)
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
    values = np.arange(len(runs_of(runs))) % 2
    assert (np.repeat(values, runs_of(runs)) == mask.ravel(order="F")).all()


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ([], "empty or no polygon"),
        ([[1, 2, 3, 4]], "empty or no polygon"),
        (None, "cannot be read"),
        ({"size": [40, 40], "counts": [0, 5000]}, "cannot be read"),
        ({"size": [40, 40], "counts": "garbage"}, "cannot be read"),
        ({"size": [20, 20], "counts": [0, 400]}, "is of .20, 20. pixels"),
        ({"size": [40, 40], "counts": [10, 20]}, "run lengths are of 30 pixels, its image of 1600"),
        ([[0, 0, float("nan"), 0, 9, 9]], "no polygon"),
        ([[0, 0, 1e12, 0, 9, 9]], "no polygon"),
        ([[0, 0, "9", 0, 9, 9]], "no polygon"),
    ],
)
def test_segmentations_that_are_none_are_told(segmentation, says):
    with pytest.raises(LabelError, match=f"annotation 5: .*{says}"):
        usable_document(one_image({"segmentation": segmentation, "id": 5}))
    result = {"image_id": 7, "segmentation": segmentation, "score": 0.5}
    with pytest.raises(LabelError, match=f"result 0: .*{says}"):
        usable_results(usable_document(one_image()), [result])


@pytest.mark.parametrize("score", ["0.5", None, True, float("nan")])
def test_scores_that_are_none_are_told(score):
    result = {"image_id": 7, "segmentation": square(0, 0), "score": score}
    with pytest.raises(LabelError, match="result 0: its score is"):
        usable_results(usable_document(one_image()), [result])

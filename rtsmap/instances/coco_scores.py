"""Average precision of masks on labelled chips, by pycocotools: results and scores as COCO defines them."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rtsmap.errors import LabelError
from rtsmap.instances.detections import Detection
from rtsmap.instances.evaluate import Matches, Pair, match_pairs
from rtsmap.instances.intervals import group_intervals
from rtsmap.instances.run_lengths import runs_of

_EVERYTHING_PX2 = 1e10
_MOST_PX = 1 << 16
"""A side of a picture; pycocotools crashes on much larger ones, and on polygons that reach far beyond."""


@dataclass(frozen=True, slots=True)
class CocoSettings:
    """How many detections of a chip count, and the size classes: name to (from, to) in square pixels."""

    max_detections: tuple[int, ...]
    size_classes: Mapping[str, tuple[float, float]]


STOCK = CocoSettings(
    (1, 10, 100),
    {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, _EVERYTHING_PX2)},
)
"""What pycocotools does by default."""

CHALLENGE = CocoSettings(
    (1, 5, 10),
    {"small": (0, 300), "medium": (300, 2000), "large": (2000, _EVERYTHING_PX2)},
)
"""What the GeoAI Arctic Mapping Challenge of 2026 ranks by."""

SETTINGS: dict[str, CocoSettings] = {"stock": STOCK, "challenge": CHALLENGE}


def coco_results(
    image_id: int,
    detections: Iterable[Detection],
    shape: tuple[int, int],
    *,
    category_id: int = 1,
    mask_threshold: int = 128,
) -> list[dict[str, Any]]:
    """Detections on a chip of this shape as COCO results: compressed run lengths and scores."""
    results = []
    for found in detections:
        whole = np.zeros(shape, np.uint8, order="F")
        whole[found.window.slices()] = found.mask >= mask_threshold
        runs = coco_mask.encode(whole)
        results.append(
            {
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": {"size": list(shape), "counts": runs["counts"].decode("ascii")},
                "score": float(found.score),
            }
        )
    return results


def coco_scores(
    document: Mapping[str, Any], results: Sequence[Mapping[str, Any]], settings: CocoSettings = STOCK
) -> dict[str, float]:
    """AP over IoU 0.50:0.95, AP50, AP75, AP by size, and recall (AR) with each number of detections.

    `document` is a COCO dataset, `results` a list of COCO results with segmentations; all are slumps,
    whatever their category. NaN where a size class holds no slump. Raises LabelError when results name
    images that the dataset lacks.
    """
    return _scores(_evaluated(document, results, settings), settings)


def coco_intervals(
    document: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    group_of: Callable[[int], str],
    settings: CocoSettings = STOCK,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % intervals of `coco_scores`, from drawing whole groups of images; `group_of` takes an image id."""
    drawn = DrawnScores.of(document, results, group_of, settings)
    return group_intervals(len(drawn.groups), drawn, resamples=resamples, seed=seed)


@dataclass(frozen=True, slots=True)
class DrawnScores:
    """`coco_scores` of groups of images that are drawn, with replacement, by their number in `groups`."""

    groups: tuple[str, ...]
    _members: tuple[tuple[int, ...], ...]
    _evaluation: COCOeval
    _by_image: npt.NDArray[np.object_]
    _settings: CocoSettings

    @classmethod
    def of(
        cls,
        document: Mapping[str, Any],
        results: Sequence[Mapping[str, Any]],
        group_of: Callable[[int], str],
        settings: CocoSettings = STOCK,
    ) -> DrawnScores:
        """Look at all images once; `group_of` takes an image id."""
        evaluation = _evaluated(document, results, settings)
        images = list(evaluation.params.imgIds)
        numbers: dict[str, list[int]] = {}
        for number, image in enumerate(images):
            numbers.setdefault(group_of(image), []).append(number)
        by_image = np.array(evaluation.evalImgs, dtype=object).reshape(-1, len(images))
        return cls(tuple(numbers), tuple(map(tuple, numbers.values())), evaluation, by_image, settings)

    def __call__(self, drawn: Iterable[int]) -> dict[str, float]:
        """Figures of the drawn groups; one that is drawn twice counts twice."""
        chosen = [number for group in drawn for number in self._members[group]]
        # what `accumulate` reads, and the copy that `evaluate` left for it
        for params in (self._evaluation.params, self._evaluation._paramsEval):  # noqa: SLF001
            params.imgIds = list(range(len(chosen)))
        self._evaluation.evalImgs = self._by_image[:, chosen].ravel().tolist()
        with redirect_stdout(io.StringIO()):
            self._evaluation.accumulate()
        return _scores(self._evaluation, self._settings)


def object_matches(
    document: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou: float
) -> dict[int, Matches]:
    """One-to-one matches on each image at an IoU threshold; the best scored chooses first.

    Crowds are no slumps to be found, and what lies in one, by so much of its own area, is not judged.
    """
    shapes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    truth: dict[int, list[Any]] = {image: [] for image in shapes}
    crowds: dict[int, list[Any]] = {image: [] for image in shapes}
    for annotation in document["annotations"]:
        image = annotation["image_id"]
        kind = crowds if annotation.get("iscrowd") else truth
        kind[image].append(_runs(annotation["segmentation"], shapes[image]))
    found: dict[int, list[Mapping[str, Any]]] = {image: [] for image in shapes}
    for result in results:
        found[result["image_id"]].append(result)
    return {image: _matches(found[image], truth[image], crowds[image], iou) for image in shapes}


def pixel_overlaps(
    document: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> dict[int, tuple[int, int]]:
    """Of each image the pixels that are both true and found, and those that are either; none in crowds."""
    true = {
        image["id"]: np.zeros((image["height"], image["width"]), np.bool_) for image in document["images"]
    }
    found, crowds = ({image: np.zeros_like(mask) for image, mask in true.items()} for _ in range(2))
    labels = document["annotations"]
    for masks, segments in (
        (true, [one for one in labels if not one.get("iscrowd")]),
        (crowds, [one for one in labels if one.get("iscrowd")]),
        (found, results),
    ):
        for one in segments:
            mask = masks[one["image_id"]]
            mask |= mask_of(one["segmentation"], mask.shape)
    return {
        image: (int((mask & found[image] & judged).sum()), int(((mask | found[image]) & judged).sum()))
        for image, mask in true.items()
        for judged in [~crowds[image]]
    }


def mask_of(segmentation: Any, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """A segmentation of any of COCO's three kinds as a mask (h, w), True = slump."""
    height, width = shape
    return _decoded(_runs(segmentation, (height, width)))


def _decoded(runs: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    with warnings.catch_warnings():
        # pycocotools speaks to numpy 2 as to numpy 1
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(coco_mask.decode(runs), np.bool_)


def _matches(
    found: Sequence[Mapping[str, Any]], truth: Sequence[Any], crowds: Sequence[Any], iou: float
) -> Matches:
    pairs: list[Pair] = []
    masks = [one["segmentation"] for one in found]
    if found and truth:
        table = coco_mask.iou(masks, list(truth), [0] * len(truth))
        pairs = [Pair(int(i), int(j), float(table[i, j])) for i, j in zip(*np.nonzero(table), strict=True)]
    chosen = match_pairs(pairs, iou, [one["score"] for one in found])
    ignored: set[int] = set()
    if found and crowds:
        # of a crowd, pycocotools takes the share of the found one that lies in it
        inside = coco_mask.iou(masks, list(crowds), [1] * len(crowds)).max(axis=1) >= iou
        ignored = set(np.flatnonzero(inside).tolist()) - {pair.predicted for pair in chosen}
    return Matches(iou, tuple(chosen), len(found) - len(ignored), len(truth))


def usable_document(document: Any) -> dict[str, Any]:
    """A COCO dataset with what scores need: annotations of its images only, with class, area and crowd.

    Raises LabelError, with what is wrong of which entry, for one that cannot be used, or whose annotations
    are of several classes: one of them is slumps, and the file does not say which.
    """
    missing = [key for key in ("images", "annotations") if not isinstance(_entry(document, key), list)]
    if missing:
        raise LabelError(f"no {' and no '.join(missing)}; wanted a COCO dataset")
    shapes = _shapes(document["images"])
    # null is as good as not there
    labels = [
        {key: value for key, value in label.items() if value is not None}
        for label in document["annotations"]
        if _is_key(_entry(label, "image_id")) and label["image_id"] in shapes
    ]
    slumps = [label for label in labels if not label.get("iscrowd")]
    category = _one_category([label.get("category_id") for label in slumps], "annotations")
    classes = document.get("categories")
    if not isinstance(classes, list) or not classes or not all(_is_key(_entry(one, "id")) for one in classes):
        classes = [{"id": category, "name": "rts"}]
    annotations = []
    for number, label in enumerate(labels, start=1):
        try:
            runs = compressed(label.get("segmentation"), shapes[label["image_id"]])
            _check_figures(label)
        except ValueError as exc:
            raise LabelError(f"annotation {label.get('id', number)}: {exc}") from exc
        whole = {"id": number, "iscrowd": 0, **label, "category_id": category}
        annotations.append(
            {"area": float(coco_mask.area(runs)), "bbox": coco_mask.toBbox(runs).tolist(), **whole}
        )
    return {**document, "annotations": annotations, "categories": classes}


def _check_figures(label: Mapping[str, Any]) -> None:
    """Raise ValueError for what pycocotools would take for something else."""
    area, crowd = label.get("area", 0.0), label.get("iscrowd", 0)
    if isinstance(area, bool) or not isinstance(area, int | float) or not math.isfinite(area):
        raise ValueError(f"its area is {area!r}, wanted square pixels")
    if not isinstance(crowd, int) or crowd not in (0, 1):
        raise ValueError(f"its iscrowd is {crowd!r}, wanted 0 or 1")


def _is_key(value: Any) -> bool:
    """True for what can name an image or a class."""
    return isinstance(value, int | str)


def _shapes(images: Sequence[Any]) -> dict[int, tuple[int, int]]:
    """Height and width of each image by its id; LabelError for entries that cannot be used."""
    if not images:
        raise LabelError("its list of images is empty; there is nothing to judge")
    shapes: dict[int, tuple[int, int]] = {}
    for number, image in enumerate(images):
        lacking = [key for key in ("id", "file_name", "height", "width") if _entry(image, key) is None]
        if lacking:
            raise LabelError(f"image {number} has no {' and no '.join(lacking)}")
        if not _is_key(image["id"]) or not isinstance(image["file_name"], str):
            raise LabelError(f"image {number}: wanted a number for an id and a text for a file_name")
        if image["id"] in shapes:
            raise LabelError(f"two images have the id {image['id']}; wanted one each")
        shape = (image["height"], image["width"])
        if not all(isinstance(side, int) and 0 < side <= _MOST_PX for side in shape):
            raise LabelError(
                f"image {image['id']}: it is {shape[0]} x {shape[1]} high and wide, wanted pixels"
            )
        shapes[image["id"]] = shape
    if len({type(image) for image in shapes}) > 1:
        raise LabelError("ids of images are both numbers and texts; wanted numbers")
    return shapes


def _one_category(named: Iterable[Any], of: str) -> int:
    """The category that all name, 1 where none does."""
    named = [category for category in named if category is not None]
    if strange := [category for category in named if not _is_key(category)]:
        raise LabelError(f"{of} are of the category {strange[0]}; wanted a number")
    categories = sorted(set(named), key=str)
    if len(categories) > 1:
        raise LabelError(
            f"{of} are of {len(categories)} categories, {', '.join(map(str, categories[:5]))}; wanted slumps "
            "only: leave the others out"
        )
    return categories[0] if categories else 1


def usable_results(document: Mapping[str, Any], results: Any) -> list[dict[str, Any]]:
    """COCO results with compressed run lengths, whichever of COCO's three kinds they came in.

    Raises LabelError, with what is wrong of which one, for what is no result on the dataset's images.
    """
    wanted = {"image_id", "segmentation", "score"}
    if not isinstance(results, list) or not all(isinstance(r, dict) and wanted <= set(r) for r in results):
        raise LabelError(f"wanted a list of COCO results, each with {', '.join(sorted(wanted))}")
    shapes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    _refuse_strangers(results, shapes)
    _one_category([result.get("category_id") for result in results], "results")
    usable = []
    for number, result in enumerate(results):
        score = result["score"]
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise LabelError(f"result {number}: its score is {score!r}, wanted a number")
        try:
            runs = compressed(result["segmentation"], shapes[result["image_id"]])
        except ValueError as exc:
            raise LabelError(f"result {number}: {exc}") from exc
        usable.append({**result, "category_id": category_of(document), "segmentation": runs})
    return usable


def category_of(document: Mapping[str, Any]) -> int:
    """The category of slumps: that of the annotations, the first one listed where there are none."""
    named = document["annotations"] or [{"category_id": one["id"]} for one in document["categories"]]
    category: int = named[0]["category_id"]
    return category


def compressed(segmentation: Any, shape: tuple[int, int]) -> dict[str, Any]:
    """A segmentation as compressed run lengths that JSON can hold; ValueError for what is none."""
    if isinstance(segmentation, list) and not (segmentation and all(map(_is_ring, segmentation))):
        raise ValueError(
            "its segmentation is empty or no polygon; wanted rings of x, y, x, y, x, y ... in pixels"
        )
    try:
        runs = _runs(segmentation, shape)
        size, counts = [int(side) for side in runs["size"]], runs["counts"]
        _decoded({"size": size, "counts": counts})
        text = counts if isinstance(counts, str) else counts.decode("ascii")
        covered_px = sum(runs_of(text))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as exc:
        raise ValueError(f"its segmentation cannot be read ({type(exc).__name__}: {exc})") from exc
    if size != list(shape):
        raise ValueError(f"its segmentation is of {size} pixels (rows, columns), its image of {list(shape)}")
    if covered_px != shape[0] * shape[1]:
        # pycocotools would leave the rest of the mask to chance
        raise ValueError(f"its run lengths are of {covered_px} pixels, its image of {shape[0] * shape[1]}")
    return {"size": size, "counts": text}


def _is_ring(ring: Any) -> bool:
    """True for corners of a polygon that lie on the picture or about it."""
    return (
        isinstance(ring, list)
        and len(ring) >= 6
        and len(ring) % 2 == 0
        and all(isinstance(v, int | float) and abs(v) <= 2 * _MOST_PX for v in ring)
    )


def _entry(table: Any, key: str) -> Any:
    return table.get(key) if isinstance(table, dict) else None


def _runs(segmentation: Any, shape: tuple[int, int]) -> Any:
    """A segmentation of any of COCO's three kinds as compressed run lengths."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, *shape))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, *shape)
    return segmentation


def _scores(evaluation: COCOeval, settings: CocoSettings) -> dict[str, float]:
    scores = {
        "AP": _mean_precision(evaluation),
        "AP50": _mean_precision(evaluation, iou=0.5),
        "AP75": _mean_precision(evaluation, iou=0.75),
    }
    for number, name in enumerate(settings.size_classes, start=1):
        scores[f"AP_{name}"] = _mean_precision(evaluation, size=number)
    for number, count in enumerate(settings.max_detections):
        recalls = evaluation.eval["recall"][:, :, 0, number]
        scores[f"AR{count}"] = _mean_of_known(recalls)
    return scores


def _evaluated(
    document: Mapping[str, Any], results: Sequence[Mapping[str, Any]], settings: CocoSettings
) -> COCOeval:
    _refuse_strangers(results, {image["id"] for image in document["images"]})
    # pycocotools takes the id 0 for no match, writes areas and boxes into what it is given, and prints
    labels, results = (
        [{**copy.deepcopy(one), "id": number, "category_id": 1} for number, one in enumerate(ones, start=1)]
        for ones in (document["annotations"], results)
    )
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": list(document["images"]),
            "annotations": labels,
            "categories": [{"id": 1, "name": "rts"}],
        }
        truth.createIndex()
        found = truth.loadRes(results) if results else _nothing(truth)
        evaluation = COCOeval(truth, found, "segm")
        evaluation.params.maxDets = list(settings.max_detections)
        evaluation.params.areaRng = [[0, _EVERYTHING_PX2], *map(list, settings.size_classes.values())]
        evaluation.params.areaRngLbl = ["all", *settings.size_classes]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _refuse_strangers(results: Iterable[Mapping[str, Any]], known: Collection[int]) -> None:
    named = [result["image_id"] for result in results]
    strangers = sorted({str(image) for image in named if not _is_key(image) or image not in known})
    if strangers:
        raise LabelError(
            f"results name {len(strangers)} images that the labels lack, first {strangers[0]}; "
            "are they of another split?"
        )


def _nothing(truth: COCO) -> COCO:
    """Results without any: `loadRes` cannot be given an empty list."""
    empty = COCO()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _mean_precision(evaluation: COCOeval, iou: float | None = None, size: int = 0) -> float:
    """Mean over IoU thresholds, recalls and classes, with the most detections."""
    precision = evaluation.eval["precision"]
    if iou is not None:
        precision = precision[np.isclose(evaluation.params.iouThrs, iou)]
    return _mean_of_known(precision[:, :, :, size, -1])


def _mean_of_known(values: npt.NDArray[np.float64]) -> float:
    """Pycocotools marks with -1 what has no truth."""
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")

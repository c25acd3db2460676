"""How well mapped polygons agree with true ones: one-to-one matches and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from rtsmap.errors import LabelError, OptionsError


@dataclass(frozen=True, slots=True)
class Pair:
    """Two polygons that meet: places in the predicted and the true sequence, and their IoU."""

    predicted: int
    truth: int
    iou: float


@dataclass(frozen=True, slots=True)
class Matches:
    """One-to-one matches at an IoU threshold. Shares of nothing are 0; two empty maps agree fully, 1."""

    iou_threshold: float
    pairs: tuple[Pair, ...]
    n_predicted: int
    n_truth: int

    @property
    def true_positives(self) -> int:
        """Predicted polygons with a true one of their own."""
        return len(self.pairs)

    @property
    def false_positives(self) -> int:
        """Predicted polygons without a true one."""
        return self.n_predicted - len(self.pairs)

    @property
    def false_negatives(self) -> int:
        """True polygons that were not found."""
        return self.n_truth - len(self.pairs)

    @property
    def precision(self) -> float:
        """Share of the predicted that are true."""
        return self._share(len(self.pairs), self.n_predicted)

    @property
    def recall(self) -> float:
        """Share of the true that were found."""
        return self._share(len(self.pairs), self.n_truth)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return self._share(2 * len(self.pairs), self.n_predicted + self.n_truth)

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the matches: the quality of outlines (segmentation quality)."""
        return self._share(sum(pair.iou for pair in self.pairs), len(self.pairs))

    @property
    def panoptic_quality(self) -> float:
        """F1 times `mean_iou` (Kirillov et al. 2019, who define it at an IoU threshold of 0.5)."""
        return self.f1 * self.mean_iou

    def _share(self, part: float, whole: int) -> float:
        if whole:
            return part / whole
        return 1.0 if self.n_predicted == self.n_truth == 0 else 0.0


def match_polygons(
    predicted: Sequence[Any],
    truth: Sequence[Any],
    iou: float = 0.5,
    scores: Sequence[float] | None = None,
) -> Matches:
    """Match shapely polygons in one planar CRS: the best scored chooses first, the free one of best IoU.

    Of equal scores, and without `scores`, the largest IoU chooses first. Raises LabelError for empty or
    invalid polygons.
    """
    return evaluate(predicted, truth, scores, (iou,))[0]


def evaluate(
    predicted: Sequence[Any],
    truth: Sequence[Any],
    scores: Sequence[float] | None = None,
    ious: Sequence[float] = (0.3, 0.5),
) -> tuple[Matches, ...]:
    """`match_polygons` at several IoU thresholds, with the intersections computed once."""
    if scores is not None and len(scores) != len(predicted):
        raise OptionsError(f"{len(predicted)} predicted polygons, but {len(scores)} scores")
    if not all(0 < iou <= 1 for iou in ious):
        raise OptionsError(f"IoU thresholds must be above 0 and at most 1, got {list(ious)}")
    pairs = overlapping_pairs(_checked(predicted, "predicted"), _checked(truth, "true"))
    return tuple(
        Matches(iou, tuple(match_pairs(pairs, iou, scores)), len(predicted), len(truth)) for iou in ious
    )


def match_pairs(
    pairs: Iterable[Pair], iou_threshold: float, scores: Sequence[float] | None = None
) -> list[Pair]:
    """Greedy one-to-one choice among pairs, whatever their IoU was measured on."""

    def turn(pair: Pair) -> tuple[float, float, int, int]:
        rank = 0.0 if scores is None else -scores[pair.predicted]
        return rank, -pair.iou, pair.predicted, pair.truth

    used_predicted: set[int] = set()
    used_truth: set[int] = set()
    chosen = []
    for pair in sorted(pairs, key=turn):
        taken = pair.predicted in used_predicted or pair.truth in used_truth
        if pair.iou >= iou_threshold and not taken:
            used_predicted.add(pair.predicted)
            used_truth.add(pair.truth)
            chosen.append(pair)
    return chosen


def overlapping_pairs(predicted: npt.NDArray[Any], truth: npt.NDArray[Any]) -> list[Pair]:
    """Every pair of polygons that share area."""
    if not len(predicted) or not len(truth):
        return []
    i, j = shapely.STRtree(truth).query(predicted, predicate="intersects")
    shared = shapely.area(shapely.intersection(predicted[i], truth[j]))
    iou = shared / (shapely.area(predicted[i]) + shapely.area(truth[j]) - shared)
    return [Pair(int(a), int(b), float(value)) for a, b, value in zip(i, j, iou, strict=True) if value > 0]


def shared_areas(polygons: npt.NDArray[Any], grounds: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Area of each polygon that lies on the ground beside it in `grounds`, which it prepares.

    What lies there whole, as most does, costs no overlay with ground that may have very many corners.
    """
    shapely.prepare(grounds)
    shared: npt.NDArray[np.float64] = shapely.area(polygons)
    cut = np.flatnonzero(~shapely.covers(grounds, polygons))
    shared[cut] = shapely.area(shapely.intersection(polygons[cut], grounds[cut]))
    return shared


def _checked(polygons: Sequence[Any], which: str) -> npt.NDArray[Any]:
    array = np.array(polygons, dtype=object)
    bad = shapely.is_empty(array) | ~shapely.is_valid(array)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        reason = "empty" if array[first].is_empty else shapely.is_valid_reason(array[first])
        raise LabelError(
            f"{int(bad.sum())} of {len(polygons)} {which} polygons cannot be compared; "
            f"the first is number {first}: {reason}. Mend them first, e.g. with shapely.make_valid"
        )
    return array

"""Footprints of maps and whether each is true: what calibration and precision-recall curves start from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rtsmap.errors import OptionsError
from rtsmap.instances.evaluate import match_polygons
from rtsmap.instances.map_scores import JudgedMap


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Footprints, each with its score and the number of its group of ground; `right`: it has a true slump.

    `slumps` counts the true ones, found or not. What is right does not change when footprints of lower score
    are left out, because the better scored choose first.
    """

    iou_threshold: float
    scores: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]
    groups: npt.NDArray[np.int64]
    slumps: int

    def __post_init__(self) -> None:
        if not len(self.scores) == len(self.right) == len(self.groups):
            raise OptionsError(
                f"{len(self.scores)} scores, {len(self.right)} outcomes and {len(self.groups)} groups: "
                "wanted as many of each"
            )

    @property
    def group_count(self) -> int:
        """Groups of ground that hold footprints."""
        return int(self.groups.max()) + 1 if len(self.groups) else 0


def outcomes_of(maps: Iterable[JudgedMap], iou: float) -> Outcomes:
    """Outcomes of all footprints of the maps, matched one to one with their truth at an IoU."""
    scores, right, groups, slumps = list[float](), list[bool](), list[str](), 0
    for judged in maps:
        matches = match_polygons(judged.predicted, judged.truth, iou, judged.scores)
        found = {pair.predicted for pair in matches.pairs}
        scores += judged.scores
        right += [number in found for number in range(len(judged.predicted))]
        groups += [judged.group_of(polygon) for polygon in judged.predicted]
        slumps += len(judged.truth)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return Outcomes(
        iou,
        np.array(scores, np.float64),
        np.array(right, np.bool_),
        np.array([numbers[group] for group in groups], np.int64),
        slumps,
    )


@dataclass(frozen=True, slots=True)
class Curve:
    """What is left at each threshold: one point for each distinct score, highest first.

    `kept` and `true` count the footprints of at least this score, and those of them that are true.
    """

    thresholds: npt.NDArray[np.float64]
    kept: npt.NDArray[np.int64]
    true: npt.NDArray[np.int64]
    slumps: int

    @property
    def precision(self) -> npt.NDArray[np.float64]:
        """Share of the kept that are true."""
        return np.asarray(self.true / self.kept)

    @property
    def recall(self) -> npt.NDArray[np.float64]:
        """Share of the slumps that are found; NaN where there is none."""
        return self.true / self.slumps if self.slumps else np.full(len(self.true), np.nan)


def threshold_curve(scores: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], slumps: int = 0) -> Curve:
    """Counts at every threshold; footprints of one score stay or go together."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_score = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], [True] * bool(len(ranked))))
    true = np.cumsum(right[order], dtype=np.int64)[last_of_score]
    return Curve(ranked[last_of_score], last_of_score + 1, true, slumps)

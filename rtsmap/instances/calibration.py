"""What scores are worth: how often footprints of a score are true, and one number that mends scores.

Temperature scaling (Guo et al. 2017) divides the logit of every score by one number, fitted by maximum
likelihood. It keeps the order of scores: a map loses or gains nothing but the meaning of its scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from rtsmap.errors import OptionsError
from rtsmap.instances.intervals import share_interval
from rtsmap.instances.outcomes import threshold_curve

Scores = npt.NDArray[np.float64]
Right = npt.NDArray[np.bool_]
_Score = TypeVar("_Score", float, Scores)

TEMPERATURE_LIMITS = (0.05, 20.0)
"""A fit that ends here says that one number cannot mend the scores."""

LEAST_FOOTPRINTS = 10
"""A precision measured on fewer footprints is not claimed."""

_SMALLEST_SCORE = 1e-6


def tempered(score: _Score, temperature: float) -> _Score:
    """Scores 0..1 with their logits divided by `temperature`; `tempered(_, 1 / temperature)` undoes it."""
    if temperature == 1:
        return score
    for_it, against = score ** (1 / temperature), (1 - score) ** (1 / temperature)
    mended: _Score = for_it / (for_it + against)
    return mended


def fit_temperature(scores: Scores, right: Right) -> float:
    """The temperature under which the outcomes are most likely, within `TEMPERATURE_LIMITS`."""
    from scipy.optimize import brentq

    if not len(scores):
        raise OptionsError("no footprint to fit a temperature to")
    logits = _logits(scores)

    def slope(inverse: float) -> float:
        """Of the log loss, which is convex in the inverse of the temperature."""
        return float(((_sigmoid(inverse * logits) - right) * logits).sum())

    lowest, highest = TEMPERATURE_LIMITS
    if slope(1 / highest) >= 0:
        return highest
    if slope(1 / lowest) <= 0:
        return lowest
    return float(1 / brentq(slope, 1 / highest, 1 / lowest))


def log_loss(scores: Scores, right: Right) -> float:
    """Mean negative log likelihood of the outcomes; 0 is best, 0.693 is that of a coin."""
    logits = _logits(scores)
    return float(np.logaddexp(0, np.where(right, -logits, logits)).mean())


@dataclass(frozen=True, slots=True)
class ScoreBin:
    """Footprints with scores from `low` to `high`: how many, their mean score, the share that are true.

    `interval` is the 95 % interval of that share, as if footprints were independent.
    """

    low: float
    high: float
    count: int
    mean_score: float
    true_share: float
    interval: tuple[float, float]


def reliability(scores: Scores, right: Right, bins: int = 10) -> list[ScoreBin]:
    """The bins of equal width that hold footprints, lowest scores first."""
    if bins < 1:
        raise OptionsError(f"bins={bins}: wanted 1 or more")
    edges = np.arange(bins + 1) / bins
    numbers = np.searchsorted(edges[1:-1], scores, side="right")
    table = []
    for number in np.unique(numbers):
        inside = numbers == number
        count, true = int(inside.sum()), int(right[inside].sum())
        table.append(
            ScoreBin(
                float(edges[number]),
                float(edges[number + 1]),
                count,
                float(scores[inside].mean()),
                true / count,
                share_interval(true, count),
            )
        )
    return table


def calibration_error(table: list[ScoreBin]) -> float:
    """Expected calibration error: mean distance of score and share that are true, by footprints."""
    total = sum(one.count for one in table)
    return math.fsum(one.count * abs(one.mean_score - one.true_share) for one in table) / max(total, 1)


@dataclass(frozen=True, slots=True)
class PrecisionClaim:
    """With footprints of at least `threshold`, the share `precision` of them is true.

    `reached` is false when no threshold that keeps enough footprints gives the wanted precision; then all
    else is of the threshold that comes closest, or of all footprints, with None for a threshold, where even
    they are not enough. `interval` is the 95 % interval of the precision, as if footprints were independent.
    """

    wanted: float
    reached: bool
    threshold: float | None
    precision: float
    footprints: int
    true: int
    interval: tuple[float, float]


def threshold_for_precision(
    scores: Scores,
    right: Right,
    wanted: float,
    *,
    least: int = LEAST_FOOTPRINTS,
    lowest: float = 0.0,
) -> PrecisionClaim:
    """The lowest threshold that gives a precision, among those that keep at least `least` footprints.

    The threshold is the roundest number that keeps the same footprints; it is never below `lowest`, the
    score below which the maps hold nothing.
    """
    if not 0 < wanted <= 1:
        raise OptionsError(f"wanted precision {wanted}: must be above 0 and at most 1")
    curve = threshold_curve(scores, right)
    enough = np.flatnonzero(curve.kept >= least)
    if not len(enough):
        n, true = len(scores), int(right.sum())
        share = true / n if n else math.nan
        return PrecisionClaim(
            wanted,
            reached=False,
            threshold=None,
            precision=share,
            footprints=n,
            true=true,
            interval=share_interval(true, n),
        )
    good = enough[curve.precision[enough] >= wanted]
    at = int(good[-1]) if len(good) else int(enough[np.argmax(curve.precision[enough])])
    is_last = at + 1 == len(curve.thresholds)
    below = 0.0 if is_last else float(curve.thresholds[at + 1])
    top, kept, true = float(curve.thresholds[at]), int(curve.kept[at]), int(curve.true[at])
    return PrecisionClaim(
        wanted=wanted,
        reached=bool(len(good)),
        threshold=min(max(_round_number(below, top), lowest), top),
        precision=true / kept,
        footprints=kept,
        true=true,
        interval=share_interval(true, kept),
    )


def _round_number(above: float, at_most: float) -> float:
    """The number of fewest decimals, but two at least, in (above, at_most]."""
    for decimals in range(2, 16):
        rounded = math.floor(at_most * 10.0**decimals) / 10.0**decimals
        if above < rounded <= at_most:
            return rounded
    return at_most


def _logits(scores: Scores) -> Scores:
    inside = np.clip(scores, _SMALLEST_SCORE, 1 - _SMALLEST_SCORE)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def _sigmoid(logits: Scores) -> Scores:
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)))

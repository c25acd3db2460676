"""How sure a figure is: percentile intervals from groups drawn with replacement."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

_Z95 = 1.959963984540054


def group_intervals(
    count: int,
    figures_of: Callable[[npt.NDArray[np.int64]], Mapping[str, float]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % intervals of figures (Efron and Tibshirani 1993); none with fewer than two groups.

    `figures_of` gives the figures of the groups whose numbers it gets, some of them several times. Groups are
    drawn whole because what lies in one is not independent. Draws in which a figure is NaN do not count.
    """
    if count < 2:
        return {}
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(resamples):
        for name, value in figures_of(rng.integers(count, size=count)).items():
            if value == value:  # noqa: PLR0124 - not NaN
                drawn.setdefault(name, []).append(value)
    return {name: _percentiles(values) for name, values in drawn.items()}


def _percentiles(values: list[float]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def share_interval(part: int, whole: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), for counts of independent things; of nothing it is 0 to 1."""
    if not whole:
        return 0.0, 1.0
    z2 = _Z95**2
    centre = (part + z2 / 2) / (whole + z2)
    half = _Z95 / (whole + z2) * float(np.sqrt(part * (whole - part) / whole + z2 / 4))
    return max(0.0, centre - half), min(1.0, centre + half)

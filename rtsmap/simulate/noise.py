"""Numbers that look random and depend only on a seed and a place: hashes, value noise, cells.

Fields are made of additions, multiplications and square roots only, which every processor rounds
the same way; so a window rendered alone equals the same part of the whole, bit for bit.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX_A = 0xBF58476D1CE4E5B9
_MIX_B = 0x94D049BB133111EB
_NOISE_SCALE = np.float32(2.9)  # brings the spline of uniform nodes to a standard deviation near 1


def mix(number: int) -> int:
    """Splitmix64's finaliser on one Python integer."""
    x = number & _MASK
    x = ((x ^ (x >> 30)) * _MIX_A) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_B) & _MASK
    return x ^ (x >> 31)


def subseed(seed: int, *keys: int | str) -> int:
    """A seed for one part of the world, from the world's seed and the part's name or number."""
    x = mix(seed + _GAMMA)
    for key in keys:
        number = zlib.crc32(key.encode()) if isinstance(key, str) else key
        x = mix(x ^ mix(number + _GAMMA))
    return x


class Draws:
    """A stream of scalar draws for one thing, rounded so that no math library can tell."""

    def __init__(self, seed: int, *keys: int | str) -> None:
        self._state = subseed(seed, *keys)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Uniform in low..high."""
        self._state = (self._state + _GAMMA) & _MASK
        return low + (high - low) * (mix(self._state) >> 11) / float(1 << 53)

    def between(self, limits: tuple[float, float]) -> float:
        """Uniform between two limits given as a pair."""
        return self.uniform(*limits)

    def normal(self, mean: float = 0.0, sd: float = 1.0) -> float:
        """Normal, by Box and Muller."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self.uniform()))
        return round(mean + sd * radius * math.cos(2.0 * math.pi * self.uniform()), 9)

    def lognormal(self, ln_mean: float, ln_sd: float) -> float:
        """Log-normal."""
        return round(math.exp(self.normal(ln_mean, ln_sd)), 9)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """Whole number in low..high, both included."""
        return low + min(int(self.uniform() * (high - low + 1)), high - low)

    def weighted(self, weights: Sequence[float]) -> int:
        """Index drawn in proportion to the weights."""
        point = self.uniform(0.0, sum(weights))
        for index, weight in enumerate(weights):
            point -= weight
            if point < 0:
                return index
        return len(weights) - 1

    def quantile(self, knots: Sequence[tuple[float, float]]) -> float:
        """A value of the distribution whose quantiles (probability, value) are given, joined by lines."""
        point = self.uniform()
        for (p0, v0), (p1, v1) in pairwise(knots):
            if point <= p1:
                return v0 + (v1 - v0) * (point - p0) / (p1 - p0)
        return knots[-1][1]


def _mix_array(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_A)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_B)
    out: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return out


def _as_words(index: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(index, dtype=np.int64).view(np.uint64) * np.uint64(_GAMMA)


def hash_grid(seed: int, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Hash of each (row, column) of a lattice given by its two axes."""
    row_words = _mix_array(_as_words(rows) + np.uint64(seed & _MASK))
    return _mix_array(row_words[:, None] + _as_words(cols)[None, :])


def to_unit(words: npt.NDArray[np.uint64]) -> Floats:
    """Hashes as float32 in 0..1 (1 excluded)."""
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _taps(position: Doubles) -> tuple[npt.NDArray[np.int64], tuple[Floats, Floats, Floats]]:
    """First of three nodes, and weights of the quadratic B-spline, for positions in node units."""
    nearest = np.floor(position + 0.5)
    offset = (position - nearest).astype(np.float32)
    half = np.float32(0.5)
    weights = (half * (half - offset) ** 2, np.float32(0.75) - offset**2, half * (half + offset) ** 2)
    return nearest.astype(np.int64) - 1, weights


def upsample(nodes: Floats, row_at: Doubles, col_at: Doubles) -> Floats:
    """Smooth surface through (near) a lattice of nodes, at separable positions in node units.

    Positions must stay one node away from the lattice's border.
    """
    r0, rw = _taps(row_at)
    c0, cw = _taps(col_at)
    tall = rw[0][:, None] * nodes[r0] + rw[1][:, None] * nodes[r0 + 1] + rw[2][:, None] * nodes[r0 + 2]
    out: Floats = cw[0] * tall[:, c0] + cw[1] * tall[:, c0 + 1] + cw[2] * tall[:, c0 + 2]
    return out


def octave(seed: int, rows: Doubles, cols: Doubles, cell: float) -> Floats:
    """Value noise with mean 0 and standard deviation near 1, on the lattice rows x cols.

    `rows`, `cols` and `cell` share a unit (scene pixels); features are about `cell` wide.
    """
    row_at, col_at = rows / cell, cols / cell
    r0 = int(np.floor(row_at[0] + 0.5)) - 1
    c0 = int(np.floor(col_at[0] + 0.5)) - 1
    row_index = np.arange(r0, int(np.floor(row_at[-1] + 0.5)) + 2)
    col_index = np.arange(c0, int(np.floor(col_at[-1] + 0.5)) + 2)
    nodes = (to_unit(hash_grid(seed, row_index, col_index)) * 2 - 1) * _NOISE_SCALE
    # taps come from absolute positions: taking r0 off first would round differently per window
    (first_row, rw), (first_col, cw) = _taps(row_at), _taps(col_at)
    ri, ci = first_row - r0, first_col - c0
    tall = rw[0][:, None] * nodes[ri] + rw[1][:, None] * nodes[ri + 1] + rw[2][:, None] * nodes[ri + 2]
    out: Floats = cw[0] * tall[:, ci] + cw[1] * tall[:, ci + 1] + cw[2] * tall[:, ci + 2]
    return out


def octaves(seed: int, rows: Doubles, cols: Doubles, parts: Sequence[tuple[float, float]]) -> Floats:
    """Sum of octaves given as (cell, amplitude)."""
    total = np.zeros((len(rows), len(cols)), np.float32)
    for number, (cell, amplitude) in enumerate(parts):
        total += np.float32(amplitude) * octave(subseed(seed, number), rows, cols, cell)
    return total


def noise_at(seed: int, a: Floats | Doubles, b: Floats | Doubles) -> Floats:
    """Value noise (standard deviation near 1) at any points, in units of its cell. For small areas."""
    ia, wa = _taps(np.asarray(a, np.float64))
    ib, wb = _taps(np.asarray(b, np.float64))
    a0, b0 = int(ia.min()), int(ib.min())
    index_a, index_b = np.arange(a0, int(ia.max()) + 3), np.arange(b0, int(ib.max()) + 3)
    nodes = (to_unit(hash_grid(seed, index_a, index_b)) * 2 - 1) * _NOISE_SCALE
    width = len(index_b)
    flat, first = nodes.ravel(), (ia - a0) * width + (ib - b0)
    total = np.zeros(first.shape, np.float32)
    for i in range(3):
        row = wb[0] * flat[first + i * width]
        row += wb[1] * flat[first + (i * width + 1)]
        row += wb[2] * flat[first + (i * width + 2)]
        total += wa[i] * row
    return total


def cells(seed: int, rows: Doubles, cols: Doubles, cell: float) -> Floats:
    """Distance to the border of irregular cells, in cells: 0 on borders, near 1 in the middle."""
    row_at, col_at = (rows / cell).astype(np.float32), (cols / cell).astype(np.float32)
    ri, ci = np.floor(rows / cell).astype(np.int64), np.floor(cols / cell).astype(np.int64)
    row_index = np.arange(ri[0] - 1, ri[-1] + 2)
    col_index = np.arange(ci[0] - 1, ci[-1] + 2)
    words = hash_grid(seed, row_index, col_index)
    row_seed = to_unit(words) + row_index[:, None].astype(np.float32)
    col_seed = to_unit(words << np.uint64(24)) + col_index[None, :].astype(np.float32)
    nearest: Floats = np.full((len(rows), len(cols)), np.float32(9.0))
    second: Floats = nearest.copy()
    for i in range(3):
        for j in range(3):
            at = np.ix_(ri - row_index[0] - 1 + i, ci - col_index[0] - 1 + j)
            distance = (row_seed[at] - row_at[:, None]) ** 2 + (col_seed[at] - col_at[None, :]) ** 2
            second = np.minimum(second, np.maximum(nearest, distance))
            nearest = np.minimum(nearest, distance)
    gap: Floats = np.sqrt(second) - np.sqrt(nearest)
    return gap


def smoothstep(value: Floats | Doubles) -> Floats:
    """0 below 0, 1 above 1, and a smooth rise between."""
    x = np.clip(np.asarray(value, np.float32), np.float32(0), np.float32(1))
    return x * x * (np.float32(3) - np.float32(2) * x)

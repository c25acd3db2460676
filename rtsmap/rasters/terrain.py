"""Relief from elevation: gradients, slope, shading, height against the surroundings. Pure numpy."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, cos, radians, sin, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

RADIUS_M = 100.0
"""Radius within which relative elevation takes its mean."""

BUFFER_M = RADIUS_M * sqrt(2)
"""Elevation needed around a block, so that its terrain does not depend on where the block ends."""


def gradients(
    elevation: npt.ArrayLike, valid: Bools, pixel_size_m: tuple[float, float]
) -> tuple[Floats, Floats]:
    """Rise over run (dz_dx to the right, dz_dy towards the top) after Horn (1981); NaN where unknown.

    `pixel_size_m` is (height, width). Beside invalid pixels and at the edge of the array one-sided
    differences stand in and missing ones drop out of Horn's mean, so that a plane has its exact gradient
    wherever there is one.
    """
    z = np.where(valid, np.asarray(elevation, np.float64), 0.0)
    height_m, width_m = pixel_size_m
    dz_dx = _horn(z, valid) / width_m
    dz_dy = -_horn(z.T, valid.T).T / height_m
    return dz_dx, dz_dy


def slope_degrees(dz_dx: npt.ArrayLike, dz_dy: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Steepest slope, 0..90 degrees."""
    dx, dy = np.asarray(dz_dx), np.asarray(dz_dy)
    return np.asarray(np.degrees(np.arctan(np.sqrt(dx * dx + dy * dy))), np.float32)


def shaded_relief(
    dz_dx: npt.ArrayLike,
    dz_dy: npt.ArrayLike,
    azimuth_degrees: float = 315.0,
    altitude_degrees: float = 45.0,
) -> npt.NDArray[np.float32]:
    """Lambertian shading, 0..255: 255 faces the sun, flat ground is 255 sin(altitude), 180 by default.

    `azimuth_degrees` is clockwise from the top of the grid, where the light comes from.
    """
    dx, dy = np.asarray(dz_dx), np.asarray(dz_dy)
    azimuth, altitude = radians(azimuth_degrees), radians(altitude_degrees)
    towards_sun = dx * sin(azimuth) + dy * cos(azimuth)
    cosine = (sin(altitude) - cos(altitude) * towards_sun) / np.sqrt(1 + dx * dx + dy * dy)
    return np.asarray(255 * np.maximum(cosine, 0), np.float32)


def relative_elevation(
    elevation: npt.ArrayLike,
    valid: Bools,
    pixel_size_m: tuple[float, float],
    radius_m: float = RADIUS_M,
) -> tuple[npt.NDArray[np.float32], Bools]:
    """Elevation minus the mean of the valid pixels within `radius_m`; (values, valid).

    `pixel_size_m` is (height, width). A pixel is valid where its elevation is; invalid pixels hold 0.
    """
    if not valid.any():
        return np.zeros(valid.shape, np.float32), valid.copy()
    z = np.asarray(elevation, np.float64)
    # Centred values keep the sums of the transform small; any constant cancels.
    centre = float(np.round(z[valid].mean()))
    z = np.where(valid, z - centre, 0.0)
    total = _sums_nearby(z, pixel_size_m, radius_m)
    if valid.all():
        count = _counts_nearby(valid.shape, pixel_size_m, radius_m)
    else:
        count = np.rint(_sums_nearby(valid.astype(np.float64), pixel_size_m, radius_m))
    total /= np.maximum(count, 1)
    return np.where(valid, z - total, 0.0).astype(np.float32), valid.copy()


def _sums_nearby(values: Floats, pixel_size_m: tuple[float, float], radius_m: float) -> Floats:
    """At each pixel the sum of those within the radius."""
    height, width = values.shape
    far = _reach(pixel_size_m, radius_m)
    reach = min(far[0], height), min(far[1], width)
    shape = tuple(fft.next_fast_len(n + px + 1, real=True) for n, px in zip(values.shape, reach, strict=True))
    spectrum = fft.rfft2(values, shape)
    spectrum *= _disc_spectrum(pixel_size_m, radius_m, reach, shape)
    sums: Floats = fft.irfft2(spectrum, shape)[:height, :width]
    return sums


@lru_cache(maxsize=4)
def _disc_spectrum(
    pixel_size_m: tuple[float, float], radius_m: float, reach: tuple[int, int], shape: tuple[int, ...]
) -> Any:
    """The transform of the disc, as far as `reach`, around the first pixel of an array that wraps around."""
    far = _reach(pixel_size_m, radius_m)
    rows, cols = (slice(most - px, most + px + 1) for most, px in zip(far, reach, strict=True))
    disc = _disc(pixel_size_m, radius_m)[rows, cols]
    around = np.zeros(shape)
    around[: disc.shape[0], : disc.shape[1]] = disc
    return fft.rfft2(np.roll(around, (-reach[0], -reach[1]), (0, 1)))


def _counts_nearby(shape: tuple[int, ...], pixel_size_m: tuple[float, float], radius_m: float) -> Floats:
    """At each pixel of a whole array how many lie within the radius: those of a small one, drawn out."""
    reach = _reach(pixel_size_m, radius_m)
    small = np.ones([min(size, 2 * px + 1) for size, px in zip(shape, reach, strict=True)])
    counts = np.rint(_sums_nearby(small, pixel_size_m, radius_m))
    for axis, (size, px) in enumerate(zip(shape, reach, strict=True)):
        place = np.arange(size)
        far = np.maximum(np.minimum(place, px), place - size + counts.shape[axis])
        counts = np.take(counts, far, axis)
    return counts


def _horn(z: Floats, valid: Bools) -> Floats:
    """Difference per pixel along axis 1, averaged 1-2-1 over the rows above and below."""
    if min(z.shape) < 2:
        return _horn_with_gaps(z, valid)
    total = _horn_everywhere(z)
    if not valid.all():
        near, here, inner = _around_gaps(valid)
        total[here] = _horn_with_gaps(z[near], valid[near])[inner]
    return total


_Box = tuple[slice, slice]


def _around_gaps(valid: Bools) -> tuple[_Box, _Box, _Box]:
    """What Horn's mean sees of gaps, where gaps change it, and the latter within the former."""
    spans = []
    for axis in (0, 1):
        with_gaps = np.flatnonzero(~valid.all(axis=1 - axis))
        first, last, size = int(with_gaps[0]), int(with_gaps[-1]) + 1, valid.shape[axis]
        start, end = max(first - 3, 0), min(last + 3, size)
        first, last = max(first - 2, 0), min(last + 2, size)
        spans.append((slice(start, end), slice(first, last), slice(first - start, last - start)))
    (a, b, c), (d, e, f) = spans
    return (a, d), (b, e), (c, f)


def _horn_with_gaps(z: Floats, valid: Bools) -> Floats:
    difference, known = _differences(z, valid)
    padded = np.pad(np.where(known, difference, 0.0), ((1, 1), (0, 0)))
    weights = np.pad(known.astype(np.float64), ((1, 1), (0, 0)))
    total = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    weight = weights[:-2] + 2 * weights[1:-1] + weights[2:]
    usable = valid & (weight > 0)
    return np.where(usable, total / np.where(usable, weight, 1.0), np.nan)


def _horn_everywhere(z: Floats) -> Floats:
    """`_horn` where nothing is missing: a few sums instead of many questions."""
    difference = np.empty_like(z)
    np.subtract(z[:, 2:], z[:, :-2], out=difference[:, 1:-1])
    difference[:, 1:-1] /= 2
    difference[:, 0], difference[:, -1] = z[:, 1] - z[:, 0], z[:, -1] - z[:, -2]
    total = 2 * difference
    total[1:] += difference[:-1]
    total[:-1] += difference[1:]
    total[1:-1] /= 4
    total[[0, -1]] /= 3
    return total


def _differences(z: Floats, valid: Bools) -> tuple[Floats, Bools]:
    padded, ok = np.pad(z, ((0, 0), (1, 1))), np.pad(valid, ((0, 0), (1, 1)))
    left, right = padded[:, :-2], padded[:, 2:]
    has_left, has_right = ok[:, :-2], ok[:, 2:]
    difference = np.where(has_left & has_right, (right - left) / 2, np.where(has_right, right - z, z - left))
    known = (has_left & has_right) | (valid & (has_left | has_right))
    return difference, known


def _reach(pixel_size_m: tuple[float, float], radius_m: float) -> tuple[int, int]:
    """Rows and columns that the radius reaches."""
    height_m, width_m = pixel_size_m
    return ceil(radius_m / height_m), ceil(radius_m / width_m)


def _disc(pixel_size_m: tuple[float, float], radius_m: float) -> Floats:
    height_m, width_m = pixel_size_m
    rows, cols = _reach(pixel_size_m, radius_m)
    y, x = np.mgrid[-rows : rows + 1, -cols : cols + 1]
    inside = (y * height_m) ** 2 + (x * width_m) ** 2 <= radius_m**2 * (1 + 1e-9)
    return np.asarray(inside, np.float64)

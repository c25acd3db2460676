"""Relief from elevation: gradients, slope, shading, height against the surroundings. Pure numpy."""

from __future__ import annotations

from math import ceil, cos, radians, sin, sqrt

import numpy as np
import numpy.typing as npt
from scipy.signal import oaconvolve

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
    return np.asarray(np.degrees(np.arctan(np.hypot(dz_dx, dz_dy))), np.float32)


def shaded_relief(
    dz_dx: npt.ArrayLike,
    dz_dy: npt.ArrayLike,
    azimuth_degrees: float = 315.0,
    altitude_degrees: float = 45.0,
) -> npt.NDArray[np.float32]:
    """Lambertian shading, 0..255: 255 faces the sun, flat ground is 255 sin(altitude), 180 by default.

    `azimuth_degrees` is clockwise from the top of the grid, where the light comes from.
    """
    dx, dy = np.asarray(dz_dx, np.float64), np.asarray(dz_dy, np.float64)
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
    disc = _disc(pixel_size_m, radius_m)
    total = oaconvolve(z, disc, mode="same")
    count = np.rint(oaconvolve(valid.astype(np.float64), disc, mode="same"))
    values = np.where(valid, z - total / np.maximum(count, 1), 0.0)
    return values.astype(np.float32), valid.copy()


def _horn(z: Floats, valid: Bools) -> Floats:
    """Difference per pixel along axis 1, averaged 1-2-1 over the rows above and below."""
    difference, known = _differences(z, valid)
    padded = np.pad(np.where(known, difference, 0.0), ((1, 1), (0, 0)))
    weights = np.pad(known.astype(np.float64), ((1, 1), (0, 0)))
    total = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    weight = weights[:-2] + 2 * weights[1:-1] + weights[2:]
    usable = valid & (weight > 0)
    return np.where(usable, total / np.where(usable, weight, 1.0), np.nan)


def _differences(z: Floats, valid: Bools) -> tuple[Floats, Bools]:
    padded, ok = np.pad(z, ((0, 0), (1, 1))), np.pad(valid, ((0, 0), (1, 1)))
    left, right = padded[:, :-2], padded[:, 2:]
    has_left, has_right = ok[:, :-2], ok[:, 2:]
    difference = np.where(has_left & has_right, (right - left) / 2, np.where(has_right, right - z, z - left))
    known = (has_left & has_right) | (valid & (has_left | has_right))
    return difference, known


def _disc(pixel_size_m: tuple[float, float], radius_m: float) -> Floats:
    height_m, width_m = pixel_size_m
    rows, cols = (ceil(radius_m / size) for size in (height_m, width_m))
    y, x = np.mgrid[-rows : rows + 1, -cols : cols + 1]
    inside = (y * height_m) ** 2 + (x * width_m) ** 2 <= radius_m**2 * (1 + 1e-9)
    return np.asarray(inside, np.float64)

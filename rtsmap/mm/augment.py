"""Augmentation that stays physical: what turns the picture turns the gradients, and the sun stays put."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rtsmap.errors import OptionsError
from rtsmap.mm.packs import Spectral, Terrain, TrainingImage
from rtsmap.rasters.chips import Layer
from rtsmap.rasters.terrain import gradients

_INDICES = ("ndvi", "ndwi")
_RIM_PX = 2
"""The ground of a slump reaches so far beyond its outline: headwalls are not drawn to the pixel."""
_AROUND_PX = 8
"""Ground so far around a slump says which slope was there before."""
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AugmentOptions:
    """Strengths: standard deviations of log-gains, DN offsets and metres; shares are probabilities.

    `dem_older_share` of the slumps are younger than the elevation model, which shows the slope of before.
    `index_sd` is that of the offset of NDVI and NDWI, whose images are of other days than the rest.
    `dem_shift_sd_m` is how far terrain lies beside the imagery and its labels, down and across: real scenes
    and elevation are laid on different models of the ground. Imagery goes missing only where terrain is left
    to look at.
    """

    gain_sd: float = 0.15
    channel_sd: float = 0.05
    offset_sd_dn: float = 8.0
    gamma_sd: float = 0.15
    haze_share: float = 0.15
    blur_share: float = 0.15
    noise_dn: float = 3.0
    grey_share: float = 0.03
    dem_noise_m: float = 0.15
    dem_missing_share: float = 0.15
    dem_smooth_share: float = 0.15
    dem_shift_sd_m: float = 0.0
    dem_older_share: float = 0.0
    optical_missing_share: float = 0.0
    index_sd: float = 0.03
    spectral_missing_share: float = 0.15

    def __post_init__(self) -> None:
        wrong = []
        for field in fields(self):
            value, most = getattr(self, field.name), 1.0 if field.name.endswith("_share") else math.inf
            if not 0 <= value <= most or value == math.inf:
                wrong.append(f"{field.name}={value}")
        if wrong:
            raise OptionsError(f"strengths must not be negative, shares within 0..1; got {', '.join(wrong)}")


def turn(image: TrainingImage, quarter_turns: int, mirror: bool) -> TrainingImage:  # noqa: FBT001
    """Mirror left to right (if asked), then turn counter-clockwise; gradients follow as vectors."""

    def pixels(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        flipped = array[..., ::-1] if mirror else array
        return np.ascontiguousarray(np.rot90(flipped, quarter_turns, axes=(-2, -1)))

    terrain = image.terrain
    if terrain is not None:
        gradient = None
        if terrain.gradient is not None:
            right, up = pixels(terrain.gradient).astype(np.float32)
            if mirror:
                right = -right
            for _ in range(quarter_turns % 4):
                right, up = -up, right
            gradient = np.stack([right, up])
        terrain = Terrain(
            gradient,
            pixels(terrain.relative_elevation).astype(np.float32),
            pixels(terrain.valid).astype(bool),
        )
    spectral = image.spectral
    if spectral is not None:
        turned = pixels(spectral.pixels).astype(np.float32)
        spectral = Spectral(spectral.names, turned, pixels(spectral.valid).astype(bool))
    return replace(
        image,
        optical=pixels(image.optical).astype(np.uint8),
        optical_valid=pixels(image.optical_valid).astype(bool),
        labels=pixels(image.labels).astype(np.int16),
        terrain=terrain,
        kinds=None if image.kinds is None else pixels(image.kinds).astype(np.uint8),
        spectral=spectral,
    )


def disturb_colour(
    optical: npt.NDArray[np.uint8],
    valid: npt.NDArray[np.bool_],
    options: AugmentOptions,
    rng: np.random.Generator,
) -> FloatArray:
    """Another illumination, haze, focus and sensor: (3, H, W) DN, float32 within 0..255.

    Out of focus each pixel is a mean of those around it that are `valid` (H, W), True = data.
    """
    out = optical.astype(np.float32)
    if rng.random() < options.grey_share:
        out = np.repeat(out.mean(axis=0, keepdims=True), 3, axis=0)
    gain = np.exp(rng.normal(0, options.gain_sd) + rng.normal(0, options.channel_sd, (3, 1, 1)))
    offset = rng.normal(0, options.offset_sd_dn) + rng.normal(0, options.offset_sd_dn / 3, (3, 1, 1))
    gamma = float(np.exp(rng.normal(0, options.gamma_sd)))
    out = 255.0 * (np.clip(out * gain + offset, 0, 255) / 255.0) ** gamma
    if rng.random() < options.haze_share:
        veil = rng.uniform(0.1, 0.45)
        out = (1 - veil) * out + veil * rng.uniform(140, 220)
    if rng.random() < options.blur_share:
        out = _of_valid(partial(ndimage.gaussian_filter, sigma=rng.uniform(0.4, 1.2)), out, valid)
    noise = rng.normal(0, rng.uniform(0, options.noise_dn), out.shape)
    return np.asarray(np.clip(out + noise, 0, 255), np.float32)


def disturb_terrain(
    terrain: Terrain, options: AugmentOptions, resolution_m: float, rng: np.random.Generator
) -> Terrain:
    """A noisier, smoother or missing elevation model."""
    if rng.random() < options.dem_missing_share:
        return replace(terrain, valid=np.zeros_like(terrain.valid))
    gradient, relative = terrain.gradient, terrain.relative_elevation
    if rng.random() < options.dem_smooth_share:
        smooth = partial(ndimage.gaussian_filter, sigma=float(rng.uniform(0.5, 2.0)))
        if gradient is not None:
            gradient = _of_valid(smooth, gradient, terrain.valid)
        relative = _of_valid(smooth, relative[None], terrain.valid)[0]
    height, width = relative.shape
    bumps = rng.normal(0, 1, (height + 2, width + 2)).astype(np.float32)
    bumps = ndimage.gaussian_filter(bumps, 1.0) * (3.5 * options.dem_noise_m * rng.random())
    right = (bumps[1:-1, 2:] - bumps[1:-1, :-2]) / (2 * resolution_m)
    up = (bumps[:-2, 1:-1] - bumps[2:, 1:-1]) / (2 * resolution_m)
    return replace(
        terrain,
        gradient=None if gradient is None else (gradient + np.stack([right, up])).astype(np.float32),
        relative_elevation=(relative + bumps[1:-1, 1:-1]).astype(np.float32),
    )


def without_slumps(
    terrain: Terrain,
    labels: npt.NDArray[np.int16],
    share: float,
    resolution_m: float,
    rng: np.random.Generator,
) -> Terrain:
    """An elevation model older than a share of the slumps: the slope around each goes on across it."""
    numbers = np.unique(labels[labels > 0])
    young = np.isin(labels, numbers[rng.random(len(numbers)) < share])
    young = ndimage.binary_dilation(young, iterations=_RIM_PX)
    before = terrain.relative_elevation
    after = before.copy()
    pieces = ndimage.label(young)[0]
    for number, (rows, cols) in enumerate(ndimage.find_objects(pieces), start=1):
        around = tuple(slice(max(0, one.start - _AROUND_PX), one.stop + _AROUND_PX) for one in (rows, cols))
        filled = _bridged(before[around], young[around], terrain.valid[around])
        after[around] = np.where(pieces[around] == number, filled, after[around])
    gradient = terrain.gradient
    if gradient is not None and (after != before).any():
        # the mean that heights are relative to is left as it is, so that both change alike
        risen = np.stack(gradients(after - before, terrain.valid, (resolution_m, resolution_m)))
        gradient = (gradient + np.nan_to_num(risen)).astype(np.float32)
    return replace(terrain, gradient=gradient, relative_elevation=after)


def _bridged(heights: FloatArray, free: npt.NDArray[np.bool_], valid: npt.NDArray[np.bool_]) -> FloatArray:
    """Heights whose `free` pixels are those of the plane of the other ground, bent to meet it at their rim.

    The bending is that of a membrane. Where no ground is left to hold on to, heights stay as they are.
    """
    from scipy.sparse import coo_array, diags_array
    from scipy.sparse.linalg import spsolve

    pieces = ndimage.label(valid)[0]
    free = free & np.isin(pieces, pieces[valid & ~free]) & valid
    if not free.any():
        return heights
    rows, cols = np.indices(heights.shape).reshape(2, -1)
    places = np.stack([rows, cols, np.ones_like(rows)], axis=1)
    ground = (valid & ~free).ravel()
    plane = places @ np.linalg.lstsq(places[ground], heights.ravel()[ground], rcond=None)[0]
    number = np.arange(heights.size).reshape(heights.shape)
    beside = [(number[:, :-1], number[:, 1:]), (number[:-1], number[1:])]
    one, other = (np.concatenate([pair[side].ravel() for pair in beside]) for side in (0, 1))
    both = valid.ravel()[one] & valid.ravel()[other]
    ends = np.concatenate([one[both], other[both]]), np.concatenate([other[both], one[both]])
    meet = coo_array((np.ones(len(ends[0])), ends), (heights.size,) * 2).tocsr()
    spread = diags_array(meet.sum(axis=1)).tocsr() - meet
    of, held = np.flatnonzero(free), np.flatnonzero(~free)
    # each free pixel is the mean of its neighbours, as far as it is off the plane
    off = spsolve(spread[of][:, of].tocsc(), meet[of][:, held] @ (heights.ravel() - plane)[held])
    out = heights.copy()
    out[free] = plane[of] + off
    return out


def displace(layer: Layer, rows: int, cols: int) -> Layer:
    """The layer moved down and to the right by whole pixels; what it leaves is no data."""
    move = partial(ndimage.shift, order=0)
    return Layer(move(layer.pixels, (0, rows, cols)), move(layer.valid, (rows, cols)))


def _of_valid(
    mean: Callable[[FloatArray], FloatArray], bands: FloatArray, valid: npt.NDArray[np.bool_]
) -> FloatArray:
    """Weighted means of bands (C, H, W), a band at a time, over their valid pixels alone; 0 far from any."""
    weight = mean(valid.astype(np.float32))
    sums = np.stack([mean(band) for band in np.where(valid, bands, np.float32(0))])
    return np.asarray(np.divide(sums, weight, out=np.zeros_like(sums), where=weight > 0), np.float32)


def disturb_spectral(spectral: Spectral, options: AugmentOptions, rng: np.random.Generator) -> Spectral:
    """Infrared and indices of another day, or missing; infrared brightens, indices shift."""
    if rng.random() < options.spectral_missing_share:
        return replace(spectral, valid=np.zeros_like(spectral.valid))
    bands = []
    for name, band in zip(spectral.names, spectral.pixels, strict=True):
        drawn = rng.normal()
        if name in _INDICES:
            bands.append(np.clip(band + options.index_sd * drawn, -1, 1))
        else:
            bands.append(np.clip(band * np.exp(options.gain_sd * drawn), 0, 255))
    return replace(spectral, pixels=np.stack(bands).astype(np.float32))


def zoom(image: TrainingImage, shape: tuple[int, int]) -> TrainingImage:
    """Resample to (rows, columns): bilinear between valid pixels, nearest for labels and validity.

    Slopes are left as they are, and heights grow with the ground: the zoom stands for slumps of other sizes,
    not for another scale of the map.
    """
    if image.labels.shape == shape:
        return image
    rows = _sample_points(image.labels.shape[0], shape[0])
    cols = _sample_points(image.labels.shape[1], shape[1])
    factor = math.sqrt(math.prod(shape) / image.labels.size)

    def nearest(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return np.asarray(array[np.rint(rows).astype(int)][:, np.rint(cols).astype(int)])

    def between(bands: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> FloatArray:
        return _of_valid(partial(_bilinear, rows=rows, cols=cols), bands.astype(np.float32), valid)

    terrain = image.terrain
    if terrain is not None:
        gradient = None if terrain.gradient is None else between(terrain.gradient, terrain.valid)
        heights = factor * between(terrain.relative_elevation[None], terrain.valid)[0]
        terrain = Terrain(gradient, heights, nearest(terrain.valid).astype(bool))
    spectral = image.spectral
    if spectral is not None:
        others = between(spectral.pixels, spectral.valid)
        spectral = Spectral(spectral.names, others, nearest(spectral.valid).astype(bool))
    return replace(
        image,
        optical=np.rint(between(image.optical, image.optical_valid)).astype(np.uint8),
        optical_valid=nearest(image.optical_valid).astype(bool),
        labels=nearest(image.labels).astype(np.int16),
        terrain=terrain,
        kinds=None if image.kinds is None else nearest(image.kinds).astype(np.uint8),
        spectral=spectral,
    )


def _sample_points(size: int, wanted: int) -> npt.NDArray[np.float64]:
    centres = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    return np.clip(centres, 0, size - 1)


def _bilinear(band: FloatArray, rows: npt.NDArray[np.float64], cols: npt.NDArray[np.float64]) -> FloatArray:
    top, left = np.floor(rows).astype(int), np.floor(cols).astype(int)
    bottom, right = np.minimum(top + 1, band.shape[0] - 1), np.minimum(left + 1, band.shape[1] - 1)
    down, across = (rows - top)[:, None].astype(np.float32), (cols - left)[None].astype(np.float32)
    upper = band[top][:, left] * (1 - across) + band[top][:, right] * across
    lower = band[bottom][:, left] * (1 - across) + band[bottom][:, right] * across
    return np.asarray(upper * (1 - down) + lower * down, np.float32)

"""Training samples: random, augmented chips cut from packs, reproducible from (seed, number)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from rtsmap.errors import InputError, OptionsError
from rtsmap.mm.augment import (
    AugmentOptions,
    displace,
    disturb_colour,
    disturb_spectral,
    disturb_terrain,
    turn,
    without_slumps,
    zoom,
)
from rtsmap.mm.packs import UNKNOWN_KIND, PackedImage, Spectral, Terrain, TrainingImage
from rtsmap.rasters.bands import OPTICAL_RGB, InputSpec
from rtsmap.rasters.chips import Layer
from rtsmap.rasters.terrain import shaded_relief, slope_degrees
from rtsmap.rasters.tiling import Window


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """How chips are drawn.

    `hard_negative_share` of them lie near places that a reviewer has rejected, where a group has such
    places; `negative_share` show no slump, where images of the group have room for that. Of the rest
    `slump_share` are centred near a slump, the others lie anywhere. Of the draws from images
    of natural colour alone, `collage_share` show two of them side by side, with a strip of no data between.
    Every chip is mirrored by chance, and with `quarter_turns` also turned by 0 to 3 of them.
    What a border leaves of a slump counts when it has `min_px` pixels or more; less is ignored.
    """

    chip_px: int = 256
    slump_share: float = 0.6
    zoom_sd: float = 0.2
    collage_share: float = 0.0
    min_px: int = 24
    hard_negative_share: float = 0.0
    negative_share: float = 0.0
    quarter_turns: bool = True
    augment: AugmentOptions = field(default_factory=AugmentOptions)

    def __post_init__(self) -> None:
        names = ("slump_share", "collage_share", "hard_negative_share", "negative_share")
        wrong = [f"{name}={getattr(self, name)}" for name in names if not 0 <= getattr(self, name) <= 1]
        if self.chip_px < 32:
            wrong.append(f"chip_px={self.chip_px}")
        if not 0 <= self.zoom_sd < math.inf:
            wrong.append(f"zoom_sd={self.zoom_sd}")
        if wrong or self.hard_negative_share + self.negative_share > 1:
            raise OptionsError(
                "wanted chip_px >= 32, zoom_sd >= 0, shares within 0..1, and those of negatives together at "
                f"most 1; got {', '.join(wrong) or f'{self.hard_negative_share} + {self.negative_share}'}"
            )


@dataclass(frozen=True, slots=True)
class Sample:
    """One chip with its slumps.

    `layers` as in a Chip; `boxes` (n, 4) float32 x0, y0, x1, y1 in pixels; `masks` (n, H, W) bool,
    True = slump; `ignored` (H, W) bool, True = ground on which the network is not judged; `kinds` (H, W)
    uint8 as in packs.
    """

    name: str
    layers: dict[str, Layer]
    boxes: npt.NDArray[np.float32]
    masks: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    kinds: npt.NDArray[np.uint8]


_TRIES = 20
_IMAGES_TRIED = 8
MAX_GAP_PX = 16
"""Widest strip of no data between the two images of a collage."""


class SampleSource:
    """Draws samples from groups of images; each group has a share of the draws.

    Raises InputError when a group is empty.
    """

    def __init__(
        self,
        groups: Sequence[tuple[float, Sequence[PackedImage]]],
        spec: InputSpec,
        options: SampleOptions,
        seed: int,
    ) -> None:
        if not groups or any(not images for _, images in groups):
            raise InputError("every group of training images needs at least one image")
        self.spec, self.options, self.seed = spec, options, seed
        shares = np.array([share for share, _ in groups], dtype=float)
        self._shares = shares / shares.sum()
        self._groups = [_Choice(images) for _, images in groups]
        self._plain = [_Choice([image for image in images if _is_plain(image)]) for _, images in groups]
        self._hard = [[image for image in images if image.hard] for _, images in groups]

    def draw(self, number: int) -> Sample:
        """The sample of this number: always the same for the same seed."""
        rng = np.random.default_rng([self.seed, number])
        group = int(rng.choice(len(self._groups), p=self._shares))
        part = self._negative(group, rng) or self._any(group, rng)
        # always drawn, so that the other draws do not depend on it
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        part = turn(part, turns * self.options.quarter_turns, mirrored)
        return make_sample(part, self.spec, self.options, rng)

    def _negative(self, group: int, rng: np.random.Generator) -> TrainingImage | None:
        """A chip on rejected ground or without slumps, as often as wanted; None for all others."""
        hard_share = self.options.hard_negative_share if self._hard[group] else 0.0
        # nothing is drawn where nothing is wanted, so that the other draws are those of before
        if not hard_share + self.options.negative_share:
            return None
        shape, drawn = (self.options.chip_px,) * 2, rng.random()
        if drawn < hard_share:
            image = self._hard[group][int(rng.integers(len(self._hard[group])))]
            place = image.hard[int(rng.integers(len(image.hard)))]
            return self._cut(image, shape, rng, near=place)
        if drawn < hard_share + self.options.negative_share:
            return self._empty(group, shape, rng)
        return None

    def _empty(self, group: int, shape: tuple[int, int], rng: np.random.Generator) -> TrainingImage:
        """A chip without slumps; of all that were tried the one with the fewest where none was found."""
        least: tuple[int, Callable[[], TrainingImage]] | None = None
        for _ in range(_IMAGES_TRIED):
            image, factor = self._groups[group].draw(rng), self._factor(rng)
            window = _place_aside(image, _unzoomed(shape, factor), rng)
            shown = _slumps_in(image, window)
            if least is None or shown < least[0]:
                least = shown, partial(_read_zoomed, image, window, shape, factor)
            if not shown:
                break
        assert least is not None  # noqa: S101 - at least one image was tried
        return least[1]()

    def _any(self, group: int, rng: np.random.Generator) -> TrainingImage:
        image, side = self._groups[group].draw(rng), self.options.chip_px
        # short-circuits, so that without collages the draws are those of before
        share = self.options.collage_share
        if share and _is_plain(image) and rng.random() < share:
            first_px = int(rng.uniform(0.3, 0.7) * side)
            left = self._cut(image, (side, first_px), rng)
            right = self._cut(self._plain[group].draw(rng), (side, side - first_px), rng)
            return collage(left, right, side, gap_px=int(rng.integers(0, MAX_GAP_PX + 1)))
        return self._cut(image, (side, side), rng)

    def _cut(
        self,
        image: PackedImage,
        shape: tuple[int, int],
        rng: np.random.Generator,
        *,
        near: Window | None = None,
    ) -> TrainingImage:
        """A part of the image of at most this shape, zoomed: `near` a place where one is given."""
        factor = self._factor(rng)
        size = _unzoomed(shape, factor)
        window = self._place(image, size, rng) if near is None else _place_near(image, near, size, rng)
        return _read_zoomed(image, window, shape, factor)

    def _factor(self, rng: np.random.Generator) -> float:
        return float(np.clip(np.exp(rng.normal(0, self.options.zoom_sd)), 0.5, 2.0))

    def _place(self, image: PackedImage, shape: tuple[int, int], rng: np.random.Generator) -> Window:
        if image.slumps and rng.random() < self.options.slump_share:
            slump = image.slumps[int(rng.integers(len(image.slumps)))][1]
            return _place_near(image, slump, shape, rng)
        return _place_anywhere(image, shape, rng)


def _unzoomed(shape: tuple[int, int], factor: float) -> tuple[int, int]:
    return round(shape[0] / factor), round(shape[1] / factor)


def _read_zoomed(image: PackedImage, window: Window, shape: tuple[int, int], factor: float) -> TrainingImage:
    """The part of an image under a window, enlarged by a factor to at most this shape."""
    rows, cols = (min(most, round(n * factor)) for most, n in zip(shape, window.shape, strict=True))
    return zoom(image.read(window), (rows, cols))


def _place_near(
    image: PackedImage, place: Window, shape: tuple[int, int], rng: np.random.Generator
) -> Window:
    """A window that shows a random point of the place somewhere in its middle."""
    row = int(rng.integers(place.row0, place.row1) - rng.uniform(0.15, 0.85) * shape[0])
    col = int(rng.integers(place.col0, place.col1) - rng.uniform(0.15, 0.85) * shape[1])
    return _inside(image, row, col, shape)


def _place_anywhere(image: PackedImage, shape: tuple[int, int], rng: np.random.Generator) -> Window:
    (rows, cols), (height, width) = shape, image.shape
    row = int(rng.integers(0, max(1, height - rows + 1)))
    return _inside(image, row, int(rng.integers(0, max(1, width - cols + 1))), shape)


def _place_aside(image: PackedImage, shape: tuple[int, int], rng: np.random.Generator) -> Window:
    """Anywhere without a slump; where none is found, the window with the fewest."""
    tried = [_place_anywhere(image, shape, rng) for _ in range(_TRIES)]
    return min(tried, key=lambda window: _slumps_in(image, window))


def _slumps_in(image: PackedImage, window: Window) -> int:
    return sum(window.meets(slump) for _, slump in image.slumps)


def _inside(image: PackedImage, row: int, col: int, shape: tuple[int, int]) -> Window:
    (rows, cols), (height, width) = shape, image.shape
    row0 = int(np.clip(row, 0, max(0, height - rows)))
    col0 = int(np.clip(col, 0, max(0, width - cols)))
    return Window(row0, col0, min(height, row0 + rows), min(width, col0 + cols))


def collage(left: TrainingImage, right: TrainingImage, side_px: int, *, gap_px: int) -> TrainingImage:
    """Two images without terrain on one square, the right one at its right edge, no data elsewhere.

    The left one gives way to a strip of `gap_px` columns without data.
    """
    optical = np.zeros((3, side_px, side_px), np.uint8)
    valid = np.zeros((side_px, side_px), np.bool_)
    labels = np.zeros((side_px, side_px), np.int16)
    start = side_px - right.labels.shape[1]
    for image, col0, col1 in ((left, 0, max(start - gap_px, 0)), (right, start, side_px)):
        rows, cols = image.labels.shape[0], min(image.labels.shape[1], col1 - col0)
        place = (slice(0, rows), slice(col0, col0 + cols))
        optical[:, place[0], place[1]] = image.optical[:, :, :cols]
        valid[place] = image.optical_valid[:, :cols]
        found = image.labels[:, :cols]
        labels[place] = np.where(found > 0, found + labels.max(), found)
    return TrainingImage(f"{left.name} | {right.name}", left.group, optical, valid, labels, None)


def _is_plain(image: PackedImage) -> bool:
    """Whether it shows natural colour alone."""
    return not image.has_terrain and not image.spectral


class _Choice:
    """Images of which those with many slumps are chosen more often."""

    def __init__(self, images: Sequence[PackedImage]) -> None:
        self._images = images
        weights = np.sqrt([1.0 + len(image.slumps) for image in images])
        self._weights = weights / weights.sum()

    def draw(self, rng: np.random.Generator) -> PackedImage:
        """One of them."""
        return self._images[int(rng.choice(len(self._images), p=self._weights))]


def make_sample(
    image: TrainingImage, spec: InputSpec, options: SampleOptions, rng: np.random.Generator | None
) -> Sample:
    """Turn pixels and labels into layers and targets; `rng` None leaves out all augmentation.

    Of a slump only what any modality sees is a target, the rest is ignored.
    """
    optical = image.optical.astype(np.float32)
    if rng:
        optical = disturb_colour(image.optical, image.optical_valid, options.augment, rng)
    terrain = image.terrain
    # a share of none draws nothing, so that other draws stay
    if terrain is not None and rng and (share := options.augment.dem_older_share):
        terrain = without_slumps(terrain, image.labels, share, spec.resolution_m, rng)
    if terrain is not None and rng:
        terrain = disturb_terrain(terrain, options.augment, spec.resolution_m, rng)
    spectral = image.spectral
    wanted = {name for modality in spec.modalities for name in modality.band_names}
    if spectral is not None and rng and wanted & set(spectral.names):
        spectral = disturb_spectral(spectral, options.augment, rng)
    relief = {
        modality.name: _terrain_layer(terrain, modality.band_names, image.labels.shape)
        for modality in spec.modalities
        if modality.is_terrain
    }
    loses = rng is not None and _loses_imagery(relief.values(), options.augment, rng)
    optical_valid = np.zeros_like(image.optical_valid) if loses else image.optical_valid
    if rng and optical_valid.any() and len(relief) < len(spec.modalities):
        relief = _beside(relief, options.augment, spec.resolution_m, rng)
    layers = {
        modality.name: relief.get(modality.name)
        or _imagery_layer(optical, optical_valid, spectral, modality.band_names)
        for modality in spec.modalities
    }
    seen = np.logical_or.reduce([layer.valid for layer in layers.values()])
    labels = np.where(seen | (image.labels <= 0), image.labels, np.int16(-1))
    boxes, masks, ignored = _targets(labels, options)
    unknown = np.full(image.labels.shape, UNKNOWN_KIND, np.uint8)
    return Sample(image.name, layers, boxes, masks, ignored, unknown if image.kinds is None else image.kinds)


def _loses_imagery(relief: Iterable[Layer], options: AugmentOptions, rng: np.random.Generator) -> bool:
    """Whether a sample goes without imagery; a share of none draws nothing, so that other draws stay."""
    left = any(layer.valid.any() for layer in relief)
    return left and options.optical_missing_share > 0 and rng.random() < options.optical_missing_share


def _beside(
    relief: dict[str, Layer], options: AugmentOptions, resolution_m: float, rng: np.random.Generator
) -> dict[str, Layer]:
    """All layers of terrain moved alike; where none is to move nothing is drawn, so that other draws stay."""
    if not options.dem_shift_sd_m:
        return relief
    rows, cols = np.rint(rng.normal(0, options.dem_shift_sd_m / resolution_m, 2)).astype(int)
    return {name: displace(layer, rows, cols) for name, layer in relief.items()}


def _imagery_layer(
    optical: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_],
    spectral: Spectral | None,
    names: Sequence[str],
) -> Layer:
    """The bands of a modality; it is missing where a band is not known, and valid where all its bands are."""
    bands = dict(zip(OPTICAL_RGB.band_names, optical, strict=True))
    if not set(names) <= set(bands):
        if spectral is None or not set(names) <= {*bands, *spectral.names}:
            return _missing(names, valid.shape)
        valid = spectral.valid & valid if set(names) & set(bands) else spectral.valid
        bands |= dict(zip(spectral.names, spectral.pixels, strict=True))
    return Layer((np.stack([bands[name] for name in names]) * valid).astype(np.float32), valid)


def _missing(names: Sequence[str], shape: tuple[int, ...]) -> Layer:
    return Layer(np.zeros((len(names), *shape), np.float32), np.zeros(shape, np.bool_))


def _terrain_layer(terrain: Terrain | None, names: Sequence[str], shape: tuple[int, ...]) -> Layer:
    if terrain is None:
        return _missing(names, shape)
    bands = {"relative_elevation": terrain.relative_elevation}
    if terrain.gradient is not None:
        right, up = terrain.gradient
        bands |= {
            "slope": slope_degrees(right, up),
            "shaded_relief": shaded_relief(right, up),
            "rise_right": right,
            "rise_up": up,
        }
    if not set(names) <= set(bands):
        return _missing(names, shape)
    pixels = np.stack([bands[name] for name in names]) * terrain.valid
    return Layer(pixels.astype(np.float32), terrain.valid)


def _targets(
    labels: npt.NDArray[np.int16], options: SampleOptions
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    ignored = labels < 0
    masks, boxes = [], []
    for number in np.unique(labels[labels > 0]):
        mask = labels == number
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if mask.sum() < options.min_px or min(len(rows), len(cols)) < 3:
            ignored |= mask
            continue
        masks.append(mask)
        boxes.append([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1])
    return (
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(masks, np.bool_).reshape(-1, *labels.shape),
        ignored,
    )

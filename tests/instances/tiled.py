"""Masks cut into tiles, as a detector would see them, and joined slumps as plain data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from rtsmap.instances.detections import Detection, crop_mask, touched_sides
from rtsmap.instances.seams import Instance, MergeOptions
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.rasters.chips import Chip, Layer
from rtsmap.rasters.tiling import Tile, Window

ANY_SCORE = MergeOptions(min_score=0, min_part_score=0)

Mask = npt.NDArray[np.bool_]


def polar_grid(shape: tuple[int, int], resolution_m: float = 4.0) -> GeoBox:
    """A grid in EPSG:3413, on the north slope of Alaska."""
    return GeoBox(shape, Affine(resolution_m, 0, -2_000_000, 0, -resolution_m, 400_000), "EPSG:3413")


def chip_of(mask: Mask, tile: Tile) -> Chip:
    """A chip that is 200 inside the mask and 50 elsewhere."""
    pixels = np.where(mask[tile.read.slices()], 200, 50).astype(np.float32)[None]
    layer = Layer(pixels, np.ones(tile.read.shape, bool))
    return Chip({"optical": layer}, polar_grid(tile.read.shape), tile)


def detect_on_tiles(mask: Mask, tiles: Sequence[Tile], min_px: int = 1) -> list[Detection]:
    detector = ThresholdDetector(min_px=min_px)
    return [part for parts in detector.detect([chip_of(mask, tile) for tile in tiles]) for part in parts]


def whole_grid(shape: tuple[int, int]) -> Tile:
    return Tile(0, Window(0, 0, *shape), Window(0, 0, *shape))


def part_on(
    tile: Tile, mask: Mask, corner: tuple[int, int] = (0, 0), score: float = 0.9, value: int = 255
) -> Detection:
    """The part of a mask, given on the grid from `corner` on, that a tile sees."""
    frame = Window(corner[0], corner[1], corner[0] + mask.shape[0], corner[1] + mask.shape[1])
    seen = frame.intersection(tile.read)
    inside = np.where(mask[seen.slices(frame)], value, 0).astype(np.uint8)
    cropped = crop_mask(inside, (seen.row0, seen.col0))
    assert cropped is not None
    return Detection(score, *cropped, tile.index, touched_sides(cropped[0], tile), ("optical",))


def painted(instances: Sequence[Instance], shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    """How many instances hold each pixel."""
    counts = np.zeros(shape, int)
    for instance in instances:
        counts[instance.window.slices()] += instance.inside
    return counts


def outlines(instances: Sequence[Instance]) -> set[tuple[Window, bytes]]:
    """Where the instances are, exactly."""
    return {(instance.window, instance.inside.tobytes()) for instance in instances}

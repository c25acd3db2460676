"""Chips: pixels of every modality with their validity, on one grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from rtsmap.errors import GridMismatchError
from rtsmap.rasters.tiling import Tile


@dataclass(frozen=True, slots=True)
class Layer:
    """Pixels of one modality: `pixels` (C, H, W) float32 in the bands' units, `valid` (H, W) bool.

    True means data. Invalid pixels hold 0 and mean nothing.
    """

    pixels: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[1:] != self.valid.shape:
            raise GridMismatchError(
                f"layer: pixels {self.pixels.shape} and valid {self.valid.shape} disagree "
                "(wanted C,H,W and H,W)"
            )
        if self.pixels.dtype != np.float32 or self.valid.dtype != np.bool_:
            raise GridMismatchError(
                f"layer: wanted float32 pixels and bool validity, "
                f"got {self.pixels.dtype} and {self.valid.dtype}"
            )


@dataclass(frozen=True, slots=True)
class Chip:
    """What a detector sees of one tile: one layer a modality, all on `geobox` (the read window's).

    A modality without any data is present with an all-False mask. Raises GridMismatchError when
    layers, geobox and tile do not have the same shape.
    """

    layers: Mapping[str, Layer]
    geobox: GeoBox
    tile: Tile

    def __post_init__(self) -> None:
        wanted = self.tile.read.shape
        shapes = {name: layer.valid.shape for name, layer in self.layers.items()}
        if any(shape != wanted for shape in shapes.values()) or tuple(self.geobox.shape) != wanted:
            raise GridMismatchError(
                f"chip of tile {self.tile.index}: wanted {wanted}, "
                f"got layers {shapes} on a geobox of {tuple(self.geobox.shape)}"
            )

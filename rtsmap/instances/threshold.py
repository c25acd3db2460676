"""A detector without a network: what lies within a range of values is a slump."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rtsmap.errors import OptionsError
from rtsmap.instances.detections import Detection, Side, touched_sides
from rtsmap.rasters.chips import Chip, Layer
from rtsmap.rasters.tiling import Window


@dataclass(frozen=True, slots=True)
class ThresholdDetector:
    """Finds connected pixels whose value in one band lies within `low`..`high`.

    `band` is the band's place in the layer of `modality`. Pixels connect along edges, not corners.
    Components of fewer than `min_px` pixels are left out, unless they touch a side of the chip: then
    they may be a part of more. The score runs from 0.5 (mean value at `low`) to 1 (at `high`).

    A map made with it on tiles equals the one made on a single chip, for any tiling; its laws prove
    the whole way from pixels to footprints. Raises OptionsError for an impossible range.
    """

    modality: str = "optical"
    band: int = 0
    low: float = 128.0
    high: float = 255.0
    min_px: int = 1

    def __post_init__(self) -> None:
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high):
            raise OptionsError(f"wanted finite low < high, got low={self.low}, high={self.high}")
        if self.min_px < 1 or self.band < 0:
            raise OptionsError(f"wanted min_px >= 1 and band >= 0, got {self.min_px} and {self.band}")

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        """One list of detections for each chip, sorted by place; masks are 0 or 255."""
        return [self._detect(chip) for chip in chips]

    def _detect(self, chip: Chip) -> list[Detection]:
        values, valid = self._band(chip)
        within = (values >= self.low) & (values <= self.high) & valid
        if not within.any():
            return []
        labels, count = ndimage.label(within)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        found = []
        for label, box in enumerate(ndimage.find_objects(labels), start=1):
            window = _window(chip, box)
            sides = touched_sides(window, chip.tile)
            if sides != Side.NONE or sizes[label] >= self.min_px:
                inside = labels[box] == label
                found.append(self._detection(chip, box, inside, float(values[box][inside].mean()), sides))
        return found

    def _band(self, chip: Chip) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        layer = chip.layers.get(self.modality)
        if layer is None or self.band >= len(layer.pixels):
            have = {name: len(layer.pixels) for name, layer in chip.layers.items()}
            raise OptionsError(
                f"the detector looks at band {self.band} of '{self.modality}', "
                f"but the chip has (bands by modality): {have}"
            )
        return layer.pixels[self.band], layer.valid

    def _detection(
        self,
        chip: Chip,
        box: tuple[slice, slice],
        inside: npt.NDArray[np.bool_],
        mean: float,
        sides: Side,
    ) -> Detection:
        share = (mean - self.low) / (self.high - self.low)
        return Detection(
            score=0.5 + 0.5 * min(max(share, 0.0), 1.0),
            window=_window(chip, box),
            mask=inside * np.uint8(255),
            tile=chip.tile.index,
            sides=sides,
            modalities=tuple(name for name, layer in chip.layers.items() if _has_data(layer, box, inside)),
        )


def _window(chip: Chip, box: tuple[slice, slice]) -> Window:
    """A box of the chip on the grid."""
    rows, cols = box
    read = chip.tile.read
    return Window(rows.start, cols.start, rows.stop, cols.stop).shifted(read.row0, read.col0)


def _has_data(layer: Layer, box: tuple[slice, slice], inside: npt.NDArray[np.bool_]) -> bool:
    return bool((layer.valid[box] & inside).any())

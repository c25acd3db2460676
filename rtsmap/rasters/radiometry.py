"""One radiometric scale for imagery of any depth: the 8-bit scale on which models were trained.

8-bit imagery stays as it is. Of all other imagery (11 bit, 16 bit, reflectances) the 1st and the 99th
percentile of each band, over the whole scene, are put where the published slump chips have theirs: 1.75
standard deviations below the model's mean and 1.9 above. Between and beyond them the scale is linear, and it
ends at 0 and 255. Gains, offsets and units of a delivery thereby cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rtsmap.errors import BandError, ReadError
from rtsmap.rasters.bands import Band
from rtsmap.rasters.tiling import Window

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Read = Callable[[Window], tuple[Floats, Bools]]

PERCENTILES = (1.0, 99.0)
SD_BELOW, SD_ABOVE = 1.75, 1.9
"""Where these percentiles lie from a model's mean: medians over the published slump chips."""

_SAMPLE_PX = 64
_SAMPLES = (8, 24)
_BLOCK_PX = 512
_ENOUGH = 1000


@dataclass(frozen=True, slots=True)
class Stretch:
    """Values `low` and `high` of a band stand for `to_low` and `to_high` of the 8-bit scale."""

    band: str
    low: float
    high: float
    to_low: float
    to_high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise BandError(
                f"band '{self.band}' has the value {self.low:g} nearly everywhere, so that it has no scale; "
                "check that it is the right band, and that fill is declared as nodata"
            )

    def apply(self, values: Floats) -> Floats:
        """The values on the 8-bit scale, as float32 within 0..255."""
        gain = np.float32((self.to_high - self.to_low) / (self.high - self.low))
        scaled = (values - np.float32(self.low)) * gain + np.float32(self.to_low)
        return np.clip(scaled, np.float32(0), np.float32(255))


@dataclass(frozen=True, slots=True)
class Radiometry:
    """How each band of a scene comes onto the 8-bit scale; those without a stretch are on theirs."""

    stretches: tuple[Stretch, ...]

    def apply(self, name: str, values: Floats, valid: Bools) -> Floats:
        """Values of one band on the 8-bit scale; 0 where they are not valid."""
        for stretch in self.stretches:
            if stretch.band == name:
                return np.where(valid, stretch.apply(values), np.float32(0))
        return values

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Plain data by band, as it stands in plan.json."""
        plain: dict[str, dict[str, Any]] = {s.band: asdict(s) for s in self.stretches}
        return {band: {key: v for key, v in row.items() if key != "band"} for band, row in plain.items()}

    @property
    def note(self) -> str:
        """What was done, in a sentence."""
        rows = (
            f"{s.band} {s.low:.4g}..{s.high:.4g} as {s.to_low:.0f}..{s.to_high:.0f}" for s in self.stretches
        )
        return f"percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g} set the 8-bit scale: {', '.join(rows)}"


def measure(bands: Sequence[Band], shape: tuple[int, int], read: Read) -> Radiometry:
    """Find the scale of a scene by a sample of pixels spread over the run's grid of `shape`.

    `read` gives (pixels (C, H, W), valid (H, W)) of a window, bands in the order of `bands`. BandError where
    there is nothing to measure.
    """
    pixels = _sample(shape, read)
    if pixels.shape[1] == 0:
        raise BandError("no pixel has data, so that there is nothing to take the radiometric scale from")
    low, high = np.percentile(pixels, PERCENTILES, axis=1)
    return Radiometry(
        tuple(
            Stretch(b.name, float(low[i]), float(high[i]), b.mean - SD_BELOW * b.sd, b.mean + SD_ABOVE * b.sd)
            for i, b in enumerate(bands)
        )
    )


def _sample(shape: tuple[int, int], read: Read) -> Floats:
    """Valid pixels (C, N): of windows on a coarse lattice, or a finer one, or, should they be rare, all."""
    for count in _SAMPLES:
        found = _valid(lattice(shape, count), read)
        if found.shape[1] >= _ENOUGH:
            return found
    return _valid(_blocks(shape, _BLOCK_PX), read)


def _valid(windows: Iterator[Window], read: Read) -> Floats:
    parts = []
    failed: ReadError | None = None
    for window in windows:
        try:
            pixels, valid = read(window)
        except ReadError as exc:  # noqa: PERF203 - windows are few
            failed = exc  # what can be read of a damaged scene is mapped
        else:
            parts.append(pixels[:, valid])
    if failed and not parts:
        raise failed
    return np.concatenate(parts, axis=1)


def lattice(shape: tuple[int, int], count: int = _SAMPLES[0]) -> Iterator[Window]:
    """Up to `count` x `count` windows, spread evenly; on a small grid they cover it."""
    for row in _starts(shape[0], count):
        for col in _starts(shape[1], count):
            yield Window(row, col, min(row + _SAMPLE_PX, shape[0]), min(col + _SAMPLE_PX, shape[1]))


def _starts(size: int, count: int) -> list[int]:
    if size <= count * _SAMPLE_PX:
        return list(range(0, size, _SAMPLE_PX))
    return [round(i * (size - _SAMPLE_PX) / (count - 1)) for i in range(count)]


def _blocks(shape: tuple[int, int], side: int) -> Iterator[Window]:
    for row in range(0, shape[0], side):
        for col in range(0, shape[1], side):
            yield Window(row, col, min(row + side, shape[0]), min(col + side, shape[1]))

"""Chips of eight bands as numpy archives, the form in which the data of slump challenges is given out.

An `.npz` file holds one array `image` (H, W, 8) with the bands of `EIGHT_BANDS`. Missing pixels are NaN, or
-9999 as in ArcticDEM.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rtsmap.errors import BandError, InputError
from rtsmap.rasters.bands import NIR
from rtsmap.rasters.radiometry import PERCENTILES, SD_ABOVE, SD_BELOW, Stretch

EIGHT_BANDS = ("red", "green", "blue", "ndvi", "relative_elevation", "shaded_relief", "nir", "ndwi")
KEY, NPZ = "image", ".npz"
NO_DATA = -9999.0
MAX_PIXELS = 4096**2
_MEMBER = f"{KEY}.npy"
_npy: Any = np.lib.format

_PLAUSIBLE = {
    "red": (0.0, 255.0),
    "green": (0.0, 255.0),
    "blue": (0.0, 255.0),
    "ndvi": (-1.0, 1.0),
    "ndwi": (-1.0, 1.0),
    "nir": (0.0, 65535.0),
    "relative_elevation": (-500.0, 500.0),
}
# what numpy says of damaged arrays, and zipfile of archives that are damaged, encrypted or oddly compressed
_BROKEN = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
_ROUNDING = 1e-3
_COLORS = 3
_BRIGHTEST = 2.0
"""No reflectance is above this; red, green and blue of 8 bit that all stay below are no picture."""
_EVERY = 5


@dataclass(frozen=True, slots=True)
class EightBands:
    """One chip: `pixels` (8, H, W) float32 in the order of EIGHT_BANDS, 0 where not `valid` (8, H, W)."""

    pixels: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]

    def bands(self, names: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Pixels (C, H, W) of these bands, and where all of them have data (H, W)."""
        chosen = [EIGHT_BANDS.index(name) for name in names]
        valid: npt.NDArray[np.bool_] = np.logical_and.reduce(self.valid[chosen])
        return self.pixels[chosen], valid


def file_of_chip(path: Path) -> Path:
    """The picture that labels name, or the chip of eight bands with the same stem where that is there."""
    chip = path.with_suffix(NPZ)
    return chip if chip.is_file() and not path.is_file() else path


def read_eight_bands(path: Path) -> EightBands:
    """Read a chip; no pickle is ever loaded.

    Raises InputError for another file or shape, BandError for values that a band cannot have.
    """
    array = _read_array(path)
    pixels = np.ascontiguousarray(array.transpose(2, 0, 1), np.float32)
    valid = np.isfinite(pixels) & (pixels != NO_DATA)
    pixels = np.where(valid, pixels, np.float32(0))
    for name, (low, high) in _PLAUSIBLE.items():
        values = pixels[EIGHT_BANDS.index(name)]
        if values.min() < low - _ROUNDING or values.max() > high + _ROUNDING:
            raise BandError(
                f"{path}: {name} is {values.min():g} to {values.max():g}, wanted {low:g} to {high:g}; "
                f"check the order of the bands ({', '.join(EIGHT_BANDS)}) and their scale"
            )
    _refuse_reflectances(path, pixels[:_COLORS])
    return EightBands(pixels, valid)


def _refuse_reflectances(path: Path, colors: npt.NDArray[np.float32]) -> None:
    """Colours of 0..1, which pass for black on the scale of 0..255."""
    if _is_of_fractions(colors):
        raise BandError(
            f"{path}: red, green and blue are fractions up to {colors.max():g}, wanted 0 to 255; if they are "
            "reflectances of 0..1, bring all chips onto that scale alike"
        )


def _is_of_fractions(values: npt.NDArray[np.float32]) -> bool:
    """True for values between 0 and 1, some above 1 where snow or ice shines, which are not whole numbers."""
    return 0 < values.max() <= _BRIGHTEST and bool((values != np.round(values)).any())


def _read_array(path: Path) -> npt.NDArray[Any]:
    """The array (H, W, 8) of a chip; its header is looked at before there is memory for it."""
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_other_arrays(path, archive)
            with archive.open(_MEMBER) as stream:
                array: npt.NDArray[Any] = _npy.read_array(stream, allow_pickle=False)
    except InputError:
        raise
    except _BROKEN as exc:
        raise InputError(f"{path}: cannot be read as a numpy archive of numbers ({exc})") from exc
    return array


def _refuse_other_arrays(path: Path, archive: zipfile.ZipFile) -> None:
    if _MEMBER not in archive.namelist():
        names = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
        raise InputError(f"{path}: no array '{KEY}', only {names or 'nothing'}")
    with archive.open(_MEMBER) as stream:
        version = _npy.read_magic(stream)
        read_header = {(1, 0): _npy.read_array_header_1_0, (2, 0): _npy.read_array_header_2_0}.get(version)
        if read_header is None:
            raise ValueError(f"format version {version}")
        shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("it holds a pickle")
    is_chip = len(shape) == 3 and shape[2] == len(EIGHT_BANDS) and min(shape) > 0
    if not is_chip or dtype.kind not in "fui":
        raise InputError(
            f"{path}: '{KEY}' is {shape} of {dtype}, wanted numbers of (height, width, {len(EIGHT_BANDS)}) "
            f"in the order {', '.join(EIGHT_BANDS)}"
        )
    if shape[0] * shape[1] > MAX_PIXELS:
        raise InputError(f"{path}: {shape[0]} x {shape[1]} pixels; a chip has at most {MAX_PIXELS:,}")


def infrared_scale(chips: Iterable[EightBands]) -> Stretch | None:
    """How the near infrared of all these chips comes onto the 8-bit scale; None where it is on it.

    As with scenes (rtsmap.rasters.radiometry): the percentiles of the whole set decide.
    """
    samples = [pixels[0][valid][::_EVERY] for pixels, valid in (chip.bands(["nir"]) for chip in chips)]
    values = np.concatenate(samples) if samples else np.zeros(0, np.float32)
    if not len(values) or (values.max() <= 255 and not _is_of_fractions(values)):
        return None
    low, high = np.percentile(values, PERCENTILES)
    return Stretch(
        NIR.name, float(low), float(high), NIR.mean - SD_BELOW * NIR.sd, NIR.mean + SD_ABOVE * NIR.sd
    )

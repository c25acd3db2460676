"""Bands beyond what a scene holds: indices derived from its bands, and rasters of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rtsmap.errors import BandError
from rtsmap.rasters import sources
from rtsmap.rasters.bands import BAND_UNITS, TERRAIN_BANDS
from rtsmap.rasters.sources import RasterInfo

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
BandFiles = Mapping[str, Path | str]
"""Rasters of one band each, by the band's name."""

INDICES = {"ndvi": ("nir", "red"), "ndwi": ("green", "nir")}
"""Normalised differences: (first - second) / (first + second)."""

BEYOND = 1.01


def parse_band_files(given: Iterable[str]) -> dict[str, str]:
    """Files by band from `ndvi=FILE` texts."""
    files: dict[str, str] = {}
    for text in given:
        name, separator, file = text.partition("=")
        name = name.strip().lower()
        if not separator or not file:
            raise BandError(f"band '{text}' cannot be read; wanted NAME=FILE as in ndvi=ndvi.tif")
        if name in files:
            raise BandError(f"band '{name}' is given twice: {files[name]} and {file}")
        files[name] = file
    return check_band_files(files)


def check_band_files(files: BandFiles) -> dict[str, str]:
    """The same, once it is sure that rtsmap knows these bands, and that they are not terrain."""
    for name in files:
        if name not in BAND_UNITS or name in TERRAIN_BANDS:
            known = ", ".join(sorted(set(BAND_UNITS) - TERRAIN_BANDS))
            raise BandError(f"band '{name}' cannot be given as a file; rtsmap knows: {known}")
    return {name: str(file) for name, file in files.items()}


def scene_bands(
    info: RasterInfo, wanted: Iterable[str], given: Mapping[str, int] | None, elsewhere: Iterable[str] = ()
) -> dict[str, int]:
    """Numbers of the scene's bands that are wanted, or that wanted indices are derived from.

    Bands that come from `elsewhere` are not asked of the scene. BandError as by `sources.optical_bands`.
    """
    known = {*info.band_names, *(given or {})}
    asked = [name for name in dict.fromkeys(wanted) if name not in elsewhere]
    derived = [name for name in asked if name in INDICES and name not in known]
    needed = [band for name in asked for band in (INDICES[name] if name in derived else (name,))]
    if not needed:
        return {}
    try:
        return sources.optical_bands(info, dict.fromkeys(needed), given)
    except BandError as exc:
        if not derived:
            raise
        ways = " or ".join(f"--band {name}=FILE" for name in derived)
        names = " and ".join(derived)
        raise BandError(f"{exc}. The model wants {names}, derived from such bands; or give {ways}") from exc


def derive(name: str, planes: Mapping[str, Floats], valid: Bools) -> tuple[Floats, Bools]:
    """An index and its validity; without light in either band there is none, and none is negative."""
    first, second = (np.maximum(planes[band], 0) for band in INDICES[name])
    total = first + second
    known = valid & (total > 0)
    return np.where(known, (first - second) / np.where(known, total, 1), 0).astype(np.float32), known


def check_values(name: str, path: str, values: Floats) -> None:
    """Refuse a file whose values cannot be those of the band."""
    if not values.size:
        raise BandError(f"{path}: has no data under the scene, so that it cannot be its {name}")
    if BAND_UNITS[name] == "1" and float(np.abs(values).max()) > BEYOND:
        raise BandError(
            f"{path}: holds values from {values.min():g} to {values.max():g} where {name} lies within -1..1; "
            "if they are scaled, say how: gdal_edit.py -scale 0.0001 FILE"
        )

"""What a raster file is: its grid, its bands, what in it is no data, and what it is refused for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags

from rtsmap.atomic import is_text
from rtsmap.errors import BandError, InputError, ReadError
from rtsmap.rasters import grids
from rtsmap.rasters.bands import check_bands
from rtsmap.rasters.first_look import MAX_BLOCK_BYTES, NOT_UTF8, block_bytes
from rtsmap.rasters.grids import RunGrid
from rtsmap.rasters.opening import (
    GDAL_ERRORS,
    innermost,
    is_remote,
    local_path,
    opened,
    patiently,
)
from rtsmap.rasters.upright import is_located_by_points, is_upright, upright


@dataclass(frozen=True, slots=True)
class RasterInfo:
    """What a raster file says about itself. Shapes are (rows, columns), bands count from 1.

    `dataset` is what GDAL opens: the path, or the text of a virtual raster, of which `path` is but a name.
    `band_names` holds each band's description, or else its colour, or "". `overviews` are shrink factors,
    `overview_shapes` their shapes. `fill_is_zero`: pixels with 0 in every band are fill. `notes` are
    sentences about what rtsmap had to decide. `believable` is the range, as stored, beyond which values are
    fill; None where any may be data.
    """

    path: str
    crs: CRS
    geobox: GeoBox
    count: int
    dtype: str
    nodata: float | None
    band_names: tuple[str, ...]
    colors: tuple[str, ...]
    overviews: tuple[int, ...]
    overview_shapes: tuple[tuple[int, int], ...]
    ground_sample_distance_m: float
    block_shape: tuple[int, int]
    has_alpha: bool
    has_mask: bool
    fill_is_zero: bool
    compression: str | None
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    unit: str
    notes: tuple[str, ...]
    dataset: str
    believable: tuple[float, float] | None = None

    @property
    def scale(self) -> float:
        """Of the first band: what it stores times `scale`, plus `offset`, is what it measures."""
        return self.scales[0]

    @property
    def offset(self) -> float:
        """Of the first band."""
        return self.offsets[0]


def probe(path: Path | str) -> RasterInfo:
    """Look at a raster without reading pixels; InputError says in a sentence why one cannot be used."""
    name = str(path)
    if not is_text(name):
        raise InputError(f"{name}: {NOT_UTF8}")

    def look() -> RasterInfo | tuple[str, str]:
        with opened(name) as src:
            _refuse_unusable(src, name)
            return _describe(src, name, name) if is_upright(src) else upright(src, name)

    try:
        found = patiently(look, name, name) if is_remote(name) else look()
    except ReadError as exc:
        raise InputError(f"{name}: its server does not deliver it ({innermost(exc)})") from exc
    except GDAL_ERRORS as exc:
        file = local_path(name)
        missing = file is not None and not os.path.exists(file)  # noqa: PTH110 - a name may be too long
        reason = "there is no such file" if missing else f"GDAL cannot open it as a raster ({exc})"
        if not missing and name.lower().endswith(".npz"):
            reason = (
                "has no place on Earth, as a numpy archive; chips of eight bands are for predict, tile, pack "
                "and evaluate chips"
            )
        if not missing and file is not None and file.is_dir():
            reason = f"is a folder, and no raster; name its files, by a pattern in quotes: '{file / '*.tif'}'"
        raise InputError(f"{name}: {reason}") from exc
    if isinstance(found, RasterInfo):
        return found
    text, note = found
    info = probe_text(text, name)
    return replace(info, notes=(note, *info.notes))


def read_tags(path: Path | str) -> dict[str, str]:
    """Tags of a raster; those of GDAL's domains for imagery have the domain before them, as in `IMD:...`."""
    with rasterio.open(str(path)) as src:
        domains = {"": src.tags()}
        domains |= {
            f"{name}:": src.tags(ns=name) for name in ("IMAGERY", "IMD") if name in src.tag_namespaces()
        }
    return {f"{domain}{key}": str(value) for domain, tags in domains.items() for key, value in tags.items()}


def probe_text(dataset: str, name: str) -> RasterInfo:
    """Look at a virtual raster given as text; `name` is what messages call it."""
    with opened(dataset) as src:
        return _describe(src, name, dataset)


def _refuse_unusable(src: Any, name: str) -> None:
    if src.count == 0:
        inside = ", ".join(src.subdatasets[:4])
        hint = f"; it is a container, name one of: {inside}" if inside else ""
        raise InputError(f"{name}: the file has no raster bands{hint}")
    if src.width == 0 or src.height == 0:
        raise InputError(f"{name}: the raster is empty ({src.height} x {src.width} pixels)")
    if np.dtype(src.dtypes[0]).kind == "c":
        raise InputError(f"{name}: the pixels are complex numbers ({src.dtypes[0]}); wanted real ones")
    if (size := block_bytes(src)) > MAX_BLOCK_BYTES:
        raise InputError(
            f"{name}: its blocks decode to {size / 2**20:,.0f} MiB each, at most {MAX_BLOCK_BYTES >> 20} are "
            "read; store it in tiles: gdal_translate -co TILED=YES IN OUT.tif"
        )
    if is_located_by_points(src):
        return
    if src.crs is None and src.transform.is_identity:
        raise InputError(
            f"{name}: is a picture that says nothing about where on Earth it lies (it has neither a CRS nor "
            "coordinates); wanted the georeferenced file that it was made from, mostly a GeoTIFF, or CRS and "
            "corners: gdal_translate -a_srs EPSG:CODE -a_ullr LEFT TOP RIGHT BOTTOM IN OUT.tif"
        )
    if src.crs is None:
        raise InputError(f"{name}: has no CRS; assign the right one: gdal_edit.py -a_srs EPSG:CODE FILE")
    if src.transform.is_identity:
        raise InputError(
            f"{name}: has a CRS, but says nothing about where its pixels lie; give it its corners: "
            "gdal_edit.py -a_ullr LEFT TOP RIGHT BOTTOM FILE"
        )
    if not (src.crs.is_projected or src.crs.is_geographic):
        raise InputError(f"{name}: its CRS has no known place on Earth; warp or assign another one first")


def _describe(src: Any, name: str, dataset: str) -> RasterInfo:
    geobox = GeoBox((src.height, src.width), src.transform, _horizontal_crs(src.crs))
    _refuse_other_planets(geobox.crs, name)
    height_m, width_m = grids.ground_pixel_m(geobox)
    gsd = float(np.sqrt(height_m * width_m))
    if not np.isfinite(gsd):
        raise InputError(f"{name}: its centre lies outside the domain of its CRS; check the georeferencing")
    has_alpha = alpha_band(src) is not None
    has_mask = MaskFlags.per_dataset in src.mask_flag_enums[0] and not has_alpha
    notes = _nodata_notes(src, has_alpha=has_alpha, fill_is_zero=src.count >= 3)
    overviews = tuple(src.overviews(1))
    if has_mask and overviews and MaskFlags.nodata not in src.mask_flag_enums[0]:
        told = {factor for factor in overviews if min(src.shape) / factor > _LEAST_OF_A_MASK_PX}
        masked = told <= _mask_overviews(src)
        overviews = overviews if told and masked else ()
        notes = notes if masked else (*notes, _NO_MASK)
    colors = tuple(color.name for color in src.colorinterp)
    known = ("",) * src.count if _are_guessed(colors, src) and not has_alpha else colors
    return RasterInfo(
        path=name,
        crs=geobox.crs,
        geobox=geobox,
        count=src.count,
        dtype=src.dtypes[0],
        nodata=src.nodata,
        band_names=tuple(_band_name(d, c) for d, c in zip(src.descriptions, known, strict=True)),
        colors=colors,
        overviews=overviews,
        overview_shapes=_overview_shapes(dataset, len(overviews)),
        ground_sample_distance_m=gsd,
        block_shape=src.block_shapes[0],
        has_alpha=has_alpha,
        has_mask=has_mask,
        fill_is_zero=src.count >= 3,
        compression=src.compression.name if src.compression else None,
        scales=tuple(src.scales),
        offsets=tuple(src.offsets),
        unit=(src.units[0] or "").lower(),
        notes=notes,
        dataset=dataset,
    )


_NO_MASK = (
    "its overviews are without the mask, under which all would be data: they are not read. gdaladdo FILE.msk "
    "2 4 8 adds it for a mask beside the file, gdaladdo -clean FILE and gdaladdo FILE 2 4 8 for one within"
)


_LEAST_OF_A_MASK_PX = 128
"""Of smaller overviews GDAL's virtual rasters do not tell."""


def _mask_overviews(src: Any) -> set[int]:
    """Shrink factors of the overviews of a raster's mask; where there is none GDAL calls all pixels valid."""
    name = escape(src.files[0] if src.files else src.name)
    with opened(
        f'<VRTDataset rasterXSize="{src.width}" rasterYSize="{src.height}">'
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0" shared="0">{name}</SourceFilename>'
        "<SourceBand>mask,1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    ) as mask:
        return set(mask.overviews(1))


def alpha_band(src: Any) -> int | None:
    """Number of the band that holds transparency; GDAL's own masks know it in 2 and 4 bands only.

    Where nodata or a mask is declared, that counts, and what is marked as alpha may be near infrared.
    """
    flags = src.mask_flag_enums[0]
    is_marked = src.count >= 4 and ColorInterp.alpha in src.colorinterp
    if is_marked and (MaskFlags.alpha in flags or MaskFlags.all_valid in flags):
        return int(src.colorinterp.index(ColorInterp.alpha)) + 1
    return int(src.count) if MaskFlags.alpha in flags else None


def _refuse_other_planets(crs: CRS, name: str) -> None:
    ellipsoid = crs.proj.ellipsoid
    radius_m = ellipsoid.semi_major_metre if ellipsoid else grids.EARTH_RADIUS_M
    if abs(radius_m / grids.EARTH_RADIUS_M - 1) > 0.02:
        raise InputError(
            f"{name}: its CRS {grids.crs_name(crs)} is of a body of {radius_m / 1000:,.0f} km radius, not of "
            "Earth; lengths and areas would be wrong"
        )


def _horizontal_crs(crs: Any) -> CRS:
    found = CRS(crs.to_wkt())
    parts = found.proj.sub_crs_list
    return CRS(parts[0].to_wkt()) if found.proj.is_compound and parts else found


def _band_name(description: str | None, color: str) -> str:
    if description:
        return description.strip().lower()
    return color if color in {"red", "green", "blue", "alpha", "palette", "nir"} else ""


def _are_guessed(colors: tuple[str, ...], src: Any) -> bool:
    """True for colours as GDAL gives them to any four bands of 8 bit that nobody has named."""
    guess = ("red", "green", "blue", "alpha")
    return colors == guess and set(src.dtypes) == {"uint8"} and not any(src.descriptions)


def _overview_shapes(dataset: str, count: int) -> tuple[tuple[int, int], ...]:
    shapes = []
    for index in range(count):
        with opened(dataset, overview_level=index) as overview:
            shapes.append((overview.height, overview.width))
    return tuple(shapes)


def _nodata_notes(src: Any, *, has_alpha: bool, fill_is_zero: bool) -> tuple[str, ...]:
    flags = src.mask_flag_enums[0]
    if has_alpha:
        declared = "pixels whose alpha is below one half are not data"
    elif MaskFlags.per_dataset in flags:
        declared = "the file's mask says which pixels are data"
    elif MaskFlags.nodata in flags:
        where = "" if src.count == 1 else " in any band" if src.nodata < 0 else " in every band"
        declared = f"pixels with the declared nodata value {src.nodata:g}{where} are not data"
    else:
        declared = "no nodata is declared"
    zeros = fill_is_zero and not (MaskFlags.nodata in flags and src.nodata == 0)
    fill = "; pixels where every band is 0 are taken as fill" if zeros else ""
    return (declared + fill,)


def optical_bands(
    info: RasterInfo, wanted: Iterable[str], given: Mapping[str, int] | None = None
) -> dict[str, int]:
    """1-based index of each wanted band, by `given`, its description or its colour.

    Three bands without any names, or three and alpha, are taken as red, green, blue (`optical_note` says
    so). Everything else that is not certain raises BandError with what to do.
    """
    names = tuple(wanted)
    _refuse_absent(info, given or {})
    known = {name: i for i, name in reversed(list(enumerate(info.band_names, 1))) if name}
    if _is_nameless_rgb(info):
        known = {"red": 1, "green": 2, "blue": 3}
    known |= given or {}
    missing = [name for name in names if name not in known]
    if missing:
        raise BandError(f"{info.path}: {_missing_bands_sentence(info, missing)}")
    chosen = {name: known[name] for name in names}
    if len(set(chosen.values())) < len(chosen):
        listed = ", ".join(f"{name}={index}" for name, index in chosen.items())
        raise BandError(f"{info.path}: one band would serve twice ({listed}); say all with --bands")
    return chosen


def optical_note(info: RasterInfo) -> str | None:
    """The assumption behind `optical_bands`, where there is one."""
    if _is_nameless_rgb(info):
        return f"{info.path}: the bands carry no names; the first three are taken as red, green, blue"
    return None


def _refuse_absent(info: RasterInfo, given: Mapping[str, int]) -> None:
    for name, index in check_bands(given).items():
        if index > info.count:
            raise BandError(
                f"{info.path}: band '{name}' was given as {index}; wanted a number within 1..{info.count}"
            )


def _is_nameless_rgb(info: RasterInfo) -> bool:
    colors = set(info.band_names[:3])
    alone = info.count == 3 or (info.count == 4 and info.has_alpha)
    return alone and colors == {""}


def _missing_bands_sentence(info: RasterInfo, missing: Sequence[str]) -> str:
    has = ", ".join(name or "unnamed" for name in info.band_names)
    if "alpha" in info.colors and not any(info.band_names):
        has = "unnamed, for GDAL marks any four of 8 bit as red, green, blue, alpha"
    are = f"the {info.count} bands are" if info.count > 1 else "its only band is"
    sentence = f"no band is named {' or '.join(missing)} ({are}: {has})"
    if "palette" in info.colors:
        return f"{sentence}; expand its colour table first: gdal_translate -expand rgb IN OUT.tif"
    if info.count < 3:
        alone = "it is panchromatic or a single layer; " if info.count == 1 else ""
        heights = "; if it is an elevation model, give it with --dem" if _may_be_heights(info) else ""
        wanted = "wanted colour imagery with red, green and blue (pansharpened will do)"
        return f"{sentence}; {alone}{wanted}{heights}"
    return f"{sentence}; say which they are, counted from 1: {_ADVICE.get(info.count, _ADVICE[0])}"


def _may_be_heights(info: RasterInfo) -> bool:
    """True for one band of a kind in which elevation comes, and panchromatic imagery does not."""
    return info.count == 1 and np.dtype(info.dtype).kind in "fi" and info.dtype != "int8"


_ADVICE = {
    0: "--bands red=R,green=G,blue=B",
    3: "--bands red=1,green=2,blue=3, in the file's order",
    4: "--bands red=3,green=2,blue=1 where the order is blue, green, red, near infrared",
    8: "--bands red=5,green=3,blue=2 where the order is that of WorldView's eight bands",
}


MOST_ENLARGED = 3.0
"""A raster up to this many times coarser than wanted is interpolated; beyond, only empty work would grow."""


def run_grid(info: RasterInfo, resolution_m: float) -> RunGrid:
    """The grid to map a raster on, see `grids.run_grid`.

    Rasters more than `MOST_ENLARGED` times coarser than `resolution_m` keep their own ground sample
    distance, and the note says so.
    """
    native_m = info.ground_sample_distance_m
    too_coarse = native_m > MOST_ENLARGED * resolution_m
    try:
        grid = grids.run_grid(info.geobox, native_m if too_coarse else resolution_m)
    except InputError as exc:
        raise InputError(f"{info.path}: {exc}") from exc
    if not too_coarse:
        return grid
    note = (
        f"the scene has {grids.told_m(native_m)} m per pixel where {resolution_m:g} m are wanted: it is "
        "mapped at its own resolution, at which slumps look smaller than what a model was trained for"
    )
    return RunGrid(grid.geobox, note if grid.note is None else f"{grid.note}; {note}")

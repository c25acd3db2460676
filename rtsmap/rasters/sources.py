"""Opening, reading and writing rasters: the only place that reads with rasterio.

Reading goes in three steps. A `Level` is chosen: an overview, and whole pixels of it to average. The
part of the level under the target is read with its validity. Then GDAL warps pixels and validity alike,
and the quotient of the two is the average of valid pixels only: nothing leaks in from nodata.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt
import rasterio
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import reproject
from rasterio.windows import Window as RasterioWindow
from scipy.ndimage import binary_dilation

from rtsmap.atomic import is_text, whole_file
from rtsmap.errors import BandError, GridMismatchError, InputError, ReadError, WriteError
from rtsmap.rasters import grids
from rtsmap.rasters.bands import check_bands
from rtsmap.rasters.first_look import MAX_BLOCK_BYTES, NOT_UTF8, block_bytes
from rtsmap.rasters.grids import RunGrid
from rtsmap.rasters.interpolation import interpolate
from rtsmap.rasters.opening import (
    GDAL_ERRORS,
    archive_of,
    borrowed,
    innermost,
    is_remote,
    local_path,
    opened,
    patiently,
)
from rtsmap.rasters.radiometry import lattice
from rtsmap.rasters.tiling import Window
from rtsmap.rasters.upright import is_located_by_points, is_upright, upright
from rtsmap.timing import stage

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Warped = tuple[Floats, Bools, Bools | None]

# `probe` refuses what is not georeferenced. rasterio also warns of its own arrays while it warps, and hides
# that by `catch_warnings`, which leaks when several threads warp.
warnings.filterwarnings("ignore", message="Dataset has no geotransform", category=NotGeoreferencedWarning)

_STRIP_PX = 16_000_000
_WARP_PX = 8_000_000
_WARP_MEMORY_MB = 512
_LEAST_VALID_SHARE = 0.5
_SAMPLE_BYTES = 65_536
_SAMPLES = 16
_PIECES = 4


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


@dataclass(frozen=True, slots=True)
class Level:
    """A version of a raster: overview `overview` (None: full resolution), `boxcar` pixels averaged to one.

    The means are taken over valid pixels, from the raster's upper left corner on.
    """

    overview: int | None = None
    boxcar: int = 1


@dataclass(frozen=True, slots=True)
class Patch:
    """Pixels (C, H, W) float32 on `window` of the grid `level`; `valid` (H, W) True = data.

    `fill` True = undeclared fill.
    """

    pixels: Floats
    valid: Bools
    fill: Bools | None
    level: GeoBox
    window: Window

    @property
    def geobox(self) -> GeoBox:
        """The grid of these pixels."""
        return grids.window_geobox(self.level, self.window)


# --- what a file is ------------------------------------------------------------------------------------


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
    has_alpha = _alpha_band(src) is not None
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


def _alpha_band(src: Any) -> int | None:
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


def fingerprint(path: Path | str) -> dict[str, Any]:
    """What identifies a raster's content: header fields, sizes, a hash of sampled bytes.

    Neither name, place nor time of the file count, so copies agree. Sources of a VRT, external overviews
    and masks belong to it; statistics that viewers leave beside a file do not. Of an archive all counts, and
    of what lies in one, on a server, or is a part of a file, sampled pixels.
    """
    info = probe(path)
    digest = hashlib.sha256()
    sizes = []
    for size, sampled in _samples(info.path, set()):
        digest.update(sampled)
        sizes += [] if size is None else [size]
    return {
        "shape": list(info.geobox.shape),
        "transform": [float(v) for v in tuple(info.geobox.affine)[:6]],
        "crs": info.crs.to_wkt(),
        "count": info.count,
        "dtype": info.dtype,
        "nodata": None if info.nodata is None else repr(info.nodata),
        "band_names": list(info.band_names),
        "overviews": list(info.overviews),
        "sizes_bytes": sorted(sizes),
        "sha256_of_samples": digest.hexdigest(),
    }


def _samples(name: str, seen: set[str]) -> Iterator[tuple[int | None, bytes]]:
    """Size and sampled bytes of each file that a raster is made of; where one is no file, None and pixels."""
    with opened(name) as src:
        files = [file for file in src.files if not file.endswith(".aux.xml")]
    for file in files:
        path = local_path(file) or archive_of(file)
        if file in seen or path is None or not path.is_file():
            continue
        seen.add(file)
        is_virtual = path.suffix.lower() == ".vrt"
        yield 0 if is_virtual else path.stat().st_size, _sampled_bytes(path)
        if is_virtual:
            yield from _samples(file, seen)
    if any(local_path(one) != Path(one) for one in (name, *files)):
        yield None, _sampled_pixels(name)


def _sampled_pixels(name: str) -> bytes:
    """Evenly spread pieces of the coarsest overview."""

    def read() -> bytes:
        with opened(name) as src:
            count = len(src.overviews(1))
        with opened(name, **({"overview_level": count - 1} if count else {})) as src:
            places = [RasterioWindow.from_slices(*w.slices()) for w in lattice(src.shape, _PIECES)]
            return b"".join(src.read(window=place).tobytes() for place in places)

    return patiently(read, name, name)


def _sampled_bytes(path: Path) -> bytes:
    """Head, tail and evenly spread pieces of a file; of a VRT its text without the folders in it."""
    if path.suffix.lower() == ".vrt":
        text = re.sub(r"(<SourceFilename[^>]*>)(?:[^<]*[/\\])?", "<SourceFilename>", path.read_text())
        return text.encode()
    size = path.stat().st_size
    last = max(0, size - _SAMPLE_BYTES)
    pieces = []
    with path.open("rb") as stream:
        for i in range(_SAMPLES):
            stream.seek(last * i // (_SAMPLES - 1))
            pieces.append(stream.read(_SAMPLE_BYTES))
    return b"".join(pieces)


# --- which bands ---------------------------------------------------------------------------------------


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
        return f"{sentence}; {alone}wanted colour imagery with red, green and blue (pansharpened will do)"
    return f"{sentence}; say which they are, counted from 1: {_ADVICE.get(info.count, _ADVICE[0])}"


_ADVICE = {
    0: "--bands red=R,green=G,blue=B",
    3: "--bands red=1,green=2,blue=3, in the file's order",
    4: "--bands red=3,green=2,blue=1 where the order is blue, green, red, near infrared",
    8: "--bands red=5,green=3,blue=2 where the order is that of WorldView's eight bands",
}


# --- reading -------------------------------------------------------------------------------------------


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
        f"the scene has {native_m:.3g} m per pixel where {resolution_m:g} m are wanted: it is mapped at its "
        "own resolution, at which slumps look smaller than what a model was trained for"
    )
    return RunGrid(grid.geobox, note if grid.note is None else f"{grid.note}; {note}")


def choose_level(info: RasterInfo, ratio: float, leave: float = 2.0) -> Level:
    """The version of the raster to warp from when `ratio` of its pixels make one target pixel.

    The coarsest overview still as fine as the target, 2 % slack for odd sizes, and of it as many whole
    pixels averaged as leave the warper at least `leave` a side.
    """
    factor, overview = _coarsest_overview(info, ratio)
    return Level(overview, max(1, int(ratio / factor / leave + 1e-6)))


def level_for(info: RasterInfo, geobox: GeoBox) -> Level:
    """`choose_level` for reading onto a grid; where whole pixels make one of the grid's, all at once.

    All blocks of one grid must be read with one level.
    """
    ratio = grids.shrink_ratio(geobox, info.geobox)
    factor, overview = _coarsest_overview(info, ratio)
    whole = Level(overview, max(1, round(ratio / factor)))
    if _whole_offset(level_geobox(info, whole), geobox) is not None:
        return whole
    return choose_level(info, ratio)


def _coarsest_overview(info: RasterInfo, ratio: float) -> tuple[int, int | None]:
    fitting = [(factor, i) for i, factor in enumerate(info.overviews) if factor <= ratio * 1.02]
    return max(fitting, default=(1, None))


def level_geobox(info: RasterInfo, level: Level) -> GeoBox:
    """Grid of a level; its last row and column may reach beyond the raster."""
    height, width = info.geobox.shape
    rows, cols = info.overview_shapes[level.overview] if level.overview is not None else (height, width)
    native = info.geobox.affine
    x_size, y_size = native.a * width / cols * level.boxcar, native.e * height / rows * level.boxcar
    affine = type(native)(x_size, 0.0, native.c, 0.0, y_size, native.f)
    return GeoBox((-(-rows // level.boxcar), -(-cols // level.boxcar)), affine, info.crs)


@stage("reading")
def read_level(info: RasterInfo, bands: Sequence[int], level: Level, window: Window) -> Patch:
    """Read `window`, in pixels of the level, with the raster's own validity; in bounded memory.

    What cannot be read is tried again; in the end ReadError.
    """
    place = level_geobox(info, level), window
    options = {} if level.overview is None else {"overview_level": level.overview}

    def read() -> Patch:
        with borrowed(info.dataset, **options) as src:
            if level.boxcar == 1:
                return Patch(*_read_pixels(src, info, bands, window), *place)
            return Patch(*_read_boxcar(src, info, bands, window, level.boxcar), *place)

    return patiently(read, info.dataset, info.path)


def read_native(info: RasterInfo, bands: Sequence[int], window: Window | None = None) -> Patch:
    """Read pixels as they are; `window` None means all."""
    return read_level(info, bands, Level(), window or Window(0, 0, *info.geobox.shape))


def read_picture(path: Path | str) -> tuple[tuple[str, ...], Floats, Bools]:
    """Names of bands, pixels and validity (C, H, W) of a small raster, which may have no place on Earth."""
    try:
        with opened(str(path)) as src:
            names = tuple(name or "" for name in src.descriptions)
            pixels = src.read().astype(np.float32)
            valid = (src.read_masks() > 0) & np.isfinite(pixels)
    except GDAL_ERRORS as exc:
        raise InputError(f"{path}: cannot be read as a raster ({exc})") from exc
    return names, np.where(valid, pixels, np.float32(0)), valid


def read_onto(
    path: Path | str | RasterInfo,
    bands: Sequence[int],
    geobox: GeoBox,
    *,
    resampling: str | None = None,
    level: Level | None = None,
) -> tuple[Floats, Bools]:
    """Read bands onto a grid: (pixels (C, H, W) float32, valid (H, W) bool); invalid pixels hold 0.

    `resampling` is "average", "bilinear" or "nearest"; None averages downwards and interpolates upwards.
    A target pixel is the weighted mean of the valid pixels under it, and valid when these have at least
    half of the weight. Where fill is not declared and an overview is read, pixels beside fill are invalid
    too, for the overview has mixed fill into them.
    """
    info = path if isinstance(path, RasterInfo) else probe(path)
    height, width = geobox.shape
    window = Window(1, 1, height + 1, width + 1)
    return read_window(
        info,
        bands,
        geobox.pad(1),
        window,
        resampling=resampling or natural_resampling(info, geobox),
        level=level or level_for(info, geobox),
    )


def natural_resampling(info: RasterInfo, geobox: GeoBox) -> str:
    """Average onto a grid that is coarser than the raster or equal, bilinear onto a finer one."""
    return "average" if grids.shrink_ratio(geobox, info.geobox) > 0.999 else "bilinear"


def read_window(
    info: RasterInfo, bands: Sequence[int], grid: GeoBox, window: Window, *, resampling: str, level: Level
) -> tuple[Floats, Bools]:
    """`read_onto` for a window of a larger grid: the same pixels whatever the window they are read with."""
    if any(not 1 <= band <= info.count for band in bands) or not bands:
        raise BandError(f"{info.path}: cannot read bands {tuple(bands)}; the file has 1..{info.count}")
    if not (info.fill_is_zero and level.overview is not None):
        return _read_in_strips(info, bands, grid, window, resampling=resampling, level=level)[:2]
    wide = grids.padded_window(window, 1, grid)
    pixels, valid, fill = _read_in_strips(info, bands, grid, wide, resampling=resampling, level=level)
    if fill is not None:
        valid &= ~binary_dilation(fill, np.ones((3, 3), bool))
    rows, cols = window.slices(wide)
    valid = valid[rows, cols]
    return np.where(valid, pixels[:, rows, cols], np.float32(0)), valid


def _read_in_strips(
    info: RasterInfo, bands: Sequence[int], grid: GeoBox, window: Window, *, resampling: str, level: Level
) -> Warped:
    """Read and warp some rows at a time, few enough to bound the memory."""
    source_grid = level_geobox(info, level)
    if (same := _window_of_same_pixels(source_grid, grid, window)) is not None:
        patch = read_level(info, bands, level, same)
        return patch.pixels, patch.valid, patch.fill
    hull = _hull(grid, window, source_grid, resampling)
    margin_px = grids.kernel_margin_px(grid, source_grid)
    whole = grids.covering_window(grids.window_geobox(grid, hull), source_grid, margin_px)
    strips = max(1, -(-whole.height * whole.width // _WARP_PX))
    rows = max(1, -(-window.height // strips))
    if grid.crs != source_grid.crs and resampling != "bilinear":
        rows = -(-rows // grids.CELL_PX) * grids.CELL_PX
    parts = []
    for row in range(window.row0, window.row1, rows):
        strip = Window(row, window.col0, min(row + rows, window.row1), window.col1)
        hull = _hull(grid, strip, source_grid, resampling)
        source = grids.covering_window(grids.window_geobox(grid, hull), source_grid, margin_px)
        if source.empty:
            parts.append(_nothing(len(bands), strip.shape))
        else:
            parts.append(warp(read_level(info, bands, level, source), grid, strip, resampling))
    if len(parts) == 1:
        return parts[0]
    fills = [np.zeros(valid.shape, np.bool_) if fill is None else fill for _, valid, fill in parts]
    return (
        np.concatenate([pixels for pixels, _, _ in parts], axis=1),
        np.concatenate([valid for _, valid, _ in parts]),
        np.concatenate(fills),
    )


def _window_of_same_pixels(source: GeoBox, grid: GeoBox, window: Window) -> Window | None:
    """Where the pixels of the source are those of the window: the pixels under it; else None."""
    if window.height * window.width > _WARP_PX:
        return None
    offset = _whole_offset(source, grids.window_geobox(grid, window))
    if offset is None:
        return None
    there = Window(offset[0], offset[1], offset[0] + window.height, offset[1] + window.width)
    return there if Window(0, 0, *source.shape).contains(there) else None


def _hull(grid: GeoBox, window: Window, source: GeoBox, resampling: str) -> Window:
    """What must be read to warp a window: all cells that it touches, where that goes by cells."""
    return window if resampling == "bilinear" else grids.warp_hull(grid, window, source)


def _nothing(count: int, shape: tuple[int, int]) -> Warped:
    return np.zeros((count, *shape), np.float32), np.zeros(shape, np.bool_), None


@stage("warping")
def warp(patch: Patch, grid: GeoBox, window: Window, resampling: str) -> Warped:
    """Warp onto a window of a grid, by the weight of the valid part: (pixels, valid, fill's weight > 0).

    Averages between two CRS go by fixed cells of the grid, and the patch must cover `grids.warp_hull`: GDAL
    approximates the way from one CRS to the other by the extent it is given, so that pixels would depend
    on the window.
    """
    target = grids.window_geobox(grid, window)
    if (offset := _whole_offset(patch.geobox, target)) is not None:
        return _copy(patch, target, offset)
    if resampling == "bilinear":
        return _interpolate(patch, grid, window)
    if patch.geobox.crs == grid.crs:
        return _warp(patch, target, resampling)
    pixels, valid, _ = _nothing(len(patch.pixels), window.shape)
    fill = None if patch.fill is None else np.zeros(window.shape, np.bool_)
    margin_px = grids.kernel_margin_px(grid, patch.geobox)
    for cell in grids.cells(grid, window):
        target = grids.window_geobox(grid, cell)
        source = grids.covering_window(target, patch.geobox, margin_px)
        if source.empty:
            continue
        cell_pixels, cell_valid, cell_fill = _warp(_crop(patch, source), target, resampling)
        shared = cell.intersection(window)
        to, start = shared.slices(window), shared.slices(cell)
        valid[to] = cell_valid[start]
        for plane, cell_plane in zip(pixels, cell_pixels, strict=True):
            plane[to] = cell_plane[start]
        if fill is not None and cell_fill is not None:
            fill[to] = cell_fill[start]
    return pixels, valid, fill


def _interpolate(patch: Patch, grid: GeoBox, window: Window) -> Warped:
    """Bilinear: a pixel is the mean of the valid ones of the four around it, by their weight."""
    count, place = len(patch.pixels), (patch.level, patch.window, grid, window)
    if patch.valid.all():
        pixels, share = interpolate(patch.pixels, *place)
        if share.min(initial=1.0) == 1:
            fill = None if patch.fill is None else np.zeros(window.shape, np.bool_)
            return pixels, np.ones(window.shape, np.bool_), fill
    found, share = interpolate(_weighed(patch), *place)
    weight = found[count]
    # all four: the same to the last bit as where nothing is missing in the whole patch
    weight[weight > 1 - 1e-6] = 1
    valid = (share > 0) & (weight >= (_LEAST_VALID_SHARE - 1e-4) * share)
    pixels = np.where(valid, found[:count] / np.where(valid, weight, 1), np.float32(0))
    return pixels, valid, None if patch.fill is None else found[count + 1] > 0.01 * share


def _weighed(patch: Patch) -> Floats:
    """Pixels with 0 where they are not data, then the weights of data, and of fill if any."""
    count = len(patch.pixels)
    planes = np.empty((count + 1 + (patch.fill is not None), *patch.valid.shape), np.float32)
    np.multiply(patch.pixels, patch.valid, out=planes[:count])
    planes[count] = patch.valid
    if patch.fill is not None:
        planes[count + 1] = patch.fill
    return planes


def _crop(patch: Patch, window: Window) -> Patch:
    rows, cols = window.slices()
    fill = None if patch.fill is None else patch.fill[rows, cols]
    place = window.shifted(patch.window.row0, patch.window.col0)
    return Patch(patch.pixels[:, rows, cols], patch.valid[rows, cols], fill, patch.level, place)


def _warp(patch: Patch, geobox: GeoBox, resampling: str) -> Warped:
    count, planes = len(patch.pixels), _weighed(patch)
    warped = np.zeros((len(planes), *geobox.shape), np.float32)
    reproject(
        planes,
        warped,
        src_transform=patch.geobox.affine,
        src_crs=_rasterio_crs(patch.geobox.crs),
        dst_transform=geobox.affine,
        dst_crs=_rasterio_crs(geobox.crs),
        resampling=Resampling[resampling],
        warp_mem_limit=_WARP_MEMORY_MB,
        # Without these GDAL sizes its kernel by the window at hand, and blocks would differ.
        XSCALE=1,
        YSCALE=1,
    )
    share = warped[count]
    valid = share >= _LEAST_VALID_SHARE - 1e-4
    pixels = np.where(valid, warped[:count] / np.where(valid, share, 1), np.float32(0))
    return pixels, valid, None if patch.fill is None else warped[count + 1] > 0.01


@lru_cache(maxsize=64)
def _rasterio_crs(crs: CRS) -> Any:
    return rasterio.CRS.from_wkt(crs.to_wkt())


def _whole_offset(source: GeoBox, target: GeoBox) -> tuple[int, int] | None:
    """(row, col) of the target's corner in a source of the same pixels; None where pixels differ."""
    if source.crs != target.crs:
        return None
    height, width = target.shape
    rows, cols = grids.to_pixels(target, source, [0, height], [0, width])
    row, col = round(rows[0]), round(cols[0])
    drifts = (rows[0] - row, cols[0] - col, rows[1] - row - height, cols[1] - col - width)
    return (row, col) if max(abs(drift) for drift in drifts) < 1e-4 else None


def _copy(patch: Patch, geobox: GeoBox, offset: tuple[int, int]) -> Warped:
    target = Window(0, 0, *geobox.shape)
    source = Window(0, 0, *patch.valid.shape).shifted(-offset[0], -offset[1])
    shared = target.intersection(source)
    to, start = shared.slices(), shared.slices(source)
    pixels = np.zeros((len(patch.pixels), *target.shape), np.float32)
    valid = np.zeros(target.shape, np.bool_)
    for plane, given in zip(pixels, patch.pixels, strict=True):
        plane[to] = given[start] * patch.valid[start]
    valid[to] = patch.valid[start]
    if patch.fill is None:
        return pixels, valid, None
    fill = np.zeros(target.shape, np.bool_)
    fill[to] = patch.fill[start]
    return pixels, valid, fill


def _read_pixels(
    src: Any, info: RasterInfo, bands: Sequence[int], window: Window
) -> tuple[Floats, Bools, Bools | None]:
    """Pixels with 0 where they are not data, validity, and undeclared fill (None: there is none)."""
    where = RasterioWindow(window.col0, window.row0, window.width, window.height)
    data = src.read(list(bands), window=where)
    valid = np.ones(window.shape, np.bool_)
    if info.has_alpha:
        valid &= _is_opaque(src.read(_alpha_band(src), window=where))
    elif info.has_mask:
        valid &= src.read_masks(1, window=where) >= 128
    elif info.nodata is not None:
        empty = _equals_nodata(data, info.nodata)
        # 0 or 255 in one band may be dark or bright ground, -9999 is no ground at all
        valid &= ~(empty.any(axis=0) if info.nodata < 0 else empty.all(axis=0))
    if data.dtype.kind == "f":
        valid &= np.isfinite(data).all(axis=0)
    fill = None
    if info.believable is not None:
        lowest, highest = info.believable
        strange = valid & ((data < lowest) | (data > highest)).any(axis=0)
        if strange.any():
            fill = strange
            valid &= ~strange
    if info.fill_is_zero and info.nodata != 0 and len(bands) >= min(3, info.count) and not data.all():
        zeros = valid & ~data.any(axis=0)
        if zeros.any():
            fill = zeros
            valid &= ~zeros
    if not valid.all():
        data[:, ~valid] = 0
    return data.astype(np.float32), valid, fill


def _is_opaque(alpha: npt.NDArray[Any]) -> Bools:
    """Alpha of at least one half of what GDAL writes for opaque; anything above 0 of other types."""
    whole = {"uint8": 255, "uint16": 65535, "int16": 32767}.get(alpha.dtype.name)
    return np.asarray(alpha > 0 if whole is None else alpha > whole // 2, np.bool_)


def _equals_nodata(data: npt.NDArray[Any], nodata: float) -> Bools:
    if data.dtype.kind == "f":
        with np.errstate(over="ignore"):
            value = data.dtype.type(nodata)
        return np.asarray(np.isclose(data, value, rtol=1e-6, atol=0) | (data == value), np.bool_)
    return np.asarray(data == nodata, np.bool_)


def _read_boxcar(
    src: Any, info: RasterInfo, bands: Sequence[int], window: Window, boxcar: int
) -> tuple[Floats, Bools, Bools | None]:
    """Means of `boxcar` x `boxcar` pixels, read in strips of whole blocks so that each block comes once."""
    size = Window(0, 0, src.height, src.width)
    wide = Window(window.row0 * boxcar, window.col0 * boxcar, window.row1 * boxcar, window.col1 * boxcar)
    wide = wide.intersection(size)
    pixels = np.zeros((len(bands), *window.shape), np.float32)
    share = np.zeros(window.shape, np.float32)
    filled = np.zeros(window.shape, np.bool_)
    rows = max(1, _STRIP_PX // max(1, wide.width * len(bands)) // boxcar)
    for row in range(0, window.height, rows):
        end = min(row + rows, window.height)
        top, bottom = (window.row0 + row) * boxcar, (window.row0 + end) * boxcar
        strip = Window(top, wide.col0, min(bottom, size.row1), wide.col1)
        values, valid, fill = _read_pixels(src, info, bands, strip)
        inside = _block_sizes(strip, boxcar)
        count = inside if valid.all() else _block_sums(valid[None].astype(np.float32), boxcar)[0]
        pixels[:, row:end] = _block_sums(values, boxcar) / np.maximum(count, 1)
        share[row:end] = count / inside
        if fill is not None:
            filled[row:end] = _block_sums(fill[None].astype(np.float32), boxcar)[0] > 0
    valid = share >= _LEAST_VALID_SHARE
    pixels[:, ~valid] = 0
    return pixels, valid, filled if filled.any() else None


def _block_sums(values: Floats, size: int) -> Floats:
    """Sums over size x size blocks of (C, H, W); blocks at the far edges may be cut."""
    count, height, width = values.shape
    down, right = -height % size, -width % size
    if down or right:
        values = np.pad(values, ((0, 0), (0, down), (0, right)))
    rows = _add_up(np.moveaxis(values.reshape(count, -1, size, width + right), 2, 0))
    return _add_up(np.moveaxis(rows.reshape(count, rows.shape[1], -1, size), 3, 0))


def _add_up(parts: Floats) -> Floats:
    """Sum along the first axis; several times faster than numpy's for strided axes of a few."""
    total: Floats = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total


def _block_sizes(window: Window, size: int) -> Floats:
    """Pixels in each of the blocks that `_block_sums` adds up; `window` begins with a whole block."""
    rows = np.minimum(size, window.height - np.arange(0, window.height, size))
    cols = np.minimum(size, window.width - np.arange(0, window.width, size))
    return np.asarray(np.outer(rows, cols), np.float32)


# --- writing -------------------------------------------------------------------------------------------


def write_geotiff(
    path: Path | str,
    array: npt.NDArray[Any],
    geobox: GeoBox,
    *,
    nodata: float | None = None,
    valid: Bools | None = None,
    band_names: Sequence[str] = (),
    overviews: bool = False,
    block_px: int = 256,
) -> None:
    """Write (C, H, W) or (H, W) as a tiled, compressed GeoTIFF: complete under its name, or not there.

    `valid` becomes the file's mask. Bands named red, green, blue are marked as colours.
    """
    bands = array[None] if array.ndim == 2 else array
    if bands.shape[1:] != tuple(geobox.shape):
        raise GridMismatchError(f"{path}: array of {bands.shape[1:]} on a grid of {tuple(geobox.shape)}")
    write_geotiff_blocks(
        path,
        [(Window(0, 0, *bands.shape[1:]), bands)],
        geobox,
        count=len(bands),
        dtype=str(bands.dtype),
        nodata=nodata,
        valid=valid,
        band_names=band_names,
        overviews=overviews,
        block_px=block_px,
    )


def write_geotiff_blocks(
    path: Path | str,
    blocks: Iterable[tuple[Window, npt.NDArray[Any]]],
    geobox: GeoBox,
    *,
    count: int,
    dtype: str,
    nodata: float | None = None,
    valid: Bools | None = None,
    band_names: Sequence[str] = (),
    overviews: bool = False,
    block_px: int = 256,
) -> None:
    """`write_geotiff` for scenes larger than memory: (window, pixels (C, h, w)) one after the other."""
    rgb = tuple(band_names[:3]) == ("red", "green", "blue")
    profile = _profile(geobox, count=count, dtype=dtype, nodata=nodata, rgb=rgb, block_px=block_px)
    factors = _overview_factors(tuple(geobox.shape), block_px) if overviews else []
    with whole_raster(Path(path), overwrite=True) as temporary:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            with rasterio.open(temporary, "w", **profile) as dst:
                _name_bands(dst, band_names)
                for window, pixels in blocks:
                    where = RasterioWindow(window.col0, window.row0, window.width, window.height)
                    dst.write(pixels, window=where)
                if valid is not None:
                    dst.write_mask(valid)
            if factors:
                with rasterio.open(temporary, "r+") as dst:
                    dst.build_overviews(factors, Resampling.average)
        _check_written(temporary, factors, valid)


@contextmanager
def whole_raster(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """`whole_file` for rasters, which are read through before they take their name.

    GDAL writes the last blocks when it closes a file, and rasterio does not tell when there is no room for
    them. Raises WriteError, which says what went wrong.
    """
    with whole_file(path, overwrite=overwrite) as temporary:
        try:
            yield temporary
            _read_through(temporary)
        # rasterio.shutil.copy ends in a SystemError when GDAL does not say why it failed
        except (*GDAL_ERRORS, SystemError, OSError, WriteError) as exc:
            raise WriteError(
                f"{path}: cannot be written ({innermost(exc)}). Free some space, or name another place; then "
                "run the same command again"
            ) from exc


def _read_through(path: Path) -> None:
    """Raise WriteError or one of GDAL's for a GeoTIFF with a block that is missing or cannot be read."""
    with rasterio.open(path) as src:
        levels = range(len(src.overviews(1)))
        _read_blocks(src)
    for level in levels:
        with rasterio.open(path, overview_level=level) as src:
            _read_blocks(src)


def _read_blocks(src: Any) -> None:
    for (row, col), window in src.block_windows(1):
        if src.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", 1) is None:
            raise WriteError("pixels are missing")
        src.read(window=window)


def _check_written(path: Path, factors: Sequence[int], valid: Bools | None) -> None:
    """Raise WriteError where overviews or the mask, which come last, did not come about."""
    with rasterio.open(path) as src:
        if src.overviews(1) != list(factors):
            raise WriteError("overviews are missing")
        if valid is not None and not np.array_equal(src.read_masks(1) > 0, valid):
            raise WriteError("its mask is missing")


def _profile(
    geobox: GeoBox, *, count: int, dtype: str, nodata: float | None, rgb: bool, block_px: int
) -> dict[str, Any]:
    block = max(16, block_px // 16 * 16)
    return {
        "driver": "GTiff",
        "height": geobox.shape[0],
        "width": geobox.shape[1],
        "count": count,
        "dtype": dtype,
        "crs": geobox.crs.to_wkt() if geobox.crs else None,
        "transform": geobox.affine if geobox.crs else None,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": block,
        "blockysize": block,
        "compress": "deflate",
        "predictor": 3 if np.dtype(dtype).kind == "f" else 2,
        "interleave": "pixel" if count > 1 else "band",
        "photometric": "RGB" if rgb else "MINISBLACK",
        "bigtiff": "IF_SAFER",
    }


def _name_bands(dst: Any, band_names: Sequence[str]) -> None:
    for index, name in enumerate(band_names, 1):
        dst.set_band_description(index, name)
    if tuple(band_names[:3]) == ("red", "green", "blue"):
        rest = [ColorInterp.undefined] * (dst.count - 3)
        dst.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, *rest]


def _overview_factors(shape: tuple[int, int], block_px: int) -> list[int]:
    factors: list[int] = []
    while max(shape) / 2 ** len(factors) > block_px:
        factors.append(2 ** (len(factors) + 1))
    return factors

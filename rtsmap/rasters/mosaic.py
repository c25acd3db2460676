"""Elevation models in one file or several: found, checked, and read as one raster.

Tiles are laid out once, by their headers, in the text of a GDAL virtual raster. It is what readers open for
each window, and GDAL opens of its tiles only those that the window meets. So pixels come from tiles before
anything is computed from them, and a joint of two tiles is like any other place.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, isnan
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from odc.geo.geobox import GeoBox

from rtsmap.errors import BandError, GridMismatchError, InputError
from rtsmap.rasters import grids, sources, terrain
from rtsmap.rasters.acquisition import strip_date
from rtsmap.rasters.fingerprints import fingerprint
from rtsmap.rasters.opening import absolute, local_path
from rtsmap.rasters.sources import RasterInfo
from rtsmap.rasters.tiling import Window

DemFiles = Path | str | Sequence[Path | str]
"""One file, a pattern such as `tiles/*_dem.tif`, or several of both."""

_COMPANION = re.compile(r"_(browse|count|mad|maxdate|mindate|datamask|bitmask|matchtag)\.\w+$", re.IGNORECASE)
_NODATA = -9999.0
_DRIFT_PX = 0.01
_SEAM_PX = 0.1
_MARGIN_PX = 16


@dataclass(frozen=True, slots=True)
class ElevationModel:
    """An elevation model: `info` is what is read, `tiles` its files.

    Where tiles overlap, the first of them with data counts. They stand from north to south, then from west
    to east, then by name: the order in which they were given has no effect. `notes` say what was left out.

    ArcticDEM's companions, where they lie beside the tiles: `masks` (of each tile, or None) tell measured
    elevation from filled, which is not read; `dates` are rasters of the first and the last day (counted from
    2000-01-01, 0 unknown) of the data at a pixel. `taken` are tiles, strips, whose names hold a date.
    """

    info: RasterInfo
    tiles: tuple[RasterInfo, ...]
    notes: tuple[str, ...]
    masks: tuple[RasterInfo | None, ...] = ()
    dates: tuple[RasterInfo, RasterInfo] | None = None
    taken: tuple[tuple[RasterInfo, str], ...] = ()

    @property
    def paths(self) -> str | list[str]:
        """The file, or the files in order."""
        return self.tiles[0].path if len(self.tiles) == 1 else [tile.path for tile in self.tiles]

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the content: of one file its own fingerprint, of several all of theirs."""
        prints = [fingerprint(tile.path) for tile in self.tiles]
        for found, mask in zip(prints, self.masks, strict=False):
            if mask is not None:
                found["datamask"] = fingerprint(mask.path)
        return prints[0] if len(prints) == 1 else {f"tile_{i}": found for i, found in enumerate(prints, 1)}


def open_elevation(dem: DemFiles | ElevationModel, near: GeoBox) -> ElevationModel:
    """Look at the files of an elevation model; of several, those away from the grid `near` are left out.

    Files that cannot be one raster are refused: GridMismatchError for those of different CRS or pixels,
    BandError for those with more than one band or with heights written differently.
    """
    if isinstance(dem, ElevationModel):
        return dem
    names, notes = _find(dem)
    tiles = tuple(sorted((sources.probe(name) for name in names), key=_precedence))
    for tile in tiles:
        _refuse_colours(tile)
        _refuse_other_crs(tiles[0], tile)
    met = tuple(tile for tile in tiles if _meets(near, tile)) or tiles[:1]
    for tile in met[1:]:
        _refuse_other_pixels(met[0], tile)
    if len(met) < len(tiles):
        notes.append(f"{len(tiles) - len(met)} of {len(tiles)} DEM files lie away from the scene: not used")
    masks = tuple(_companion(tile, "datamask", notes) for tile in met)
    info = _as_one(met, masks) if len(met) > 1 or any(masks) else met[0]
    reach_px = ceil(_reach_m(near) / min(grids.ground_pixel_m(near)))
    twice = grids.lies_across_edge(near.pad(reach_px), info.geobox)
    if twice:
        info = _as_one(met, masks, twice=True)
    dates = _dates(met, notes, twice=twice)
    dated = ((tile, strip_date(tile.path)) for tile in met)
    taken = tuple((tile, found) for tile, found in dated if found is not None)
    if any(masks):
        notes.append("the DEM's datamask tells measured from filled elevation: filled is not used")
    if dates is None and not taken:
        notes.append("nothing tells when the DEM was taken")
    if len(met) > 1:
        notes.append(
            f"the DEM is {len(met)} files; where they overlap, the northernmost, then westernmost counts"
        )
    return ElevationModel(info, met, tuple(notes), masks, dates, taken)


def _as_one(
    tiles: Sequence[RasterInfo],
    masks: Sequence[RasterInfo | None],
    nodata: float = _NODATA,
    *,
    twice: bool = False,
) -> RasterInfo:
    """One raster of all tiles; `twice` around the Earth, so that neither of its ends is near the grid."""
    label = tiles[0].path if len(tiles) == 1 else f"{tiles[0].path} and {len(tiles) - 1} more"
    validity = tuple(dict.fromkeys(note for tile in tiles for note in tile.notes))
    text = _virtual_raster(tiles, masks, nodata, twice=twice)
    return replace(sources.probe_text(text, label), notes=validity)


def _dates(
    tiles: Sequence[RasterInfo], notes: list[str], *, twice: bool
) -> tuple[RasterInfo, RasterInfo] | None:
    """Rasters of the first and the last day of the data, over those tiles that have both."""
    pairs = [(_companion(tile, "mindate", notes), _companion(tile, "maxdate", notes)) for tile in tiles]
    whole = [(first, last) for first, last in pairs if first is not None and last is not None]
    if not whole:
        return None
    nothing = (None,) * len(whole)
    firsts, lasts = [first for first, _ in whole], [last for _, last in whole]
    return _as_one(firsts, nothing, 0.0, twice=twice), _as_one(lasts, nothing, 0.0, twice=twice)


def _companion(tile: RasterInfo, what: str, notes: list[str]) -> RasterInfo | None:
    """A raster beside an ArcticDEM tile, by its name; one that is not of the tile's pixels is not used."""
    name, replaced = re.subn(r"_dem(\.\w+)$", rf"_{what}\1", tile.path)
    if not replaced or ((file := local_path(name)) and not file.exists()):
        return None
    try:
        found = sources.probe(name)
    except InputError:
        return None
    if found.geobox != tile.geobox or found.count != 1:
        notes.append(f"{name}: its pixels are not those of {Path(tile.path).name}: not used")
        return None
    return found


def find_files(dem: DemFiles) -> list[str]:
    """Names of the files that are meant, each once; InputError where a pattern matches none."""
    return _find(dem)[0]


def _find(dem: DemFiles) -> tuple[list[str], list[str]]:
    """Names of the files, each once, and notes about those left out."""
    given = [str(dem)] if isinstance(dem, (str, Path)) else [str(name) for name in dem]
    found: dict[str, str] = {}
    left_out = 0
    for name in given:
        matches = _matches(name)
        kept = [match for match in matches if match == name or not _COMPANION.search(match)]
        left_out += len(matches) - len(kept)
        found |= {absolute(match): match for match in kept}
    if not found:
        raise InputError(
            f"no elevation model is named by {given}; name files, or a pattern that matches some, in quotes"
        )
    notes = [
        f"{left_out} companions of the DEM (dates, masks, counts) are not elevation, and not read as such"
    ]
    return list(found.values()), notes if left_out else []


def _matches(name: str) -> list[str]:
    file = local_path(name)
    if file is None or file.exists() or not glob.has_magic(name):
        return [name]
    matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - a pattern may be absolute
    if not matches:
        raise InputError(f"no file matches the pattern {name}; check the folder, and put it in quotes")
    return matches


def _precedence(tile: RasterInfo) -> tuple[Any, ...]:
    box = tile.geobox.boundingbox
    return -box.top, box.left, -box.bottom, box.right, Path(tile.path).name, tile.path


def _meets(grid: GeoBox, tile: RasterInfo) -> bool:
    """Whether the tile holds what terrain on the grid may need."""
    margin_px = ceil(_reach_m(grid) / min(grids.ground_pixel_m(tile.geobox)))
    return not grids.covering_window(grid, tile.geobox, margin_px).empty


def _reach_m(grid: GeoBox) -> float:
    """How far beyond the grid terrain on it looks."""
    return float(1.1 * terrain.BUFFER_M + _MARGIN_PX * max(grids.ground_pixel_m(grid)))


def _refuse_colours(tile: RasterInfo) -> None:
    if tile.count - tile.has_alpha != 1:
        raise BandError(
            f"{tile.path}: an elevation model has one band, this file has {tile.count}; "
            "pick one: gdal_translate -b 1 IN OUT.tif"
        )


def _refuse_other_crs(first: RasterInfo, tile: RasterInfo) -> None:
    if first.crs != tile.crs and (first.crs.epsg is None or first.crs.epsg != tile.crs.epsg):
        names = f"{grids.crs_name(first.crs)} and {grids.crs_name(tile.crs)}"
        raise GridMismatchError(
            f"{_both(first, tile)}: they are in {names}. Wanted is one CRS; "
            "warp one of them first: gdalwarp -t_srs EPSG:CODE -tap -tr SIZE SIZE IN OUT.tif"
        )


def _refuse_other_pixels(first: RasterInfo, tile: RasterInfo) -> None:
    """Refuse files that cannot lie in one raster without resampling, or whose heights are not alike."""
    for info in (first, tile):
        if info.dataset != info.path:
            raise GridMismatchError(
                f"{_both(first, tile)}: {info.path} does not lie north up; turn it first: gdalwarp IN OUT.tif"
            )
    sizes = [(abs(info.geobox.affine.a), abs(info.geobox.affine.e)) for info in (first, tile)]
    apart = max(abs(mine / his - 1) for mine, his in zip(*sizes, strict=True))
    if apart * max(tile.geobox.shape) > _DRIFT_PX:
        raise GridMismatchError(
            f"{_both(first, tile)}: their pixels are {sizes[0][0]:g} and {sizes[1][0]:g} wide; "
            "give files of one resolution"
        )
    row, col = _place(first.geobox, tile.geobox)
    if max(abs(row - round(row)), abs(col - round(col))) > _DRIFT_PX:
        raise GridMismatchError(
            f"{_both(first, tile)}: their pixels do not lie on one grid (off by {row - round(row):.2f} rows "
            f"and {col - round(col):.2f} columns); align them first: gdalwarp -tap -tr SIZE SIZE IN OUT.tif"
        )
    heights = [(info.unit, info.scale, info.offset) for info in (first, tile)]
    if heights[0] != heights[1]:
        raise BandError(
            f"{_both(first, tile)}: heights are written with (unit, scale, offset) {heights[0]} and "
            f"{heights[1]}; wanted the same: gdal_translate -unscale IN OUT.tif"
        )


def _both(first: RasterInfo, tile: RasterInfo) -> str:
    return f"{first.path} and {tile.path} cannot be one elevation model"


def _place(origin: GeoBox, other: GeoBox) -> tuple[float, float]:
    """(row, col) of the upper left corner of `other` in pixels of `origin`, the shorter way round."""
    start, corner = origin.affine, other.affine
    right = corner.c - start.c
    if origin.crs.geographic:
        right -= 360 * round(right / 360)
    return (corner.f - start.f) / start.e, right / start.a


def _virtual_raster(
    tiles: Sequence[RasterInfo], masks: Sequence[RasterInfo | None], nodata: float, *, twice: bool
) -> str:
    """The text of a VRT over all tiles; the first tiles come last in it, for GDAL paints one over another."""
    first = tiles[0]
    offsets = [tuple(round(v) for v in _place(first.geobox, tile.geobox)) for tile in tiles]
    row0, col0 = (min(offset[axis] for offset in offsets) for axis in (0, 1))
    windows = [
        Window(row - row0, col - col0, row - row0 + tile.geobox.shape[0], col - col0 + tile.geobox.shape[1])
        for (row, col), tile in zip(offsets, tiles, strict=True)
    ]
    if twice:
        windows = [window.shifted(0, cols) for window in windows for cols in (0, _turn_px(first))]
        tiles, masks = [tile for tile in tiles for _ in (0, 1)], [mask for mask in masks for _ in (0, 1)]
    affine = first.geobox.affine
    left, top = affine.c + col0 * affine.a, affine.f + row0 * affine.e
    wide = any(np.dtype(tile.dtype).itemsize > 2 and tile.dtype != "float32" for tile in tiles)
    parts = [
        _tile_text(tile, window, mask, nodata)
        for tile, window, mask in zip(tiles, windows, masks, strict=True)
    ]
    height, width = max(window.row1 for window in windows), max(window.col1 for window in windows)
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">'
        f"<SRS>{escape(first.crs.to_wkt())}</SRS>"
        f"<GeoTransform>{left!r}, {affine.a!r}, 0, {top!r}, 0, {affine.e!r}</GeoTransform>"
        f'<VRTRasterBand dataType="{"Float64" if wide else "Float32"}" band="1">'
        f"<NoDataValue>{nodata}</NoDataValue><UnitType>{escape(first.unit)}</UnitType>"
        f"<Offset>{first.offset!r}</Offset><Scale>{first.scale!r}</Scale>"
        f"{''.join(reversed(parts))}</VRTRasterBand>{_overviews_text(tiles, windows)}</VRTDataset>"
    )


def _turn_px(tile: RasterInfo) -> int:
    """Columns once around the Earth."""
    turn_px = float(360 / tile.geobox.affine.a)
    if abs(turn_px - round(turn_px)) > _SEAM_PX:
        raise GridMismatchError(
            f"{tile.path}: the scene lies on both sides of its edge, where its pixels do not meet: "
            f"{turn_px:.2f} of them go around the Earth, wanted a whole number. Warp what the scene needs of "
            "it into the scene's CRS: gdalwarp -t_srs EPSG:CODE -te LEFT BOTTOM RIGHT TOP IN OUT.tif"
        )
    return round(turn_px)


def _overviews_text(tiles: Sequence[RasterInfo], windows: Sequence[Window]) -> str:
    """Those overviews that every tile has and whose pixels are whole in every tile."""
    shared = set(tiles[0].overviews).intersection(*(tile.overviews for tile in tiles))
    edges = [edge for window in windows for edge in (window.row0, window.col0, *window.shape)]
    factors = [factor for factor in sorted(shared) if all(edge % factor == 0 for edge in edges)]
    return f"<OverviewList>{' '.join(map(str, factors))}</OverviewList>" if factors else ""


def _tile_text(tile: RasterInfo, window: Window, mask: RasterInfo | None, nodata: float) -> str:
    """One tile of a VRT. What the tile itself tells of its size keeps GDAL from opening it too early."""
    height, width = window.shape
    rows, cols = tile.block_shape
    name = escape(_gdal_name(tile.path) if mask is None else _masked_text(tile, mask))
    return (
        f'<ComplexSource><SourceFilename relativeToVRT="0" shared="0">{name}</SourceFilename>'
        f"<SourceBand>1</SourceBand>"
        f'<SourceProperties RasterXSize="{width}" RasterYSize="{height}" '
        f'DataType="{_GDAL_TYPES.get(tile.dtype, "Float64")}" BlockXSize="{cols}" BlockYSize="{rows}"/>'
        f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
        f'<DstRect xOff="{window.col0}" yOff="{window.row0}" xSize="{width}" ySize="{height}"/>'
        f"{_validity_text(tile, mask, nodata)}</ComplexSource>"
    )


def _masked_text(tile: RasterInfo, mask: RasterInfo) -> str:
    """A VRT of one tile whose validity is what its mask says: 0 is no data."""
    height, width = tile.geobox.shape
    kind = _GDAL_TYPES.get(tile.dtype, "Float64")

    def source(info: RasterInfo, content: str) -> str:
        name = escape(_gdal_name(info.path))
        return (
            f'<ComplexSource><SourceFilename relativeToVRT="0" shared="0">{name}</SourceFilename>'
            f"<SourceBand>1</SourceBand>{content}</ComplexSource>"
        )

    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">'
        f'<VRTRasterBand dataType="{kind}" band="1">{source(tile, "")}</VRTRasterBand>'
        f'<MaskBand><VRTRasterBand dataType="Byte">{source(mask, "<LUT>0:0,1:255</LUT>")}</VRTRasterBand>'
        "</MaskBand></VRTDataset>"
    )


def _gdal_name(path: str) -> str:
    """What GDAL calls a file: an absolute path, or one of its virtual file systems."""
    if local_path(path):
        return absolute(path)
    scheme, _, rest = path.partition("://")
    if scheme in {"http", "https", "ftp"}:
        return f"/vsicurl/{path}"
    return f"{_VSI[scheme]}{rest}" if scheme in _VSI else path


def _validity_text(tile: RasterInfo, mask: RasterInfo | None, undeclared: float) -> str:
    if mask is not None or tile.has_alpha or tile.has_mask:
        return "<UseMaskBand>true</UseMaskBand>"
    nodata = undeclared if tile.nodata is None else tile.nodata
    return f"<NODATA>{'nan' if isnan(nodata) else repr(nodata)}</NODATA>"


_VSI = {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}
_GDAL_TYPES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "float32": "Float32",
    "float64": "Float64",
}

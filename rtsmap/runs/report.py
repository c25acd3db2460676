"""A page for looking at a map: where footprints are, each on imagery and relief, and what is unsure first."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from PIL import Image
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

from rtsmap.errors import InputError, OptionsError
from rtsmap.instances.coverage import MAPPED
from rtsmap.rasters import sources
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from rtsmap.rasters.chips import ChipReader, Layer
from rtsmap.rasters.mosaic import DemFiles
from rtsmap.rasters.radiometry import Radiometry
from rtsmap.rasters.tiling import Window
from rtsmap.runs.progress import Progress, silent
from rtsmap.runs.report_page import Card, Outline, Overview, Page, page_html
from rtsmap.vectors.atomic import refuse_existing, whole_file
from rtsmap.vectors.geopackage import MapLayers, read_layers, refuse_many

OVERVIEW_PX = 1000
CROP_PX = 256
GALLERY = 200
"""Footprints with pictures, unless told otherwise; a page of so many has about 6 MB."""

DOTS = 50_000
"""Further footprints on the overview, each as a dot."""

_LEAST_CROP_M = 240.0
_AROUND = 1.8
_RELIEF_CONTRAST_DN = 40.0


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What a report shows: `shown` of `footprints` in the gallery, and notes for people."""

    out: Path
    footprints: int
    shown: int
    notes: tuple[str, ...]


def write_report(
    gpkg: Path | str,
    out: Path | str,
    *,
    scene: Path | str | None = None,
    dem: DemFiles | None = None,
    limit: int = GALLERY,
    bands: Mapping[str, int] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> ReportFacts:
    """Write one HTML file that needs nothing else: no network, no other file.

    It shows the `limit` most uncertain footprints of the map with pictures, most uncertain first. Scene, DEM
    and bands are those that the map was made from unless told. Raises InputError for files that cannot be
    used, or when `out` exists and `overwrite` is false.
    """
    gpkg, out = Path(gpkg), Path(out)
    if not 1 <= limit <= 5000:
        raise OptionsError(f"limit must be within 1..5000 footprints with pictures, got {limit}")
    if out.suffix.lower() not in {".html", ".htm"}:
        raise OptionsError(f"{out}: a report is written as .html")
    refuse_existing(out, overwrite=overwrite)
    layers = read_layers(gpkg)
    record = layers.run_record
    scene = scene or _recorded(record, "scene")
    if scene is None:
        refuse_many(gpkg, record, "a report")
        raise InputError(f"{gpkg}: the scene is not where it was when the map was made; name it with --scene")
    dem = dem or _recorded(record, "dem")
    bands = bands or record.get("plan", {}).get("options", {}).get("bands") or None
    pictures = _Pictures(scene, dem, bands)
    notes = _differences(scene, record)
    ranked = _ranked(layers).to_crs(pictures.crs.proj)
    overview = _overview(pictures, ranked, layers.coverage.to_crs(pictures.crs.proj), limit)
    cards = []
    shown = ranked.head(limit)
    for row, shape in zip(shown.drop(columns="geometry").to_dict("records"), shown.geometry, strict=True):
        cards.append(_card(pictures, row, shape))
        progress("pictures", len(cards), len(shown))
    page = Page(
        name=gpkg.name,
        record=record,
        scene=Path(str(scene)).name,
        has_relief=dem is not None,
        overview=overview,
        cards=tuple(cards),
        scores=layers.footprints["score"].to_numpy(),
        areas_m2=layers.footprints["area_m2"].to_numpy(),
        coverage=tuple(layers.coverage.drop(columns="geometry").itertuples(index=False, name=None)),
        notes=notes,
    )
    with whole_file(out, overwrite=overwrite) as temporary:
        temporary.write_text(page_html(page), encoding="utf-8")
    return ReportFacts(out, len(layers.footprints), len(cards), notes)


def uncertainty(score: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Entropy of a score in bits: 1 at 0.5, 0 where it is sure."""
    clipped = np.clip(np.asarray(score, np.float64), 1e-12, 1 - 1e-12)
    bits: npt.NDArray[np.float64] = -(clipped * np.log2(clipped) + (1 - clipped) * np.log2(1 - clipped))
    return bits


def _recorded(record: Mapping[str, Any], what: str) -> Any:
    """Path of an input where it still is."""
    found = record.get("paths", {}).get(what)
    files = [found] if isinstance(found, str) else found or []
    there = all("://" in name or name.startswith("/vsi") or Path(name).exists() for name in files)
    return found if files and there else None


def _differences(scene: Path | str, record: Mapping[str, Any]) -> tuple[str, ...]:
    made_from = record.get("plan", {}).get("inputs", {}).get("scene")
    if made_from is None or sources.fingerprint(scene) == made_from:
        return ()
    return (f"{Path(str(scene)).name} is not the very file that the map was made from",)


def _ranked(layers: MapLayers) -> Any:
    frame = layers.footprints
    unsure = frame.assign(uncertainty=uncertainty(frame["score"].to_numpy()))
    return unsure.sort_values(["uncertainty", "id"], ascending=[False, True], kind="stable")


class _Pictures:
    """Reads the inputs at the zoom that a picture wants: each zoom has half the pixels of the one before."""

    def __init__(self, scene: Path | str, dem: DemFiles | None, bands: Mapping[str, int] | None) -> None:
        self._scene, self._dem, self._bands = scene, dem, bands
        self._info = sources.probe(scene)
        self._radiometry: Radiometry | None = None
        self._reader = cache(self._open)

    @property
    def crs(self) -> Any:
        """Where pictures are drawn."""
        return self.grid(0).crs

    def overview_zoom(self) -> int:
        """The finest zoom at which the whole scene has at most `OVERVIEW_PX` pixels a side."""
        return max(0, math.ceil(math.log2(max(self._info.geobox.shape) / OVERVIEW_PX)))

    def zoom_for(self, side_m: float) -> int:
        """The finest zoom at which so many metres are at most `CROP_PX` pixels."""
        return max(0, math.ceil(math.log2(side_m / CROP_PX / self._info.ground_sample_distance_m)))

    def grid(self, zoom: int) -> GeoBox:
        """The whole scene's grid at a zoom."""
        return sources.run_grid(self._info, self._info.ground_sample_distance_m * 2**zoom).geobox

    def read(self, zoom: int, window: Window) -> tuple[str, str | None]:
        """Imagery and relief as pictures in data addresses; no relief where nothing is known."""
        layers = self._reader(zoom).read_block(window)
        relief = layers[TERRAIN.name]
        optical = _jpeg(_colours(layers[OPTICAL_RGB.name]))
        return optical, _jpeg(_grey(relief)) if relief.valid.any() else None

    def _open(self, zoom: int) -> ChipReader:
        grid = self.grid(zoom)
        spec = InputSpec(abs(float(grid.resolution.x)), (OPTICAL_RGB, TERRAIN))
        reader = ChipReader(self._scene, self._dem, spec, grid, self._bands, radiometry=self._radiometry)
        self._radiometry = reader.radiometry
        return reader


def _overview(pictures: _Pictures, ranked: Any, coverage: Any, limit: int) -> Overview:
    """The whole scene, with outlines of what is in the gallery and dots for the rest."""
    zoom = pictures.overview_zoom()
    grid = pictures.grid(zoom)
    whole = Window(0, 0, *grid.shape)
    optical, relief = pictures.read(zoom, whole)
    to_pixels, pixel_m = _to_pixels(grid, whole), abs(float(grid.resolution.x))
    shown, rest = ranked.head(limit), ranked.iloc[limit : limit + DOTS]
    return Overview(
        optical=optical,
        relief=relief,
        width=whole.width,
        height=whole.height,
        pixel_m=pixel_m,
        outlines=tuple(
            Outline(identity, score, to_pixels(shape.simplify(pixel_m)))
            for identity, score, shape in zip(shown["id"], shown["score"], shown.geometry, strict=True)
        ),
        dots=tuple(to_pixels(shape.representative_point()) for shape in rest.geometry),
        unseen=tuple(
            (status, to_pixels(shape))
            for status, shape in zip(coverage["status"], coverage.geometry, strict=True)
            if status != MAPPED
        ),
    )


def _card(pictures: _Pictures, row: Mapping[str, Any], shape: BaseGeometry) -> Card:
    left, bottom, right, top = shape.bounds
    side_m = max(_LEAST_CROP_M, _AROUND * max(right - left, top - bottom))
    zoom = pictures.zoom_for(side_m)
    grid = pictures.grid(zoom)
    pixel_m = abs(float(grid.resolution.x))
    col, line = ~grid.affine * ((left + right) / 2, (bottom + top) / 2)
    side_px = min(CROP_PX, max(16, round(side_m / pixel_m)))
    rows, cols = _span(line, side_px, grid.shape[0]), _span(col, side_px, grid.shape[1])
    window = Window(rows[0], cols[0], rows[1], cols[1])
    optical, relief = pictures.read(zoom, window)
    outline = _to_pixels(grid, window)(shape)
    return Card(row, optical, relief, window.width, window.height, pixel_m, outline)


def _span(middle: float, size: int, limit: int) -> tuple[int, int]:
    """So many pixels around a place, moved or cut to lie within 0..limit."""
    start = max(0, min(int(middle) - size // 2, limit - size))
    return start, min(start + size, limit)


def _to_pixels(grid: GeoBox, window: Window) -> Callable[[BaseGeometry], BaseGeometry]:
    """From the grid's CRS to x and y in pixels from a window's upper left corner."""
    a, b, c, d, e, f = (~grid.affine)[:6]
    numbers = [a, b, d, e, c - window.col0, f - window.row0]
    return lambda shape: affine_transform(shape, numbers)


def _colours(layer: Layer) -> npt.NDArray[np.uint8]:
    """RGB with a gentle stretch; ground without data is white."""
    pixels = layer.pixels.transpose(1, 2, 0)
    low, high = np.percentile(pixels[layer.valid], (0.5, 99.5)) if layer.valid.any() else (0, 255)
    stretched = np.clip((pixels - low) / max(high - low, _RELIEF_CONTRAST_DN), 0, 1) * 255
    return np.where(layer.valid[..., None], stretched, 255).astype(np.uint8)


def _grey(layer: Layer) -> npt.NDArray[np.uint8]:
    """Shaded relief with its contrast stretched; ground without data is white."""
    shade = layer.pixels[TERRAIN.band_names.index("shaded_relief")]
    low, high = np.percentile(shade[layer.valid], (1, 99))
    spare = max(0.0, _RELIEF_CONTRAST_DN - (high - low)) / 2
    stretched = np.clip((shade - low + spare) / (high - low + 2 * spare), 0, 1) * 235
    return np.where(layer.valid, stretched, 255).astype(np.uint8)


def _jpeg(pixels: npt.NDArray[np.uint8]) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")

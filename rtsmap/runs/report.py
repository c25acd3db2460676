"""A page for looking at a map: where footprints are, each on imagery and relief, and what is unsure first."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.geobox import GeoBox
from PIL import Image
from pyproj import Transformer
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

from rtsmap.atomic import refuse_existing, whole_file
from rtsmap.errors import BandError, InputError, OptionsError
from rtsmap.instances.coverage import MAPPED
from rtsmap.rasters import sources
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from rtsmap.rasters.chips import ChipReader, Layer
from rtsmap.rasters.fingerprints import fingerprint
from rtsmap.rasters.mosaic import DemFiles
from rtsmap.rasters.opening import local_path
from rtsmap.rasters.radiometry import Radiometry
from rtsmap.rasters.tiling import Window
from rtsmap.runs.progress import Progress, silent
from rtsmap.runs.report_page import Card, Outline, Overview, Page, page_html
from rtsmap.vectors.export import notes_on_reviews
from rtsmap.vectors.geopackage import COVERAGE_COLUMNS, is_of_many, read_layers
from rtsmap.vectors.united import MADE_FROM, standing
from rtsmap.wording import count_of

OVERVIEW_PX = 1000
CROP_PX = 256
GALLERY = 200
"""Footprints with pictures, unless told otherwise; a page of so many has about 6 MB."""

DOTS = 50_000
"""Further footprints on the overview, each as a dot."""

SCENES = 40
"""Scenes that have a map of their own on the page of a map of many."""

_PROBLEMS = 5
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
    and bands are those that the map was made from unless told. Of a map of many scenes it shows what stands,
    and each scene, up to `SCENES` of them. Raises InputError for files that cannot be used, or when `out`
    exists and `overwrite` is false.
    """
    gpkg, out = Path(gpkg), Path(out)
    if not 1 <= limit <= 5000:
        raise OptionsError(f"limit must be within 1..5000 footprints with pictures, got {limit}")
    if out.suffix.lower() not in {".html", ".htm"}:
        raise OptionsError(f"{out}: a report is written as .html")
    refuse_existing(out, overwrite=overwrite)
    layers = read_layers(gpkg)
    record = layers.run_record
    parts, problems = _scenes_of(gpkg, record, _Told(scene, dem, bands))
    footprints, notes = _reviewable(standing(layers.footprints), parts)
    notes += notes_on_reviews(footprints)
    ranked = _ranked(footprints)
    shown = ranked.head(limit)
    overviews, cards, more = _pictured(parts, ranked, shown, layers.coverage, progress)
    problems += more
    if not overviews:
        raise InputError(f"{gpkg}: none of its scenes can be shown: {problems[0]}")
    if len(overviews) == SCENES < len(parts):
        notes.append(f"maps are of {SCENES} scenes out of {len(parts)}, those of the gallery first")
    notes += _counted(problems)
    page = Page(
        name=gpkg.name,
        record=record,
        scene=f"scene {parts[0].name}" if parts[0].scene_id is None else f"{len(parts)} scenes",
        overviews=overviews,
        cards=tuple(cards[identity] for identity in shown["id"] if identity in cards),
        scores=footprints["score"].to_numpy(),
        areas_m2=footprints["area_m2"].to_numpy(),
        coverage=tuple(layers.coverage[list(COVERAGE_COLUMNS)].itertuples(index=False, name=None)),
        notes=tuple(notes),
    )
    with whole_file(out, overwrite=overwrite) as temporary:
        temporary.write_text(page_html(page), encoding="utf-8")
    return ReportFacts(out, len(footprints), len(page.cards), page.notes)


def _pictured(
    parts: Sequence[_Part], ranked: Any, shown: Any, coverage: Any, progress: Progress
) -> tuple[tuple[Overview, ...], dict[str, Card], list[str]]:
    """Overviews of scenes, those of the gallery first, cards of `shown` by id, and what was wrong.

    Scenes are opened one after another: only what is on the page stays in memory.
    """
    gallery, overviews, cards, problems = set(shown["id"]), list[Overview](), dict[str, Card](), list[str]()
    for part in sorted(parts, key=_first_in(shown)):
        own = part.of(ranked)
        if len(overviews) == SCENES and not gallery & set(own["id"]):
            continue
        try:
            pictures = _Pictures(part.scene, part.dem, part.bands)
        except InputError as exc:
            if part.scene_id is None:
                raise
            problems.append(f"{part.name} has no pictures: {exc}")
            continue
        problems += part.differences()
        if len(overviews) < SCENES:
            overviews.append(_overview(part.name, pictures, ranked, gallery, coverage))
        own = own[own["id"].isin(gallery)].to_crs(pictures.crs.proj)
        rows, ground = own.drop(columns="geometry").to_dict("records"), pictures.ground
        for row, shape in zip(rows, own.geometry, strict=True):
            # of scenes with one id, as parts of a delivery have, the one that shows the place
            if row["id"] in cards and not shape.intersects(ground):
                continue
            cards[row["id"]] = _card(pictures, row, shape, None if part.scene_id is None else part.name)
            progress("pictures", len(cards), len(shown))
    return tuple(overviews), cards, problems


def uncertainty(score: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Entropy of a score in bits: 1 at 0.5, 0 where it is sure."""
    clipped = np.clip(np.asarray(score, np.float64), 1e-12, 1 - 1e-12)
    bits: npt.NDArray[np.float64] = -(clipped * np.log2(clipped) + (1 - clipped) * np.log2(1 - clipped))
    return bits


@dataclass(frozen=True, slots=True)
class _Told:
    """Inputs that are named for a report; None are those that the map was made from."""

    scene: Path | str | None
    dem: DemFiles | None
    bands: Mapping[str, int] | None


@dataclass(frozen=True, slots=True)
class _Part:
    """A scene on the page, and its inputs; `scene_id` is None where all footprints are of one scene.

    `fingerprint` is that of the scene that the map was made from, None where it is not known.
    """

    name: str
    scene_id: str | None
    scene: Path | str
    dem: DemFiles | None
    bands: Mapping[str, int] | None
    fingerprint: Any

    @classmethod
    def of_record(cls, record: Mapping[str, Any], told: _Told, scene_id: str | None = None) -> _Part | None:
        """The scene of a run's record; None where it is not there any more."""
        scene = told.scene or _recorded(record, "scene")
        if scene is None:
            return None
        plan = record.get("plan", {})
        return cls(
            scene_id or Path(str(scene)).name,
            scene_id,
            scene,
            told.dem or _recorded(record, "dem"),
            told.bands or plan.get("options", {}).get("bands") or None,
            plan.get("inputs", {}).get("scene"),
        )

    def of(self, footprints: Any) -> Any:
        """The footprints that this scene shows."""
        return footprints if self.scene_id is None else footprints[footprints["scene_id"] == self.scene_id]

    def differences(self) -> list[str]:
        """What people should know of a scene that is another file than the map was made from."""
        if self.fingerprint is None or fingerprint(self.scene) == self.fingerprint:
            return []
        return [f"{Path(str(self.scene)).name} is not the very file that the map was made from"]


def _scenes_of(gpkg: Path, record: Mapping[str, Any], told: _Told) -> tuple[list[_Part], list[str]]:
    """The scenes of a map that are there, and what is wrong with others; InputError where none is."""
    if not is_of_many(record):
        one = _Part.of_record(record, told)
        if one is None:
            raise InputError(
                f"{gpkg}: the scene is not where it was when the map was made; name it with --scene"
            )
        return [one], []
    entries = [entry for entry in record["scenes"] if not entry.get("problem")]
    if told.scene is not None:
        raise OptionsError(
            f"{gpkg}: is a map of {len(entries)} scenes, which are looked for where they were; --scene names "
            "one. The map of each scene lies in the run directory: RUN/SCENE/map.gpkg"
        )
    made_from = record.get(MADE_FROM, {})
    parts, problems = list[_Part](), list[str]()
    for entry in entries:
        own = {"paths": {"scene": entry["scene"]}, **made_from.get(entry["name"], {})}
        part = _Part.of_record(own, told, entry["scene_id"])
        if part is None:
            problems.append(f"{entry['scene_id']} has no pictures: it is not where it was")
        else:
            parts.append(part)
    if not parts:
        raise InputError(f"{gpkg}: none of its {len(entries)} scenes is where it was when the map was made")
    return parts, problems


def _reviewable(footprints: Any, parts: Sequence[_Part]) -> tuple[Any, list[str]]:
    """The footprints that can be shown and judged, and how many cannot."""
    notes = []
    named = footprints["id"].notna() & footprints["score"].notna()
    if by_hand := int((~named).sum()):
        notes.append(f"left out: {count_of(by_hand, 'footprint')} without id or score, added by hand")
    footprints = footprints[named]
    if parts[0].scene_id is not None:
        there = footprints["scene_id"].isin([part.scene_id for part in parts])
        if gone := int((~there).sum()):
            notes.append(f"left out: {count_of(gone, 'footprint')} of scenes that are not there")
        footprints = footprints[there]
    return footprints, notes


def _first_in(shown: Any) -> Callable[[_Part], tuple[int, str]]:
    """Sorts scenes by their first footprint in the gallery, then by name."""
    scene_ids = shown["scene_id"].tolist() if "scene_id" in shown else []
    places = {scene_id: place for place, scene_id in reversed(list(enumerate(scene_ids)))}
    return lambda part: (places.get(part.scene_id, len(places)), part.name)


def _counted(problems: Sequence[str]) -> list[str]:
    more = f"; and {len(problems) - _PROBLEMS} more" if len(problems) > _PROBLEMS else ""
    return ["; ".join(problems[:_PROBLEMS]) + more] if problems else []


def _recorded(record: Mapping[str, Any], what: str) -> Any:
    """Path of an input where it still is."""
    found = record.get("paths", {}).get(what)
    files = [found] if isinstance(found, str) else found or []
    there = all(path is None or path.exists() for path in map(local_path, files))
    return found if files and there else None


def _ranked(footprints: Any) -> Any:
    unsure = footprints.assign(uncertainty=uncertainty(footprints["score"].to_numpy()))
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

    @property
    def ground(self) -> BaseGeometry:
        """The box that the scene covers, in that CRS."""
        return shapely.box(*self.grid(0).boundingbox.bbox)

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
        try:
            reader = ChipReader(self._scene, self._dem, spec, grid, self._bands, radiometry=self._radiometry)
        except BandError as exc:
            raise BandError(f"{exc}; is it the scene that the map was made from? If so, say --bands") from exc
        self._radiometry = reader.radiometry
        return reader


def _overview(
    name: str, pictures: _Pictures, ranked: Any, gallery: Collection[str], coverage: Any
) -> Overview:
    """A whole scene, with outlines of what is in the gallery and dots for the rest, of other scenes too."""
    zoom = pictures.overview_zoom()
    grid = pictures.grid(zoom)
    whole = Window(0, 0, *grid.shape)
    optical, relief = pictures.read(zoom, whole)
    to_pixels, pixel_m = _to_pixels(grid, whole), abs(float(grid.resolution.x))
    to_map = Transformer.from_crs(grid.crs.proj, coverage.crs, always_xy=True)
    around = to_map.transform_bounds(*grid.extent.boundingbox)
    unseen = coverage[coverage["status"] != MAPPED].clip(around).to_crs(grid.crs.proj)
    near = ranked[ranked.intersects(shapely.box(*around))].to_crs(grid.crs.proj)
    in_gallery = near["id"].isin(gallery)
    shown, rest = near[in_gallery], near[~in_gallery]
    return Overview(
        name=name,
        optical=optical,
        relief=relief,
        width=whole.width,
        height=whole.height,
        pixel_m=pixel_m,
        outlines=tuple(
            Outline(identity, score, to_pixels(shape.simplify(pixel_m)))
            for identity, score, shape in zip(shown["id"], shown["score"], shown.geometry, strict=True)
        ),
        dots=tuple(to_pixels(shape.representative_point()) for shape in rest.geometry.iloc[:DOTS]),
        unseen=tuple(
            (status, to_pixels(shape))
            for status, shape in zip(unseen["status"], unseen.geometry, strict=True)
            if shape.area > 0
        ),
    )


def _card(pictures: _Pictures, row: Mapping[str, Any], shape: BaseGeometry, scene: str | None) -> Card:
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
    return Card(row, scene, optical, relief, window.width, window.height, pixel_m, outline)


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

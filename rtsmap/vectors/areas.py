"""Areas of interest, and areas to leave out, from files of polygons onto the grid of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from shapely.geometry.base import BaseGeometry

from rtsmap.errors import LabelError
from rtsmap.rasters.grids import EARTH_RADIUS_M
from rtsmap.vectors.labels import Polygons, read_polygons
from rtsmap.vectors.repair import make_polygons_valid

AreaFiles = Path | str | Sequence[Path | str]

_EDGES = 64
"""A straight edge in one CRS is bent in another, so edges are cut: that many to the length of the grid."""


@dataclass(frozen=True, slots=True)
class Area:
    """United polygons of some files, as far as a grid reaches, in its CRS.

    `fingerprint` identifies all that the files hold; `notes` say what reading had to change.
    """

    geometry: BaseGeometry
    fingerprint: dict[str, Any]
    notes: tuple[str, ...]


def read_area(files: AreaFiles, geobox: GeoBox) -> Area:
    """Read polygons in any CRS; LabelError for files without any."""
    parts: list[BaseGeometry] = []
    digests: list[str] = []
    notes: list[str] = []
    for name in area_files(files):
        polygons = read_polygons(name)
        if not len(polygons):
            raise LabelError(f"{name}: there is no polygon in it; wanted the outline of an area")
        parts.append(_on_grid(polygons, geobox))
        digests.append(_digest(polygons))
        notes += [f"{name}: {note}" for note in polygons.notes]
    fingerprint = {"sha256_of_polygons": hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()}
    return Area(shapely.union_all(parts), fingerprint, tuple(notes))


def area_files(files: AreaFiles | None) -> list[Path | str]:
    """One file or several as a list."""
    if files is None:
        return []
    return [files] if isinstance(files, (str, Path)) else list(files)


def _on_grid(polygons: Polygons, geobox: GeoBox) -> BaseGeometry:
    """The polygons near the grid, united, in its CRS."""
    left, bottom, right, top = _reach(geobox, polygons.crs)
    outlines, tree = np.array(polygons.geometries), shapely.STRtree(polygons.geometries)
    # across the antimeridian ground is written as 181 or as -179
    turn = 0.0 if polygons.crs == geobox.crs else _turn(polygons.crs)
    parts = []
    for shift in sorted({-turn, 0.0, turn}):
        box = left + shift, bottom, right + shift, top
        parts.append(shapely.clip_by_rect(outlines[tree.query(shapely.box(*box))], *box))
    shapes = np.concatenate(parts)
    if polygons.crs != geobox.crs:
        shapes = shapely.segmentize(shapes, max(right - left, top - bottom) / _EDGES)
        transformer = polygons.crs.transformer_to_crs(geobox.crs)
        shapes = shapely.transform(shapes, lambda xy: np.column_stack(transformer(*xy.T)))
    return shapely.union_all(make_polygons_valid(shapes))


def _reach(geobox: GeoBox, crs: CRS) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) of the grid in another CRS, and a quarter of its size around.

    Across the antimeridian it goes on beyond 180 degrees, or -180.
    """
    height, width = geobox.shape
    steps = np.linspace(-0.25, 1.25, 31)
    rows, cols = np.meshgrid(steps * height, steps * width)
    affine = geobox.affine
    xs, ys = affine.a * cols + affine.c, affine.e * rows + affine.f
    if crs != geobox.crs:
        xs, ys = geobox.crs.transformer_to_crs(crs)(xs, ys)
    xs, ys = xs[np.isfinite(xs)], ys[np.isfinite(ys)]
    if turn := _turn(crs):
        xs = xs + turn * np.round((xs[0] - xs) / turn)
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def _turn(crs: CRS) -> float:
    """What x grows by once around the Earth, in degrees or metres; 0 where it does not go around."""
    if crs.geographic:
        return 360.0
    return 2 * np.pi * EARTH_RADIUS_M if crs.epsg == 3857 else 0.0


def _digest(polygons: Polygons) -> str:
    """The same for the same polygons in one CRS, whatever their order and the file's format."""
    shapes = sorted(shapely.to_wkb(shapely.normalize(np.array(polygons.geometries)), byte_order=1))
    return hashlib.sha256(polygons.crs.to_wkt().encode() + b"".join(shapes)).hexdigest()

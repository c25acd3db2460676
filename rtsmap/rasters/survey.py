"""What rtsmap makes of a scene and an elevation model before it reads a pixel of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from odc.geo.geobox import GeoBox

from rtsmap.errors import InputError
from rtsmap.rasters import grids, levels, sources
from rtsmap.rasters.acquisition import acquisition_of
from rtsmap.rasters.bands import InputSpec
from rtsmap.rasters.elevation import ElevationReader
from rtsmap.rasters.mosaic import DemFiles, ElevationModel, open_elevation
from rtsmap.rasters.radiometry import PERCENTILES
from rtsmap.rasters.sources import RasterInfo
from rtsmap.rasters.spectral import BandFiles, scene_bands
from rtsmap.rasters.tiling import TileOptions, plan_spans

_LARGE_PX = 50_000_000
_LEAST_OF_A_CHIP = 4
_RADIOMETRY = (
    f"percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g} of each band, taken when a run is planned, "
    "set the 8-bit scale"
)


@dataclass(frozen=True, slots=True)
class Survey:
    """Facts by subject for the scene, the run's grid and the elevation model; problems in sentences.

    `blocked` is True when the scene cannot be mapped as it is.
    """

    scene: dict[str, str]
    grid: dict[str, str]
    dem: dict[str, str]
    problems: tuple[str, ...]
    blocked: bool


def survey(
    scene: Path | str,
    dem: DemFiles | ElevationModel | None,
    spec: InputSpec,
    tiles: TileOptions,
    bands: Mapping[str, int] | None = None,
    *,
    band_files: BandFiles | None = None,
) -> Survey:
    """Look at the inputs as a run with this spec and these tiles would; InputError if one is unreadable."""
    info = sources.probe(scene)
    grid = sources.run_grid(info, spec.resolution_m)
    scene_facts, problems = _about(info), _scene_problems(info, grid.geobox)
    blocked = False
    wanted = [band for m in spec.modalities if not m.is_terrain for band in m.band_names]
    try:
        chosen = scene_bands(info, wanted, bands, band_files or {})
        scene_facts["bands"] = ", ".join(f"{name} = {index}" for name, index in chosen.items())
    except InputError as exc:
        scene_facts["bands"] = "cannot be used, see below"
        problems.insert(0, str(exc))
        blocked = True
    note = sources.optical_note(info)
    scene_facts["acquisition"] = acquisition_of(scene, sources.read_tags(scene)).note
    problems += [note] if note and not (blocked or set(wanted) <= set(bands or ())) else []
    if info.dtype != "uint8":
        scene_facts["radiometry"] = _RADIOMETRY
    scene_facts["reading"] = _reading(info, grid.geobox, max(1, len(wanted)))
    problems += [grid.note] if grid.note else []
    problems += _size_problems(info, grid.geobox, tiles.chip_px)
    dem_facts: dict[str, str] = {}
    if dem is None:
        problems.append("no elevation model is given: what is seen is the imagery alone")
    else:
        model = open_elevation(dem, grid.geobox)
        share = _covered_share(info.geobox, [tile.geobox for tile in model.tiles])
        dem_facts = _about(model.info) | {"covers": f"{share:.1%} of the scene"}
        problems += ElevationReader(model, grid.geobox).notes[len(model.info.notes) :]
        if 0 < share < 0.995:
            left = f"leaves {1 - share:.1%} of the scene without terrain; that is mapped too"
            problems.append(f"{model.info.path}: {left}")
    return Survey(scene_facts, _about_grid(grid.geobox, tiles), dem_facts, tuple(problems), blocked)


def _about(info: RasterInfo) -> dict[str, str]:
    height, width = info.geobox.shape
    rows, cols = info.block_shape
    facts = {
        "file": info.path,
        "CRS": grids.crs_name(info.crs),
        "size": f"{width} x {height} pixels of {grids.told_m(info.ground_sample_distance_m)} m on the "
        f"ground, {info.count} x {info.dtype}",
        "stored": f"in blocks of {cols} x {rows} pixels, {info.compression or 'not compressed'}",
        "overviews": ", ".join(f"1:{factor}" for factor in info.overviews) or "none",
        "validity": "; ".join(info.notes),
    }
    names = ", ".join(name or "unnamed" for name in info.band_names)
    return facts | ({"holds": names} if any(info.band_names) else {})


def _about_grid(geobox: GeoBox, options: TileOptions) -> dict[str, str]:
    height, width = geobox.shape
    rows, cols = (
        len(plan_spans(size, options.chip_px, options.overlap_px, options.origin_px))
        for size in (height, width)
    )
    return {
        "CRS": grids.crs_name(geobox.crs),
        "size": f"{width} x {height} pixels of {geobox.resolution.x:g} m",
        "tiles": f"{rows * cols} of {options.chip_px} pixels, overlapping by {options.overlap_px}",
    }


def _reading(info: RasterInfo, geobox: GeoBox, bands: int) -> str:
    level = levels.level_for(info, geobox)
    rows, cols = info.geobox.shape if level.overview is None else info.overview_shapes[level.overview]
    size_mb = rows * cols * bands * np.dtype(info.dtype).itemsize / 1e6
    share = rows * cols / prod(info.geobox.shape)
    source = "full resolution" if level.overview is None else f"overview 1:{info.overviews[level.overview]}"
    return f"from {source}: {size_mb:,.1f} MB of pixels, {share:.2%} of the file's"


def _size_problems(info: RasterInfo, geobox: GeoBox, chip_px: int) -> list[str]:
    height, width = geobox.shape
    if min(height, width) * _LEAST_OF_A_CHIP >= chip_px:
        return []
    size = f"{width} x {height} pixels of {grids.told_m(geobox.resolution.x)} m"
    problem = (
        f"{info.path}: is no more than {size}, where the model looks at {chip_px} x {chip_px}: without the "
        "ground around them slumps cannot be told from other things, so do not trust the map"
    )
    return [problem]


def _scene_problems(info: RasterInfo, geobox: GeoBox) -> list[str]:
    ratio = grids.shrink_ratio(geobox, info.geobox)
    if ratio < 0.6:
        wider = (
            f"{grids.told_m(info.ground_sample_distance_m)} m are {1 / ratio:.1f} times wider than the model "
            "looks at"
        )
        return [f"{info.path}: its pixels of {wider}; they are interpolated, and small slumps cannot be seen"]
    if ratio >= 2 and not info.overviews and prod(info.geobox.shape) > _LARGE_PX:
        cure = "gdaladdo -r average --config COMPRESS_OVERVIEW DEFLATE FILE makes them once"
        if info.path.lower().endswith(".vrt"):
            cure = "gdaladdo -r average --config VRT_VIRTUAL_OVERVIEWS YES FILE passes on its sources'"
        return [f"{info.path}: has no overviews, so each run reads every pixel of it; {cure}"]
    return []


def _covered_share(scene: GeoBox, tiles: Sequence[GeoBox]) -> float:
    """Share of a lattice of points of `scene` that lies inside any of `tiles`."""
    height, width = scene.shape
    steps = (np.arange(100) + 0.5) / 100
    mesh = np.meshgrid(steps * height, steps * width, indexing="ij")
    inside = np.zeros(mesh[0].shape, np.bool_)
    for tile in tiles:
        rows, cols = grids.to_pixels(scene, tile, *mesh)
        with np.errstate(invalid="ignore"):
            inside |= (rows >= 0) & (rows < tile.shape[0]) & (cols >= 0) & (cols < tile.shape[1])
    return float(inside.mean())

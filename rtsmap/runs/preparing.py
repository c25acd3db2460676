"""From files to a plan: look at the inputs, choose the grid, lay out the tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from odc.geo.geobox import GeoBox

from rtsmap.instances.ground import Ground, ground_of
from rtsmap.rasters.acquisition import Acquisition, acquisition_of
from rtsmap.rasters.bands import InputSpec
from rtsmap.rasters.chips import ChipReader
from rtsmap.rasters.fingerprints import fingerprint
from rtsmap.rasters.inspection import Problems, check_inputs
from rtsmap.rasters.mosaic import DemFiles, open_elevation
from rtsmap.rasters.opening import absolute
from rtsmap.rasters.relief_cells import KEPT_CELLS
from rtsmap.rasters.sources import probe, read_tags, run_grid
from rtsmap.rasters.spectral import BandFiles
from rtsmap.rasters.survey import survey
from rtsmap.rasters.tiling import TileOptions
from rtsmap.runs.engine import Engine
from rtsmap.runs.plan import Plan, package_versions
from rtsmap.vectors.areas import Area, AreaFiles, area_files, read_area
from rtsmap.vectors.labels import read_polygons


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan, readers of its inputs, and what was assumed about them, in sentences.

    `reader` reads every modality, `leading` only the first one, whose data decide what is mapped.
    `ground` is what of the grid is wanted (None: all of it).
    """

    plan: Plan
    reader: ChipReader
    leading: ChipReader
    notes: tuple[str, ...]
    acquisition: Acquisition
    ground: Ground | None = None

    def unwanted_tiles(self, reach_m: float) -> frozenset[int]:
        """Indexes of tiles that read nothing within `reach_m` of the ground that is wanted."""
        if self.ground is None:
            return frozenset()
        tiles = (tile for shard in self.plan.shards() for tile in shard.tiles)
        return self.ground.unwanted_tiles(tiles, reach_m)


def prepare(
    scene: Path | str,
    dem: DemFiles | None,
    engine: Engine,
    *,
    tiles: TileOptions,
    shard_tiles: int,
    options: Mapping[str, Any],
    bands: Mapping[str, int] | None = None,
    aoi: AreaFiles | None = None,
    exclude: AreaFiles | None = None,
    band_files: BandFiles | None = None,
    taken: str | None = None,
    scene_id: str | None = None,
    dem_may_miss: bool = False,
    problems: Problems | None = None,
) -> Prepared:
    """Plan a run over a scene; pixels are read for samples only: of fingerprints, and of radiometry.

    `bands` gives numbers of the scene's bands by name; `band_files` are rasters of further bands, `aoi` and
    `exclude` files of polygons; `taken` and `scene_id` are for scenes that do not tell, or tell wrongly.
    `dem_may_miss`: the DEM is that of many scenes, and need not reach this one. All that is wrong with the
    inputs is raised as one InputError, with `problems` that are known already.
    """
    problems = problems or Problems()
    doubts = check_inputs(
        scene,
        dem,
        engine.spec,
        bands,
        problems=problems,
        dem_may_miss=dem_may_miss,
        band_files=band_files,
    )
    for name in (*area_files(aoi), *area_files(exclude)):
        with problems.collected():
            read_polygons(name)
    problems.raise_any()
    info = probe(scene)
    grid = run_grid(info, engine.spec.resolution_m)
    elevation = None if dem is None else open_elevation(dem, grid.geobox)
    reader = ChipReader(
        scene, elevation, engine.spec, grid.geobox, bands, band_files=band_files, kept_cells=KEPT_CELLS
    )
    files = {name: area_files(named) for name, named in {"aoi": aoi, "exclude": exclude}.items() if named}
    given = {name: read_area(named, grid.geobox) for name, named in files.items()}
    seen = {"bands": reader.bands, "radiometry": reader.radiometry and reader.radiometry.to_dict()}
    plan = Plan(
        inputs={
            "scene": fingerprint(scene),
            "dem": elevation and elevation.fingerprint(),
            **{name: area.fingerprint for name, area in given.items()},
            **{f"band_{name}": fingerprint(file) for name, file in (band_files or {}).items()},
        },
        model=engine.identity,
        options={**options, **seen},
        geobox=grid.geobox,
        tiles=tiles,
        shard_tiles=shard_tiles,
        versions=package_versions(),
        paths={
            "scene": _full(scene),
            "dem": elevation and _full(elevation.paths),
            **{name: [_full(file) for file in named] for name, named in files.items()},
            **{f"band_{name}": _full(file) for name, file in (band_files or {}).items()},
        },
    )
    first = engine.spec.modalities[0]
    leading = ChipReader(
        scene,
        elevation if first.is_terrain else None,
        InputSpec(engine.spec.resolution_m, (first,)),
        grid.geobox,
        bands,
        radiometry=reader.radiometry,
        band_files=band_files,
    )
    remarks = survey(scene, elevation, engine.spec, tiles, bands, band_files=band_files).problems
    acquisition = acquisition_of(scene, read_tags(scene), taken=taken, scene_id=scene_id)
    of_areas = (note for area in given.values() for note in area.notes)
    unseen = _unseen_bands(engine.spec, band_files or {})
    notes = (*doubts, *remarks, *unseen, *reader.notes, *of_areas, f"{scene}: {acquisition.note}")
    unique = tuple(dict.fromkeys(notes))
    return Prepared(plan, reader, leading, unique, acquisition, _ground(grid.geobox, given))


def _unseen_bands(spec: InputSpec, band_files: BandFiles) -> list[str]:
    """What is to be said of files that were given for nothing."""
    wanted = {band for modality in spec.modalities for band in modality.band_names}
    unseen = ((name, file) for name, file in band_files.items() if name not in wanted)
    return [f"{file}: is not looked at, for the model wants no {name}" for name, file in unseen]


def _ground(geobox: GeoBox, given: Mapping[str, Area]) -> Ground | None:
    shapes = {name: area.geometry for name, area in given.items()}
    return ground_of(geobox, shapes.get("aoi"), shapes.get("exclude")) if shapes else None


@overload
def _full(path: Path | str) -> str: ...
@overload
def _full(path: Path | str | list[str]) -> str | list[str]: ...
def _full(path: Path | str | list[str]) -> str | list[str]:
    """An absolute path, or several; addresses stay as they are."""
    if isinstance(path, list):
        return [_full(name) for name in path]
    return absolute(str(path))

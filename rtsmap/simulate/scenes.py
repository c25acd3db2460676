"""Simulated scenes as files: image, elevation model, true footprints, look-alikes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from odc.geo.geobox import GeoBox

from rtsmap.errors import InputError, OptionsError
from rtsmap.rasters.tiling import Window
from rtsmap.rasters.writing import write_geotiff_blocks
from rtsmap.simulate.placement import Feature
from rtsmap.simulate.presets import Preset, find_preset
from rtsmap.simulate.world import DEM_NODATA, World, resized
from rtsmap.vectors.labels import Polygons, write_polygons


@dataclass(frozen=True, slots=True)
class SimulatedScene:
    """Paths of one scene: image, elevation model, slump polygons, look-alike polygons."""

    scene: Path
    dem: Path
    truth: Path
    lookalikes: Path


def write_scene(
    preset: Preset | str,
    seed: int,
    directory: Path | str,
    *,
    block_px: int = 1024,
    size_px: int | None = None,
    overwrite: bool = False,
    report: Callable[[float], None] | None = None,
) -> SimulatedScene:
    """Simulate a scene block by block into `directory`: scene.tif, dem.tif, truth.gpkg, lookalikes.gpkg.

    Memory is bounded by a block and the coarse plan of the scene. `size_px` makes another, smaller or
    larger scene of the same family. `report` is called with the share done. Each file appears under
    its name only when it is complete.

    Raises:
        InputError: a file is there already and `overwrite` is False.
        OptionsError: unknown preset, impossible size.
    """
    if block_px < 16 or block_px % 16:
        raise OptionsError(f"block_px must be a multiple of 16, got {block_px}")
    chosen = resized(find_preset(preset) if isinstance(preset, str) else preset, size_px)
    folder = Path(directory)
    paths = SimulatedScene(
        folder / "scene.tif", folder / "dem.tif", folder / "truth.gpkg", folder / "lookalikes.gpkg"
    )
    _refuse_existing((paths.scene, paths.dem, paths.truth, paths.lookalikes), overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    world = World(chosen, seed)
    scene_blocks = list(_blocks(world.geobox, block_px))
    dem_blocks = list(_blocks(world.dem_geobox, block_px))
    progress = _Progress(len(scene_blocks) + len(dem_blocks), report)
    _write_image(world, paths.scene, scene_blocks, progress)
    _write_dem(world, paths.dem, dem_blocks, progress)
    _write_polygons(world, paths.truth, world.slumps, _slump_columns(world.slumps))
    _write_polygons(world, paths.lookalikes, world.lookalikes, _lookalike_columns(world.lookalikes))
    return paths


def _refuse_existing(paths: Sequence[Path], *, overwrite: bool) -> None:
    there = [str(p) for p in paths if p.exists()]
    if there and not overwrite:
        raise InputError(f"will not replace {', '.join(there)}: choose another directory or ask to overwrite")


@dataclass(slots=True)
class _Progress:
    total: int
    report: Callable[[float], None] | None
    done: int = 0

    def step(self) -> None:
        self.done += 1
        if self.report is not None:
            self.report(self.done / self.total)


def _blocks(geobox: GeoBox, block_px: int) -> Iterator[Window]:
    height, width = geobox.shape
    for row in range(0, height, block_px):
        for col in range(0, width, block_px):
            yield Window(row, col, min(row + block_px, height), min(col + block_px, width))


def _write_image(world: World, path: Path, blocks: Sequence[Window], progress: _Progress) -> None:
    def rendered() -> Iterator[tuple[Window, npt.NDArray[Any]]]:
        for window in blocks:
            yield window, world.render(window)[0]
            progress.step()

    write_geotiff_blocks(
        path,
        rendered(),
        world.geobox,
        count=3,
        dtype="uint8",
        nodata=0 if world.preset.declares_nodata else None,
        band_names=("red", "green", "blue"),
        overviews=True,
    )


def _write_dem(world: World, path: Path, blocks: Sequence[Window], progress: _Progress) -> None:
    def rendered() -> Iterator[tuple[Window, npt.NDArray[Any]]]:
        for window in blocks:
            yield window, world.render_elevation(window)[None]
            progress.step()

    write_geotiff_blocks(path, rendered(), world.dem_geobox, count=1, dtype="float32", nodata=DEM_NODATA)


def _slump_columns(slumps: Sequence[Feature]) -> dict[str, list[Any]]:
    return {
        "id": [f.number for f in slumps],
        "area_m2": [round(f.outline.area, 1) for f in slumps],
        "dem_trace": [f.dem_trace for f in slumps],
        "setting": [f.setting for f in slumps],
    }


def _lookalike_columns(features: Sequence[Feature]) -> dict[str, list[Any]]:
    return {
        "id": [f.number for f in features],
        "kind": [f.kind for f in features],
        "area_m2": [round(f.outline.area, 1) for f in features],
    }


def _write_polygons(
    world: World, path: Path, features: Sequence[Feature], columns: dict[str, list[Any]]
) -> None:
    outlines = tuple(world.outline(f) for f in features)
    write_polygons(path, Polygons(outlines, world.geobox.crs, columns), overwrite=True)

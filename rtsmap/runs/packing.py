"""Scenes with labels, packed for training: read once onto the model's grid, as `predict` will read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from shapely.geometry.base import BaseGeometry

from rtsmap.mm.packs import KINDS, Terrain, TrainingImage
from rtsmap.rasters import sources
from rtsmap.rasters.bands import OPTICAL_RGB, InputSpec
from rtsmap.rasters.chips import ChipReader
from rtsmap.rasters.elevation import ElevationReader
from rtsmap.rasters.tiling import Window
from rtsmap.runs.rejected import RejectedPlaces
from rtsmap.vectors.labels import Polygons, read_polygons


def training_image(
    scene: Path,
    dem: Path | None,
    labels: Path,
    resolution_m: float,
    *,
    group: str | None = None,
    lookalikes: Path | None = None,
    rejected: RejectedPlaces | None = None,
) -> TrainingImage:
    """One scene on its run grid at `resolution_m`, with gradients instead of shading, and label numbers.

    `lookalikes` are polygons with a column `kind`, as the simulator writes them. Polygons
    are burned largest first, so a small slump on a large one keeps its place.
    """
    grid = sources.run_grid(sources.probe(scene), resolution_m).geobox
    window = Window(0, 0, *grid.shape)
    layer = ChipReader(scene, None, InputSpec(resolution_m, (OPTICAL_RGB,)), grid).read_block(window)[
        "optical"
    ]
    numbers = burn_labels(read_polygons(labels).to_crs(grid.crs).geometries, grid)
    return TrainingImage(
        name=scene.stem if group is None else f"{group}/{scene.stem}",
        group=group or scene.stem,
        optical=np.rint(layer.pixels).astype(np.uint8),
        optical_valid=layer.valid,
        labels=numbers,
        terrain=None if dem is None else _terrain(dem, grid, window),
        kinds=None if lookalikes is None else burn_kinds(read_polygons(lookalikes).to_crs(grid.crs), grid),
        resolution_m=resolution_m,
        hard=rejected.windows(grid, numbers) if rejected else (),
    )


def _terrain(dem: Path, grid: GeoBox, window: Window) -> Terrain:
    relief = ElevationReader(dem, grid).relief(window)
    gradient = np.stack([relief.bands["rise_right"], relief.bands["rise_up"]])
    return Terrain(gradient, relief.bands["relative_elevation"], relief.valid)


def burn_labels(polygons: Sequence[BaseGeometry], grid: GeoBox) -> npt.NDArray[np.int16]:
    """Number of the polygon at each pixel centre, from 1 in order of falling area; 0 = none."""
    from rasterio.features import rasterize

    ordered = sorted(polygons, key=lambda polygon: -polygon.area)
    if not ordered:
        return np.zeros(grid.shape, np.int16)
    shapes = [(polygon, number) for number, polygon in enumerate(ordered, start=1)]
    burned = rasterize(shapes, out_shape=tuple(grid.shape), transform=grid.transform, fill=0, dtype="int32")
    return np.asarray(burned, np.int16)


def burn_kinds(lookalikes: Polygons, grid: GeoBox) -> npt.NDArray[np.uint8]:
    """Kind of look-alike at each pixel centre: 0 = none, k = KINDS[k - 1]."""
    from rasterio.features import rasterize

    names = lookalikes.columns["kind"]
    shapes = [
        (shape, KINDS.index(name) + 1) for shape, name in zip(lookalikes.geometries, names, strict=True)
    ]
    if not shapes:
        return np.zeros(grid.shape, np.uint8)
    burned = rasterize(shapes, out_shape=tuple(grid.shape), transform=grid.transform, fill=0, dtype="uint8")
    return np.asarray(burned, np.uint8)

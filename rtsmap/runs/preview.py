"""A picture of a map: the scene and its relief side by side, footprints drawn on both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shapely.geometry.base import BaseGeometry

from rtsmap.rasters import sources
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from rtsmap.rasters.chips import ChipReader
from rtsmap.rasters.tiling import Window
from rtsmap.vectors.geopackage import read_map
from rtsmap.vectors.labels import read_polygons
from rtsmap.wording import count_of

_SIDE_PX = 1000
_FOUND, _TRUE = "#ffd23f", "#00e5ff"


def draw_preview(
    gpkg: Path, scene: Path, dem: Path | None, png: Path, *, truth: Path | None = None, title: str = ""
) -> None:
    """Draw footprints of `gpkg` over scene and relief into `png`; true outlines too where they are known.

    The scene is read at a resolution that gives at most about 1,000 pixels a side, through its overviews.
    """
    from matplotlib.figure import Figure

    info = sources.probe(scene)
    longest_m = max(info.geobox.shape) * info.ground_sample_distance_m
    resolution_m = max(info.ground_sample_distance_m, longest_m / _SIDE_PX)
    grid = sources.run_grid(info, resolution_m).geobox
    spec = InputSpec(resolution_m, (OPTICAL_RGB, TERRAIN))
    layers = ChipReader(scene, dem, spec, grid).read_block(Window(0, 0, *grid.shape))
    found = read_map(gpkg).to_crs(str(grid.crs))
    outlines = [] if truth is None else read_polygons(truth).to_crs(grid.crs).geometries

    box = grid.boundingbox
    extent = (box.left, box.right, box.bottom, box.top)
    panels: list[tuple[str, npt.NDArray[Any]]] = [("Scene", _colours(layers["optical"]))]
    if layers["terrain"].valid.any():
        panels.append(("Shaded relief", _grey(layers["terrain"])))
    figure = Figure(figsize=(7.2 * len(panels), 7.6), layout="constrained")
    for axis, (name, pixels) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axis.imshow(pixels, extent=extent, interpolation="nearest")
        _draw_outlines(axis, outlines, _TRUE, "true outline", width=0.9, style=(0, (4, 2)))
        _draw_outlines(axis, list(found.geometry), _FOUND, "found by rtsmap", width=1.3)
        _draw_scale(axis, extent)
        axis.set_title(name)
        axis.set_axis_off()
        axis.legend(loc="lower right", framealpha=0.8)
    figure.suptitle(title or count_of(len(found), "slump"))
    figure.savefig(png, dpi=110)


def _colours(layer: Any) -> npt.NDArray[np.uint8]:
    """RGB with a gentle stretch; ground without data is white."""
    pixels = layer.pixels.transpose(1, 2, 0)
    low, high = np.percentile(pixels[layer.valid], (0.2, 99.8)) if layer.valid.any() else (0, 255)
    stretched = np.clip((pixels - low) / max(high - low, 1), 0, 1) * 255
    return np.where(layer.valid[..., None], stretched, 255).astype(np.uint8)


def _grey(layer: Any) -> npt.NDArray[np.uint8]:
    shade = np.where(layer.valid, layer.pixels[2], 255)
    return np.repeat(np.clip(shade, 0, 255)[..., None], 3, axis=2).astype(np.uint8)


def _draw_outlines(
    axis: Any, polygons: Sequence[BaseGeometry], colour: str, label: str, *, width: float, style: Any = "-"
) -> None:
    from matplotlib.collections import LineCollection

    parts = [part for polygon in polygons for part in getattr(polygon, "geoms", [polygon])]
    rings = [np.asarray(ring.coords)[:, :2] for part in parts for ring in (part.exterior, *part.interiors)]
    if rings:
        lines = LineCollection(rings, colors=colour, linewidths=width, linestyles=style, label=label)
        axis.add_collection(lines)


def _draw_scale(axis: Any, extent: tuple[float, float, float, float]) -> None:
    from matplotlib.patheffects import withStroke

    left, right, bottom, top = extent
    raw = (right - left) / 5
    length = next(
        step * 10 ** int(np.log10(raw)) for step in (5, 2, 1) if step * 10 ** int(np.log10(raw)) <= raw
    )
    x, y = left + 0.03 * (right - left), bottom + 0.03 * (top - bottom)
    dark_rim = [withStroke(linewidth=6, foreground="black", alpha=0.7)]
    axis.plot([x, x + length], [y, y], color="white", linewidth=4, path_effects=dark_rim)
    label_y = y + 0.012 * (top - bottom)
    rim = [withStroke(linewidth=2, foreground="black")]
    axis.text(x + length / 2, label_y, f"{length:g} m", color="white", ha="center", path_effects=rim)

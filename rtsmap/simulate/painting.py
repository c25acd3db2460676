"""What features look like in the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rtsmap.simulate.carving import depth_inside, rough_edge
from rtsmap.simulate.noise import Doubles, Floats, cells, noise_at, smoothstep, subseed
from rtsmap.simulate.outlines import ScarField, ribbon_field, scar_field
from rtsmap.simulate.placement import Feature
from rtsmap.simulate.regions import Region


@dataclass(frozen=True, slots=True)
class Canvas:
    """Pieces of the window under one feature, changed in place.

    `light` (H, W, 3) is the reflected colour before shading, `calm` (H, W, 3) the same without fine
    texture, `shade` (H, W) a factor; `x`, `y` are the lattice's metres.
    """

    light: Floats
    calm: Floats
    shade: Floats
    x: Doubles
    y: Doubles
    region: Region
    pixel_m: float


def paint(canvas: Canvas, feature: Feature) -> None:
    """Paint one feature."""
    PAINTERS[feature.kind](canvas, feature)


def _lay(canvas: Canvas, cover: Floats, colour: Floats) -> None:
    """Cover the canvas with a colour, `cover` 0..1."""
    canvas.light[...] += cover[..., None] * (colour - canvas.light)


def _tinted(canvas: Canvas, feature: Feature, extra: Floats) -> Floats:
    """Surroundings without their texture, plus the feature's tint and `extra` DN."""
    return canvas.calm + np.array(feature.tint, np.float32) + extra[..., None]


def _slump(canvas: Canvas, feature: Feature) -> None:
    scar = feature.scar
    field = scar_field(scar, canvas.region.sun, canvas.x, canvas.y)
    u, v = field.t * scar.length_m, field.v * scar.length_m
    neck = np.float32(scar.neck)
    t = field.t.astype(np.float32)
    wander = noise_at(subseed(feature.seed, "wander"), u / 60.0, v / 60.0)
    flow = noise_at(subseed(feature.seed, "flow"), u / 70.0, v / 9.0 + 0.8 * wander)
    lumps = noise_at(subseed(feature.seed, "lumps"), u / 13.0, v / 13.0)
    clods = noise_at(subseed(feature.seed, "clods"), u / 6.0, v / 6.0)
    patches = noise_at(subseed(feature.seed, "patches"), u / 45.0, v / 30.0)
    in_bowl = smoothstep((neck - t) / 0.2 + 0.5)
    near_wall = smoothstep(1 - field.to_headwall_m / (0.22 * scar.length_m + 8.0))
    rough = 2.2 + 4.6 * near_wall + 1.6 * (1 - in_bowl)
    extra = 5.5 * flow + rough * (1.1 * lumps + 1.0 * clods) + 5.0 * patches + 5.0 * (in_bowl - 0.6)
    ragged = field.inside_m + 1.6 * clods + 1.6 * lumps
    cover = smoothstep(ragged / (1.3 * canvas.pixel_m) + 0.5)
    # rafts of turf ride on the floor, mostly below the wall and on the tongue
    rafts = 0.5 * smoothstep(2.0 * lumps + patches - 2.2 + 0.8 * near_wall)
    _lay(canvas, cover * (0.94 - rafts), _tinted(canvas, feature, extra))
    _headwall(canvas, field, clods, lumps)
    _margin(canvas, feature, field.inside_m, field.to_headwall_m)


def _headwall(canvas: Canvas, field: ScarField, clods: Floats, lumps: Floats) -> None:
    """The dark shadow under a wall that faces away from the sun; a paler face where it is lit."""
    inside, to_wall = field.inside_m, field.to_headwall_m
    from_edge = np.where(inside > 0, to_wall, 1.7 * to_wall)
    away = (0.5 - 0.5 * field.facing).astype(np.float32)
    width = np.float32(canvas.pixel_m) * (0.7 + 0.9 * away + 0.25 * lumps)
    line = np.clip(1 - (np.maximum(from_edge - 1.5, 0) / np.maximum(width, 1.5)), 0, 1).astype(np.float32)
    broken = np.clip(0.85 + 0.3 * clods + 0.2 * lumps, 0.25, 1.15)
    canvas.shade[...] *= 1 - np.clip(line * broken * (0.2 + 0.4 * away), 0, 0.75)
    lit = np.maximum(1 - np.abs(to_wall - 7.0) / 6.0, 0) * np.maximum(field.facing, 0) * (inside > 0)
    canvas.light[...] += (12.0 * lit).astype(np.float32)[..., None]


def _margin(canvas: Canvas, feature: Feature, inside_m: Doubles, to_wall_m: Doubles) -> None:
    """Grass of the surroundings leans in at the sides: a faint, broken, darker border."""
    border = np.maximum(1 - np.abs(inside_m) / 5.0, 0) * np.clip(to_wall_m / 20.0, 0, 1)
    broken = np.clip(0.5 + 0.5 * rough_edge(feature, canvas.x, canvas.y, 25.0), 0, 1)
    canvas.shade[...] *= 1 - 0.16 * (border * broken).astype(np.float32)


def _bare_patch(canvas: Canvas, feature: Feature) -> None:
    inside = depth_inside(feature, canvas.x, canvas.y) + 6.0 * rough_edge(feature, canvas.x, canvas.y, 22.0)
    inside += 2.5 * rough_edge(feature, canvas.x, canvas.y, 7.0)
    lumps = noise_at(subseed(feature.seed, "lumps"), *_frame(canvas, 13.0))
    lumps += 0.8 * noise_at(subseed(feature.seed, "clods"), *_frame(canvas, 6.0))
    _lay(canvas, 0.9 * smoothstep(inside / feature.wall_m + 0.5), _tinted(canvas, feature, 5.5 * lumps))


def _frame(canvas: Canvas, cell_m: float) -> tuple[Doubles, Doubles]:
    shape = (len(canvas.y), len(canvas.x))
    return (
        np.broadcast_to(canvas.y[:, None] / cell_m, shape),
        np.broadcast_to(canvas.x[None, :] / cell_m, shape),
    )


def _bank(canvas: Canvas, feature: Feature) -> None:
    ribbon = feature.ribbon
    distance, side, along = ribbon_field(ribbon, canvas.x, canvas.y)
    ends = smoothstep(np.minimum(along, 1 - along) / 0.08)
    broken = rough_edge(feature, canvas.x, canvas.y, 30.0)
    cover = ends * smoothstep((ribbon.half_width_m - distance) / 6.0 + 0.5 + 0.35 * broken)
    flow = noise_at(subseed(feature.seed, "flow"), along * ribbon.length_m / 9.0, distance / 40.0)
    _lay(canvas, 0.9 * cover, _tinted(canvas, feature, 3.6 * flow))
    across = distance * side * (1.0 if feature.depth_m > 0 else -1.0)
    edge = np.maximum(1 - np.abs(across + 0.7 * ribbon.half_width_m) / 5.5, 0) * ends
    canvas.shade[...] *= 1 - 0.4 * edge.astype(np.float32) * np.clip(0.6 + 0.5 * broken, 0, 1)


def _gully(canvas: Canvas, feature: Feature) -> None:
    ribbon = feature.ribbon
    distance, _, along = ribbon_field(ribbon, canvas.x, canvas.y)
    ends = smoothstep(np.minimum(along, 1 - along) / 0.1)
    cover = ends * smoothstep((ribbon.half_width_m - distance) / 7.0 + 0.5)
    lumps = rough_edge(feature, canvas.x, canvas.y, 14.0)
    _lay(canvas, 0.85 * cover, _tinted(canvas, feature, 4.0 * lumps))
    canvas.shade[...] *= 1 - 0.3 * ends * np.maximum(1 - distance / 5.0, 0).astype(np.float32)


def _basin(canvas: Canvas, feature: Feature) -> None:
    inside = depth_inside(feature, canvas.x, canvas.y)
    cover = smoothstep((inside + 5.0 * rough_edge(feature, canvas.x, canvas.y, 40.0)) / 16.0 + 0.5)
    rows, cols = canvas.y / canvas.pixel_m, canvas.x / canvas.pixel_m
    net = np.clip(1 - cells(subseed(feature.seed, "net"), rows, cols, 6.0) / 0.22, 0, 1)
    wet = noise_at(subseed(feature.seed, "wet"), *_frame(canvas, 45.0))
    extra = (
        -7.0 * net - 6.0 * np.clip(wet - 0.5, 0, 1.5) + 2.0 * rough_edge(feature, canvas.x, canvas.y, 12.0)
    )
    extra += 2.2 * noise_at(subseed(feature.seed, "fine"), *_frame(canvas, 7.0))
    _lay(canvas, 0.7 * cover, _tinted(canvas, feature, extra))
    rim = np.maximum(1 - np.abs(inside + 3.0) / 7.0, 0).astype(np.float32)
    canvas.light[...] += (6.0 * rim)[..., None]


def _stable_scar(canvas: Canvas, feature: Feature) -> None:
    scar = feature.scar
    field = scar_field(scar, canvas.region.sun, canvas.x, canvas.y)
    cover = smoothstep(field.inside_m / 14.0 + 0.4)
    shrubs = noise_at(subseed(feature.seed, "shrubs"), *_frame(canvas, 11.0))
    patches = noise_at(subseed(feature.seed, "patches"), *_frame(canvas, 50.0))
    extra = 4.5 * shrubs + 4.0 * patches + 3.0 * noise_at(subseed(feature.seed, "fine"), *_frame(canvas, 6.0))
    cover = cover * np.clip(0.9 + 0.25 * patches, 0.3, 1.0)
    _lay(canvas, 0.7 * cover, _tinted(canvas, feature, extra))
    soft = np.maximum(1 - field.to_headwall_m / 14.0, 0) * (0.5 - 0.5 * field.facing)
    canvas.shade[...] *= 1 - 0.16 * soft.astype(np.float32)


def _snow(canvas: Canvas, feature: Feature) -> None:
    inside = depth_inside(feature, canvas.x, canvas.y) + 4.0 * rough_edge(feature, canvas.x, canvas.y, 16.0)
    cover = smoothstep((inside + 1.5) / feature.wall_m + 0.5)
    grain = 5.0 * rough_edge(feature, canvas.x, canvas.y, 20.0)
    white = np.array([216.0, 219.0, 222.0], np.float32) + grain[..., None]
    _lay(canvas, 0.96 * cover, white)


def _road(canvas: Canvas, feature: Feature) -> None:
    cover = smoothstep(depth_inside(feature, canvas.x, canvas.y) / canvas.pixel_m + 0.5)
    extra = 2.5 * rough_edge(feature, canvas.x, canvas.y, 18.0)
    _lay(canvas, 0.92 * cover, _tinted(canvas, feature, extra))


def _cloud_shadow(canvas: Canvas, feature: Feature) -> None:
    inside = depth_inside(feature, canvas.x, canvas.y) + 12.0 * rough_edge(feature, canvas.x, canvas.y, 60.0)
    canvas.shade[...] *= 1 - np.float32(feature.depth_m) * smoothstep(inside / feature.wall_m + 0.5)


PAINTERS: dict[str, Callable[[Canvas, Feature], None]] = {
    "slump": _slump,
    "bare_patch": _bare_patch,
    "bank": _bank,
    "gully": _gully,
    "drained_basin": _basin,
    "stable_scar": _stable_scar,
    "snow": _snow,
    "road": _road,
    "cloud_shadow": _cloud_shadow,
}
"""How each kind is painted."""

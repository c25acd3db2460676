"""The coarse pass: relief, drainage and lakes of a whole scene on a coarse lattice."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rtsmap.simulate.noise import Doubles, Draws, Floats, octaves, smoothstep, subseed, upsample
from rtsmap.simulate.outlines import Blob, blob_field, draw_blob
from rtsmap.simulate.presets import Preset
from rtsmap.simulate.regions import WATERS, Colour, Region

COARSE_PX = 16
MARGIN_PX = 192
"""Ground beyond the scene's edges on which relief is defined."""

_SPARE_NODES = 3  # the spline needs neighbours beyond the margin
_STREAM_KM2 = 0.22
_RELIEF = ((1024, 24.0), (512, 20.0), (256, 10.0), (128, 5.0), (64, 2.2), (32, 0.8))
_NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


@dataclass(frozen=True, slots=True)
class Lake:
    """Standing water with a level and a colour; terrain is bent to it within `reach_m` of the shore."""

    shape: Blob
    level_m: float
    colour: Colour
    reach_m: float


@dataclass(frozen=True, slots=True)
class Terrain:
    """Coarse relief of one scene.

    `nodes` is the relief with valleys on a lattice of COARSE_PX, `smooth` the same with lakes;
    `streams` (n, 6) are segments x0, y0, x1, y1, half-widths at both ends, all in metres.
    """

    nodes: Floats
    with_lakes: Floats
    streams: Doubles
    lakes: tuple[Lake, ...]
    pixel_m: float

    def node_at(self, px: Doubles) -> Doubles:
        """Scene pixel coordinate (row or column) to position on the lattice of nodes."""
        return (px + MARGIN_PX) / COARSE_PX + _SPARE_NODES

    def elevation(self, rows: Doubles, cols: Doubles) -> Floats:
        """Relief with valleys, without lakes or detail, on a lattice of scene pixels."""
        return upsample(self.nodes, self.node_at(rows), self.node_at(cols))

    def gradient_at(self, x: float, y: float, step_m: float = 60.0) -> tuple[float, float]:
        """Rise over run to the right and DOWN at a place, over a distance of twice `step_m`."""
        xs = np.array([x - step_m, x, x + step_m]) / self.pixel_m - 0.5
        ys = np.array([y - step_m, y, y + step_m]) / self.pixel_m - 0.5
        z = upsample(self.with_lakes, self.node_at(ys), self.node_at(xs)).astype(np.float64)
        return float(z[1, 2] - z[1, 0]) / (2 * step_m), float(z[2, 1] - z[0, 1]) / (2 * step_m)


def make_terrain(preset: Preset, region: Region, seed: int) -> Terrain:
    """Relief from octaves, valleys from drainage, lakes in hollows."""
    pixel_m = preset.ground_sample_distance_m
    count = -(-(preset.size_px + 2 * MARGIN_PX) // COARSE_PX) + 1 + 2 * _SPARE_NODES
    at = (np.arange(count, dtype=np.float64) - _SPARE_NODES) * COARSE_PX - MARGIN_PX
    scale = region.relief_scale
    parts = [(float(cell), amplitude * scale) for cell, amplitude in _RELIEF]
    relief = octaves(subseed(seed, "relief"), at, at, parts) + np.float32(120.0)
    receiver, area_km2 = drainage(relief, (COARSE_PX * pixel_m / 1000.0) ** 2)
    nodes = incise(relief, area_km2, scale)
    streams = _segments(receiver, area_km2, at, pixel_m, seed)
    metres = (at + 0.5) * pixel_m
    lakes = _draw_lakes(preset, region, nodes, metres, seed)
    with_lakes = nodes.copy()
    for lake in lakes:
        bend_to_lake(with_lakes, lake, metres, metres)
    return Terrain(nodes, with_lakes, streams, lakes, pixel_m)


def drainage(relief: Floats, cell_km2: float) -> tuple[npt.NDArray[np.int64], Doubles]:
    """Where each node drains to (flat index, -1 at the border), and the area above it in km2.

    Priority flood: nodes are visited from the border inwards, lowest first, so each drains to the
    node it was reached from, and hollows overflow at their lowest rim.
    """
    height, width = relief.shape
    levels = relief.ravel().tolist()
    receiver = np.full(height * width, -1, np.int64)
    seen = np.zeros((height, width), bool)
    seen[[0, -1], :] = True
    seen[:, [0, -1]] = True
    border = np.flatnonzero(seen.ravel()).tolist()
    flags = seen.ravel().tolist()
    heap = [(levels[i], i) for i in border]
    heapq.heapify(heap)
    order: list[int] = []
    steps = [dr * width + dc for dr, dc in _NEIGHBOURS]
    while heap:
        level, i = heapq.heappop(heap)
        order.append(i)
        if not 0 < i % width < width - 1 or not width <= i < width * (height - 1):
            inner = [i + s for s in steps if _is_inner(i, s, width, height)]
        else:
            inner = [i + s for s in steps]
        for j in inner:
            if not flags[j]:
                flags[j] = True
                receiver[j] = i
                heapq.heappush(heap, (max(level, levels[j]), j))
    area = np.full(height * width, cell_km2)
    for i in reversed(order):
        if receiver[i] >= 0:
            area[receiver[i]] += area[i]
    return receiver, area.reshape(height, width)


def _is_inner(i: int, step: int, width: int, height: int) -> bool:
    row, col = divmod(i + step, width)
    return 0 < row < height - 1 and 0 < col < width - 1 and abs(col - i % width) <= 1


def incise(relief: Floats, area_km2: Doubles, scale: float) -> Floats:
    """Cut valleys, deeper where more water comes together."""
    depth = np.where(area_km2 > _STREAM_KM2, np.minimum(np.sqrt(area_km2 / _STREAM_KM2), 4.0), 0.0)
    broad = ndimage.gaussian_filter(depth, 2.2, mode="nearest") * 5.0
    narrow = ndimage.gaussian_filter(depth, 0.9, mode="nearest") * 2.0
    # rounded so that compilers of the filter cannot change the picture
    return np.asarray(np.round(relief - scale * (broad + narrow), 4), np.float32)


def _segments(
    receiver: npt.NDArray[np.int64], area_km2: Doubles, at: Doubles, pixel_m: float, seed: int
) -> Doubles:
    """Stream segments between jittered nodes, each moved half a step downstream, which rounds corners."""
    width = area_km2.shape[1]
    flat = area_km2.ravel()
    wet = np.flatnonzero((flat > _STREAM_KM2) & (receiver >= 0))
    draw = Draws(seed, "streams")
    jitter = {int(i): (draw.uniform(-0.3, 0.3), draw.uniform(-0.3, 0.3)) for i in wet}

    def place(i: int) -> tuple[float, float]:
        row, col = divmod(i, width)
        dx, dy = jitter.get(i, (0.0, 0.0))
        return (at[col] + dx * COARSE_PX) * pixel_m, (at[row] + dy * COARSE_PX) * pixel_m

    def midpoint(i: int) -> tuple[float, float]:
        ax, ay = place(i)
        bx, by = place(int(receiver[i])) if receiver[i] >= 0 else (ax, ay)
        return (ax + bx) / 2, (ay + by) / 2

    rows = [
        (*midpoint(int(i)), *midpoint(int(receiver[i])), _half_width(flat[i]), _half_width(flat[receiver[i]]))
        for i in wet
    ]
    return np.round(np.array(rows, np.float64).reshape(-1, 6), 3)


def _half_width(area_km2: float) -> float:
    return 0.8 + 1.3 * math.sqrt(min(float(area_km2), 60.0))


def _draw_lakes(
    preset: Preset, region: Region, nodes: Floats, metres: Doubles, seed: int
) -> tuple[Lake, ...]:
    draw = Draws(seed, "lakes")
    extent = preset.size_px * preset.ground_sample_distance_m
    smooth = ndimage.uniform_filter(nodes, 9, mode="nearest")
    hollow = np.round(nodes - smooth, 3)
    lakes: list[Lake] = []
    for _ in range(round(region.lakes_per_km2 * preset.area_km2)):
        radius = min(max(draw.lognormal(4.6, 0.55), 40.0), 380.0)
        best: tuple[float, float, float] | None = None
        for _ in range(8):
            x, y = draw.uniform(0, extent), draw.uniform(0, extent)
            i, j = _nearest(metres, y), _nearest(metres, x)
            if best is None or hollow[i, j] < best[0]:
                best = (float(hollow[i, j]), x, y)
        _, x, y = best or (0.0, 0.0, 0.0)
        blob = draw_blob(draw, x, y, radius, roughness=0.13, stretch=draw.uniform(1.0, 1.35))
        apart = all(
            math.hypot(x - o.shape.x, y - o.shape.y) > 1.3 * (blob.reach_m + o.shape.reach_m) for o in lakes
        )
        water, reach = WATERS[draw.weighted([w for _, w in WATERS])][0], 0.7 * radius + 50.0
        if apart:
            lakes.append(Lake(blob, _level(nodes, blob, metres), water, reach))
    return tuple(lakes)


def _nearest(metres: Doubles, value: float) -> int:
    return int(np.clip(np.rint((value - metres[0]) / (metres[1] - metres[0])), 0, len(metres) - 1))


def _level(nodes: Floats, blob: Blob, metres: Doubles) -> float:
    """A low percentile of the relief under the lake."""
    reach = blob.reach_m
    rows = slice(_nearest(metres, blob.y - reach), _nearest(metres, blob.y + reach) + 1)
    cols = slice(_nearest(metres, blob.x - reach), _nearest(metres, blob.x + reach) + 1)
    values = np.sort(nodes[rows, cols].ravel())
    return round(float(values[len(values) // 5]), 3)


def bend_to_lake(z: Floats, lake: Lake, x: Doubles, y: Doubles, detail: Floats | None = None) -> None:
    """Bend relief `z` on the lattice y x x to a lake's level, in place; damp `detail` under the water."""
    reach = lake.shape.reach_m + lake.reach_m
    rows = slice(*np.searchsorted(y, [lake.shape.y - reach, lake.shape.y + reach]))
    cols = slice(*np.searchsorted(x, [lake.shape.x - reach, lake.shape.x + reach]))
    if rows.start >= rows.stop or cols.start >= cols.stop:
        return
    outside = -blob_field(lake.shape, x[cols], y[rows])
    share = smoothstep(outside / lake.reach_m)
    shore = np.float32(lake.level_m) + np.float32(0.9) * smoothstep(outside / 10.0)
    z[rows, cols] = shore + share * (z[rows, cols] - shore)
    if detail is not None:
        detail[rows, cols] *= smoothstep(outside / 25.0)

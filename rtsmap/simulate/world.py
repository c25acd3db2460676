"""One simulated scene: any window of its image or its elevation model, and the truth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from shapely import Polygon, transform

from rtsmap.errors import OptionsError
from rtsmap.rasters.tiling import Window
from rtsmap.simulate.carving import carve
from rtsmap.simulate.noise import (
    Doubles,
    Draws,
    Floats,
    cells,
    hash_grid,
    octave,
    octaves,
    smoothstep,
    subseed,
)
from rtsmap.simulate.outlines import blob_field, depth_at
from rtsmap.simulate.painting import Canvas, paint
from rtsmap.simulate.placement import (
    Feature,
    Ground,
    Site,
    draw_voids,
    draw_wedge,
    place_lookalikes,
    place_slumps,
    wedge_polygons,
)
from rtsmap.simulate.presets import Preset
from rtsmap.simulate.regions import draw_region
from rtsmap.simulate.terrain import MARGIN_PX, bend_to_lake, make_terrain

DEM_NODATA = -9999.0

_DETAIL = ((24.0, 0.9), (12.0, 0.5), (6.0, 0.26), (3.0, 0.11))
_BUCKET_M = 512.0
_STREAM_REACH_M = 90.0
_DEM_NODES = 32  # the DEM's map projection is exact on every 32nd pixel and linear between
_BLUR = (0.12, 0.76, 0.12)


@dataclass(frozen=True, slots=True)
class Relief:
    """Elevation (metres) of a window, distance to streams less their half-width, metres inside lakes."""

    elevation: Floats
    to_stream_m: Floats
    in_lake_m: Floats
    lake_colour: Floats


class World:
    """A scene of one preset and seed. Everything follows from the two; nothing is stored but the plan.

    Windows are in pixels of `geobox` (image) or `dem_geobox` (elevation model); a window rendered
    alone equals the same part of a larger one.
    """

    def __init__(self, preset: Preset, seed: int) -> None:
        if seed < 0:
            raise OptionsError(f"a seed is a whole number of 0 or more, got {seed}")
        self.preset, self.seed = preset, seed
        self.region = draw_region(preset, seed)
        self.terrain = make_terrain(preset, self.region, seed)
        site = Site(preset, self.region, self.terrain, seed)
        self._wedge = draw_wedge(site)
        self._voids = draw_voids(site)
        nothing = wedge_polygons(self._wedge, site.extent_m)
        ground = Ground(site.extent_m, nothing)
        self._slumps = place_slumps(site, ground)
        for lake in self.terrain.lakes:
            ground.take(lake.shape.polygon())
        self._lookalikes = place_lookalikes(site, ground, len(self._slumps))
        self._buckets = self._index()
        self.geobox = self._scene_geobox()
        self.dem_geobox = self._dem_geobox()
        self._gains = _Gains(preset, seed)

    @property
    def slumps(self) -> tuple[Feature, ...]:
        """Slumps in scene metres (x right, y down)."""
        return tuple(self._slumps)

    @property
    def lookalikes(self) -> tuple[Feature, ...]:
        """Look-alikes in scene metres (x right, y down)."""
        return tuple(self._lookalikes)

    def outline(self, feature: Feature) -> Polygon:
        """A feature's true outline in the scene's CRS."""
        affine = self.geobox.affine
        pixel = self.preset.ground_sample_distance_m

        def to_crs(points: Doubles) -> Doubles:
            return np.stack(
                [affine.c + points[:, 0] / pixel * affine.a, affine.f + points[:, 1] / pixel * affine.e], 1
            )

        return transform(feature.outline, to_crs)

    def render(self, window: Window) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Image of a window: uint8 (3, H, W) red, green, blue, 0 without data; and validity (H, W)."""
        wide = Window(window.row0 - 2, window.col0 - 2, window.row1 + 2, window.col1 + 2)
        rows, cols = _axis(wide.row0, wide.row1), _axis(wide.col0, wide.col1)
        relief = self.relief(rows, cols, for_dem=False)
        light, calm = self._ground_colours(rows, cols, relief)
        shade = self._shading(relief.elevation)
        self._paint_features(light, calm, shade, rows, cols)
        self._gains.apply(light, shade, rows, cols)
        picture = _blurred(light)[:, 1:-1, 1:-1]
        picture += self._sensor_noise(window)
        valid = self._has_data(window)
        dn = np.clip(np.rint(picture), 1, 255) * valid
        return dn.astype(np.uint8), valid

    def render_elevation(self, window: Window) -> Floats:
        """Elevation (H, W) float32 metres on a window of the DEM's grid, -9999 where it has none."""
        rows, cols = self._dem_positions(window)
        size, margin = self.preset.size_px, MARGIN_PX - 8
        known = (rows > -margin) & (rows < size + margin) & (cols > -margin) & (cols < size + margin)
        if not known.any():
            return np.full(window.shape, DEM_NODATA, np.float32)
        low_row, high_row = int(np.floor(rows[known].min())), int(np.floor(rows[known].max())) + 2
        low_col, high_col = int(np.floor(cols[known].min())), int(np.floor(cols[known].max())) + 2
        relief = self.relief(_axis(low_row, high_row), _axis(low_col, high_col), for_dem=True)
        z = _bilinear(
            relief.elevation,
            np.where(known, rows, low_row),
            np.where(known, cols, low_col),
            low_row,
            low_col,
        )
        z += self._dem_noise(window)
        known &= ~self._in_void(rows, cols)
        # ArcticDEM's own step, 1/128 m; it also hides the last bits of the map projection
        return np.where(known, np.rint(z * 128) / 128, DEM_NODATA).astype(np.float32)

    def relief(self, rows: Doubles, cols: Doubles, *, for_dem: bool) -> Relief:
        """Relief on scene pixels; `for_dem` leaves out the slumps that are younger than the DEM."""
        pixel = self.preset.ground_sample_distance_m
        x, y = (cols + 0.5) * pixel, (rows + 0.5) * pixel
        z = self.terrain.elevation(rows, cols)
        detail = octaves(subseed(self.seed, "detail"), rows, cols, _DETAIL)
        to_stream = self._stream_distance(rows, cols, x, y)
        z -= np.float32(1.6) * smoothstep(0.5 - to_stream / 14.0)
        in_lake = np.full(z.shape, -1e3, np.float32)
        colour = np.zeros((*z.shape, 3), np.float32)
        for lake in self.terrain.lakes:
            bend_to_lake(z, lake, x, y, detail)
            part = _part(x, y, lake.shape.x, lake.shape.y, lake.shape.reach_m + 60.0)
            if part is not None:
                inside = blob_field(lake.shape, x[part[1]], y[part[0]]).astype(np.float32)
                nearer = inside > in_lake[part]
                in_lake[part] = np.where(nearer, inside, in_lake[part])
                colour[part] = np.where(nearer[..., None], np.array(lake.colour, np.float32), colour[part])
        for feature, part in self._features_on(x, y):
            if feature.dem_trace or not for_dem:
                carve(z[part], detail[part], feature, x[part[1]], y[part[0]])
        return Relief(z + detail, to_stream, in_lake, colour)

    def _index(self) -> dict[tuple[int, int], list[Feature]]:
        buckets: dict[tuple[int, int], list[Feature]] = defaultdict(list)
        for feature in (*self._lookalikes, *self._slumps):
            left, top, right, bottom = (int(v // _BUCKET_M) for v in feature.bounds_m)
            for i in range(top, bottom + 1):
                for j in range(left, right + 1):
                    buckets[i, j].append(feature)
        return buckets

    def _features_on(self, x: Doubles, y: Doubles) -> Iterator[tuple[Feature, tuple[slice, slice]]]:
        """Features that act on a lattice, look-alikes first, with their part of it."""
        found: dict[tuple[bool, int], Feature] = {}
        for i in range(int(y[0] // _BUCKET_M), int(y[-1] // _BUCKET_M) + 1):
            for j in range(int(x[0] // _BUCKET_M), int(x[-1] // _BUCKET_M) + 1):
                for feature in self._buckets.get((i, j), ()):
                    found[feature.kind == "slump", feature.number] = feature
        for _, feature in sorted(found.items(), key=lambda item: item[0]):
            left, top, right, bottom = feature.bounds_m
            rows = slice(*(int(v) for v in np.searchsorted(y, [top, bottom])))
            cols = slice(*(int(v) for v in np.searchsorted(x, [left, right])))
            if rows.start < rows.stop and cols.start < cols.stop:
                yield feature, (rows, cols)

    def _stream_distance(self, rows: Doubles, cols: Doubles, x: Doubles, y: Doubles) -> Floats:
        """Metres to the nearest stream's edge, at most _STREAM_REACH_M; a warp makes them wind."""
        far = np.float32(_STREAM_REACH_M)
        out = np.full((len(rows), len(cols)), far, np.float32)
        bend = 22.0
        for x0, y0, x1, y1, w0, w1 in self.terrain.streams.tolist():
            reach = _STREAM_REACH_M + 3.5 * bend + max(w0, w1)
            part = _part(x, y, (x0 + x1) / 2, (y0 + y1) / 2, reach + max(abs(x1 - x0), abs(y1 - y0)) / 2)
            if part is None:
                continue
            r, c = rows[part[0]], cols[part[1]]
            wx = bend * octave(subseed(self.seed, "warp x"), r, c, 14.0)
            wy = bend * octave(subseed(self.seed, "warp y"), r, c, 14.0)
            px = x[part[1]][None, :].astype(np.float32) + wx
            py = y[part[0]][:, None].astype(np.float32) + wy
            dx, dy = np.float32(x1 - x0), np.float32(y1 - y0)
            squared = np.float32((x1 - x0) ** 2 + (y1 - y0) ** 2 + 1e-3)
            share = np.clip(((px - np.float32(x0)) * dx + (py - np.float32(y0)) * dy) / squared, 0, 1)
            ex, ey = px - np.float32(x0) - share * dx, py - np.float32(y0) - share * dy
            width = np.float32(w0) + share * np.float32(w1 - w0)
            out[part] = np.minimum(out[part], np.sqrt(ex * ex + ey * ey) - width)
        return out

    def _ground_colours(self, rows: Doubles, cols: Doubles, relief: Relief) -> tuple[Floats, Floats]:
        """Colours (H, W, 3) of ground and water before shading, with and without fine texture."""
        region, seed = self.region, self.seed
        streaks, steepness = self._streaks(rows, cols)
        dryness = octaves(subseed(seed, "dry"), rows, cols, ((220.0, 0.6), (90.0, 0.5), (36.0, 0.4)))
        wetness = octaves(subseed(seed, "wet"), rows, cols, ((160.0, 0.5), (60.0, 0.5), (24.0, 0.4)))
        frayed = octaves(subseed(seed, "frayed"), rows, cols, ((11.0, 0.5), (5.0, 0.4), (2.5, 0.3)))
        valley = 1 - np.clip(relief.to_stream_m / _STREAM_REACH_M, 0, 1)
        wash = streaks * steepness
        tundra, dry, wet = (np.array(c, np.float32) for c in (region.tundra, region.dry, region.wet))
        colours = (tundra, dry, wet)
        dryness -= valley
        wetness += valley
        calm = _mixed(colours, dryness, wetness, 0.6)
        light = _mixed(colours, dryness + 0.4 * frayed, wetness - 0.5 * frayed + 0.5 * wash, 1.1)
        slow = (3.5 * octave(subseed(seed, "slow"), rows, cols, 130.0))[..., None]
        calm += slow
        light += slow + (region.streak_dn * wash)[..., None] + self._texture(rows, cols, steepness)
        self._paint_water(light, relief, frayed)
        return light, calm

    def _streaks(self, rows: Doubles, cols: Doubles) -> tuple[Floats, Floats]:
        """Noise drawn out downslope (standard deviation near 1), and steepness as 0 (flat) .. 1."""
        reach, step = 10, 4.0
        pixel = self.preset.ground_sample_distance_m
        z = self.terrain.elevation
        run = np.float32(2 * step * pixel)
        down_row = (z(rows - step, cols) - z(rows + step, cols)) / run
        down_col = (z(rows, cols - step) - z(rows, cols + step)) / run
        length = np.sqrt(down_row * down_row + down_col * down_col) + np.float32(1e-6)
        wide_rows, wide_cols = (
            _axis(int(rows[0]) - reach, int(rows[-1]) + reach + 1),
            _axis(int(cols[0]) - reach, int(cols[-1]) + reach + 1),
        )
        grain = octaves(subseed(self.seed, "streaks"), wide_rows, wide_cols, ((5.0, 0.8), (2.4, 0.7)))
        i, j = np.arange(len(rows))[:, None] + reach, np.arange(len(cols))[None, :] + reach
        total = np.zeros_like(length)
        for k in (-9, -6, -3, 0, 3, 6, 9):
            at_row = i + np.rint(down_row / length * np.float32(k)).astype(np.int64)
            at_col = j + np.rint(down_col / length * np.float32(k)).astype(np.int64)
            total += grain[at_row, at_col]
        return total * np.float32(0.4), smoothstep(length / np.float32(0.12))

    def _texture(self, rows: Doubles, cols: Doubles, steepness: Floats) -> Floats:
        """Mottled vegetation and ice-wedge polygon nets on gentle ground, DN (H, W, 3)."""
        region, seed = self.region, self.seed
        parts = ((9.0, 0.4), (4.5, 0.5), (2.2, 0.6), (1.2, 0.4))
        mottle = octaves(subseed(seed, "mottle"), rows, cols, parts)
        # quiet lawns beside rough ground, as real tundra has
        rough = np.float32(0.35) + smoothstep(
            octaves(subseed(seed, "rough"), rows, cols, ((70.0, 0.5), (25.0, 0.4))) + 0.5
        )
        where = smoothstep(
            1.4 * octaves(subseed(seed, "nets"), rows, cols, ((150.0, 0.7), (50.0, 0.4)))
            + 0.9
            - 1.4 * steepness
        )
        warp = 0.1 * octave(subseed(seed, "net warp"), rows, cols, 30.0)
        gap = cells(subseed(seed, "net cells"), rows, cols, region.polygon_cell_px)
        net = (
            np.float32(region.polygon_dn)
            * where
            * np.clip(1 - gap / (0.27 + np.clip(warp, -0.15, 0.2)), 0, 1)
        )
        green = 1.6 * octaves(subseed(seed, "green"), rows, cols, ((20.0, 0.7), (7.0, 0.6)))
        common = region.mottle_dn * rough * mottle + net
        return np.stack([common - 0.5 * green, common + green, common - 0.8 * green], axis=-1)

    def _paint_water(self, light: Floats, relief: Relief, frayed: Floats) -> None:
        """Streams with pale gravel here and there; lakes with a shore line and a shallow rim."""
        stream = np.array((50.0, 56.0, 50.0), np.float32)
        edge = relief.to_stream_m + 3.0 * frayed
        gravel = np.maximum(1 - np.abs(edge - 5.0) / 6.0, 0) * np.clip(frayed + 0.3, 0, 1)
        light += (16.0 * gravel)[..., None]
        light += (0.85 * smoothstep(0.5 - relief.to_stream_m / 4.0))[..., None] * (stream - light)
        inside = relief.in_lake_m + 5.0 * frayed
        shore = np.maximum(1 - np.abs(inside + 5.0) / 6.0, 0)
        light += (11.0 * shore * np.clip(frayed + 0.6, 0, 1.4))[..., None]
        shallow = np.maximum(1 - np.maximum(inside, 0) / 30.0, 0)
        water = relief.lake_colour + (9.0 * shallow + 1.6 * frayed)[..., None]
        light += (0.97 * smoothstep(inside / 5.0 + 0.5))[..., None] * (water - light)

    def _shading(self, elevation: Floats) -> Floats:
        """Factor of the sun on each inner pixel; the border row and column repeat their neighbours."""
        region, pixel = self.region, self.preset.ground_sample_distance_m
        zx = np.zeros_like(elevation)
        zy = np.zeros_like(elevation)
        zx[:, 1:-1] = (elevation[:, 2:] - elevation[:, :-2]) / np.float32(2 * pixel)
        zy[1:-1] = (elevation[2:] - elevation[:-2]) / np.float32(2 * pixel)
        sx, sy = region.sun
        sine = round(math.sin(math.radians(region.sun_altitude)), 9)
        cosine = round(math.cos(math.radians(region.sun_altitude)), 9)
        steepness = np.sqrt(1 + zx * zx + zy * zy)
        incidence = (
            np.float32(sine) - np.float32(cosine) * (zx * np.float32(sx) + zy * np.float32(sy))
        ) / steepness
        relative = np.clip(incidence / np.float32(sine), 0, 1.8)
        shade: Floats = np.float32(1) + np.float32(region.shading) * (relative - np.float32(1))
        return shade

    def _paint_features(
        self, light: Floats, calm: Floats, shade: Floats, rows: Doubles, cols: Doubles
    ) -> None:
        pixel = self.preset.ground_sample_distance_m
        x, y = (cols + 0.5) * pixel, (rows + 0.5) * pixel
        for feature, part in self._features_on(x, y):
            canvas = Canvas(light[part], calm[part], shade[part], x[part[1]], y[part[0]], self.region, pixel)
            paint(canvas, feature)

    def _sensor_noise(self, window: Window) -> Floats:
        rows, cols = np.arange(window.row0, window.row1), np.arange(window.col0, window.col1)
        words = hash_grid(subseed(self.seed, "sensor"), rows, cols)
        bands = []
        for shift in (0, 21, 42):
            # the sum of two uniforms is noise enough
            a = (words >> np.uint64(shift)) & np.uint64(1023)
            b = (words >> np.uint64(shift + 10)) & np.uint64(1023)
            bands.append((a + b).astype(np.float32) / np.float32(1023.0) - np.float32(1))
        return np.stack(bands) * np.float32(self.region.noise_dn * 2.449)

    def _has_data(self, window: Window) -> npt.NDArray[np.bool_]:
        pixel = self.preset.ground_sample_distance_m
        x = (_axis(window.col0, window.col1) + 0.5) * pixel
        y = (_axis(window.row0, window.row1) + 0.5) * pixel
        valid = np.ones(window.shape, bool)
        for a, b, c in self._wedge.tolist():
            valid &= a * x[None, :] + b * y[:, None] >= c
        return valid

    def _dem_noise(self, window: Window) -> Floats:
        rows, cols = _axis(window.row0, window.row1), _axis(window.col0, window.col1)
        parts = ((40.0, 0.8), (9.0, 0.5), (3.0, 0.6), (1.3, 0.5))
        return np.float32(self.region.dem_noise_m) * octaves(subseed(self.seed, "dem"), rows, cols, parts)

    def _in_void(self, rows: Doubles, cols: Doubles) -> npt.NDArray[np.bool_]:
        pixel = self.preset.ground_sample_distance_m
        x, y = (cols + 0.5) * pixel, (rows + 0.5) * pixel
        inside = np.zeros(rows.shape, bool)
        for blob in self._voids:
            near = (np.abs(x - blob.x) < blob.reach_m) & (np.abs(y - blob.y) < blob.reach_m)
            if near.any():
                inside[near] |= depth_at(blob, x[near], y[near]) > 0
        return inside

    def _scene_geobox(self) -> GeoBox:
        preset = self.preset
        words = subseed(self.seed, "place")
        epsg = preset.scene_epsg[words % len(preset.scene_epsg)]
        left = 440_000 + (words >> 8) % 25_000 * 4
        top = 7_640_000 + (words >> 24) % 75_000 * 4
        pixel = preset.ground_sample_distance_m
        affine = Affine(pixel, 0.0, left, 0.0, -pixel, top)
        return GeoBox((preset.size_px, preset.size_px), affine, f"EPSG:{epsg}")

    def _dem_geobox(self) -> GeoBox:
        preset = self.preset
        step, margin = preset.dem_ground_sample_distance_m, preset.dem_margin_m
        dem_crs = f"EPSG:{preset.dem_epsg}"
        box = self.geobox.boundingbox
        to_dem = Transformer.from_crs(str(self.geobox.crs), dem_crs, always_xy=True)
        frame = (box.left - margin, box.bottom - margin, box.right + margin, box.top + margin)
        left, bottom, right, top = to_dem.transform_bounds(*frame, densify_pts=21)
        left, top = math.floor(left / step) * step, math.ceil(top / step) * step
        shape = (math.ceil((top - bottom) / step), math.ceil((right - left) / step))
        return GeoBox(shape, Affine(step, 0.0, left, 0.0, -step, top), dem_crs)

    def _dem_positions(self, window: Window) -> tuple[Doubles, Doubles]:
        """Scene pixel coordinates (row, column) of the DEM's pixel centres in a window."""
        n = _DEM_NODES
        row_nodes = np.arange(window.row0 // n, -(-window.row1 // n) + 1) * n
        col_nodes = np.arange(window.col0 // n, -(-window.col1 // n) + 1) * n
        dem, scene = self.dem_geobox.affine, self.geobox.affine
        to_scene = Transformer.from_crs(str(self.dem_geobox.crs), str(self.geobox.crs), always_xy=True)
        east, north = np.meshgrid(dem.c + (col_nodes + 0.5) * dem.a, dem.f + (row_nodes + 0.5) * dem.e)
        x, y = to_scene.transform(east, north)
        node_cols, node_rows = (x - scene.c) / scene.a - 0.5, (y - scene.f) / scene.e - 0.5
        at_rows, at_cols = np.arange(window.row0, window.row1), np.arange(window.col0, window.col1)
        i, j = at_rows // n - row_nodes[0] // n, at_cols // n - col_nodes[0] // n
        fi, fj = (at_rows % n / n)[:, None], (at_cols % n / n)[None, :]

        def between(nodes: Doubles) -> Doubles:
            top = nodes[np.ix_(i, j)] * (1 - fj) + nodes[np.ix_(i, j + 1)] * fj
            bottom = nodes[np.ix_(i + 1, j)] * (1 - fj) + nodes[np.ix_(i + 1, j + 1)] * fj
            return top * (1 - fi) + bottom * fi

        return between(node_rows), between(node_cols)


def resized(preset: Preset, size_px: int | None) -> Preset:
    """The preset with another side; a different scene, since relief and drainage belong to the whole."""
    return preset if size_px is None else replace(preset, size_px=size_px)


def _mixed(
    colours: tuple[Floats, Floats, Floats], dryness: Floats, wetness: Floats, sharpness: float
) -> Floats:
    """Colours of the ground (tundra, dry, wet) mixed by fields of dryness and wetness."""
    tundra, dry, wet = colours
    out: Floats = tundra + smoothstep(sharpness * dryness + 0.25)[..., None] * (dry - tundra)
    out += smoothstep(sharpness * wetness + 0.15)[..., None] * (wet - out)
    return out


def _axis(start: int, stop: int) -> Doubles:
    return np.arange(start, stop, dtype=np.float64)


def _part(x: Doubles, y: Doubles, at_x: float, at_y: float, reach: float) -> tuple[slice, slice] | None:
    """The part of a lattice within `reach` of a place, or None."""
    rows = slice(*(int(v) for v in np.searchsorted(y, [at_y - reach, at_y + reach])))
    cols = slice(*(int(v) for v in np.searchsorted(x, [at_x - reach, at_x + reach])))
    return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else None


def _bilinear(z: Floats, rows: Doubles, cols: Doubles, row0: int, col0: int) -> Floats:
    i, j = np.floor(rows), np.floor(cols)
    fi, fj = (rows - i).astype(np.float32), (cols - j).astype(np.float32)
    r, c = i.astype(np.int64) - row0, j.astype(np.int64) - col0
    top = z[r, c] * (1 - fj) + z[r, c + 1] * fj
    bottom = z[r + 1, c] * (1 - fj) + z[r + 1, c + 1] * fj
    return np.asarray(top * (1 - fi) + bottom * fi, np.float32)


def _blurred(light: Floats) -> Floats:
    """The sensor's point spread, 3 x 3; loses one pixel on each side. Returns (3, H, W)."""
    a, b, c = (np.float32(v) for v in _BLUR)
    tall = a * light[:-2] + b * light[1:-1] + c * light[2:]
    wide = a * tall[:, :-2] + b * tall[:, 1:-1] + c * tall[:, 2:]
    out: Floats = np.ascontiguousarray(np.moveaxis(wide, -1, 0))
    return out


class _Gains:
    """Differences between the strips of a mosaic, and haze that thickens across the scene."""

    def __init__(self, preset: Preset, seed: int) -> None:
        draw = Draws(seed, "gains")
        self._extent_px = float(preset.size_px)
        angle = draw.uniform(-0.35, 0.35)
        self._normal = (round(math.cos(angle), 9), round(math.sin(angle), 9))
        width = draw.uniform(700.0, 2200.0)
        self._width, self._offset = width, draw.uniform(0, width)
        self._seed = subseed(seed, "strip")
        self._haze = (draw.uniform(-4, 4), draw.uniform(-4, 4), draw.uniform(0.0, 5.0))
        self._strength = draw.uniform(0.01, 0.06)

    def apply(self, light: Floats, shade: Floats, rows: Doubles, cols: Doubles) -> None:
        """Turn colours into 8-bit numbers, in place: shade, gain of the strip, haze."""
        across = cols[None, :] * self._normal[0] + rows[:, None] * self._normal[1] + self._offset
        strip = np.floor(across / self._width).astype(np.int64)
        haze_x, haze_y, haze = self._haze
        slow = haze_x * (cols / self._extent_px)[None, :] + haze_y * (rows / self._extent_px)[:, None]
        lifts = (1.0, 1.15, 1.5)
        for number in np.unique(strip).tolist():
            draw = Draws(self._seed, number)
            here = strip == number
            base = 1 + draw.normal(0, self._strength)
            for band in range(3):
                gain = np.float32(base + draw.normal(0, 0.3 * self._strength))
                lift = (haze * lifts[band] + slow).astype(np.float32)
                shaded = light[..., band] * shade * gain + lift
                light[..., band] = np.where(here, shaded, light[..., band])

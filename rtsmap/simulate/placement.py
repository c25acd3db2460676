"""Where slumps and their look-alikes lie, and what each is like."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from shapely import Polygon, box

from rtsmap.simulate.noise import Doubles, Draws, subseed
from rtsmap.simulate.outlines import (
    Blob,
    Ribbon,
    Scar,
    draw_blob,
    draw_crescent,
    draw_ribbon,
    draw_scar,
)
from rtsmap.simulate.presets import Preset
from rtsmap.simulate.regions import Region
from rtsmap.simulate.terrain import Terrain

BRIGHTNESS_QUANTILES = (
    (0.0, -32.0),
    (0.05, -17.0),
    (0.25, -3.5),
    (0.5, 7.0),
    (0.75, 18.5),
    (0.95, 35.0),
    (1.0, 52.0),
)
"""Floor minus surroundings, 8-bit DN, measured on published chips: 65 % of floors are brighter."""

_BUCKET_M = 512.0
_GAP_M = 14.0
_SETTINGS = (("hillslope", 0.5), ("lakeshore", 0.24), ("stream", 0.26))

Shape = Scar | Blob | Ribbon | Doubles


@dataclass(frozen=True, slots=True)
class Feature:
    """One slump or look-alike.

    `tint` is floor minus surroundings in red, green, blue DN; `depth_m` the headwall's height or the
    depth of a hollow, `bulge_m` that of the tongue's deposit; `dem_trace` is False where the
    elevation model is older than the slump; `reach_m` is how far from its outline a feature acts.
    """

    number: int
    kind: str
    shape: Shape
    outline: Polygon
    seed: int
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)
    depth_m: float = 0.0
    bulge_m: float = 0.0
    wall_m: float = 8.0
    dem_trace: bool = True
    reach_m: float = 24.0
    setting: str = ""

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of everything the feature changes, in scene metres."""
        left, top, right, bottom = self.outline.bounds
        return left - self.reach_m, top - self.reach_m, right + self.reach_m, bottom + self.reach_m

    @property
    def scar(self) -> Scar:
        """The shape of a slump or old scar."""
        if not isinstance(self.shape, Scar):
            raise TypeError(f"a {self.kind} is no scar")
        return self.shape

    @property
    def blob(self) -> Blob:
        """The shape of a patch, basin or shadow."""
        if not isinstance(self.shape, Blob):
            raise TypeError(f"a {self.kind} is no blob")
        return self.shape

    @property
    def ribbon(self) -> Ribbon:
        """The shape of a bank, gully or track."""
        if not isinstance(self.shape, Ribbon):
            raise TypeError(f"a {self.kind} is no ribbon")
        return self.shape


class Ground:
    """What is already taken. Buckets keep the search for neighbours short."""

    def __init__(self, extent_m: float, forbidden: Iterable[Polygon]) -> None:
        margin = 12.0
        self._inside = box(margin, margin, extent_m - margin, extent_m - margin)
        self._buckets: dict[tuple[int, int], list[Polygon]] = defaultdict(list)
        for shape in forbidden:
            self.take(shape)

    def is_free(self, shape: Polygon, gap_m: float = _GAP_M) -> bool:
        """True when the shape lies inside the scene and a gap away from all that was taken."""
        if not self._inside.contains(shape):
            return False
        wide = shape.buffer(gap_m, quad_segs=1)
        return not any(other.intersects(wide) for key in _keys(wide) for other in self._buckets[key])

    def take(self, shape: Polygon) -> None:
        """Mark as taken."""
        for key in _keys(shape):
            self._buckets[key].append(shape)


def _keys(shape: Polygon) -> list[tuple[int, int]]:
    left, top, right, bottom = (int(v // _BUCKET_M) for v in shape.bounds)
    return [(i, j) for i in range(top, bottom + 1) for j in range(left, right + 1)]


@dataclass(frozen=True, slots=True)
class Site:
    """What placing needs to know of a scene."""

    preset: Preset
    region: Region
    terrain: Terrain
    seed: int

    @property
    def extent_m(self) -> float:
        """Side of the scene."""
        return self.preset.size_px * self.preset.ground_sample_distance_m

    def downslope(self, x: float, y: float) -> tuple[tuple[float, float], float]:
        """Direction downslope (right, down; length 1) and slope in degrees."""
        zx, zy = self.terrain.gradient_at(min(max(x, 0.0), self.extent_m), min(max(y, 0.0), self.extent_m))
        rise = math.hypot(zx, zy)
        direction = (-zx / rise, -zy / rise) if rise > 1e-9 else (1.0, 0.0)
        return direction, math.degrees(math.atan(rise))


def place_slumps(site: Site, ground: Ground) -> list[Feature]:
    """Slumps of the scene, large ones placed first; a size that finds no room is left out."""
    draw = Draws(site.seed, "slumps")
    areas = sorted((_area(draw, site.preset) for _ in range(_slump_count(draw, site))), reverse=True)
    offset = draw.uniform()
    slumps: list[Feature] = []
    for area in areas:
        number = len(slumps)
        share = site.preset.without_dem_trace
        # systematic sampling keeps the share even in small scenes and over all sizes
        stale = math.floor((number + 1) * share + offset) > math.floor(number * share + offset)
        slump = _place_slump(
            Draws(site.seed, "slump", number), site, ground, area, number=number, dem_trace=not stale
        )
        if slump is not None:
            slumps.append(slump)
    return slumps


def _slump_count(draw: Draws, site: Site) -> int:
    if site.preset.slump_count is not None:
        return draw.integer(*site.preset.slump_count)
    return max(1, round(site.region.slumps_per_km2 * site.preset.area_km2))


def _area(draw: Draws, preset: Preset) -> float:
    """A slump's area; sizes outside the limits, or too large for the scene, are drawn again."""
    low, high = preset.area_limits_m2
    high = min(high, 0.02 * preset.area_km2 * 1e6)
    if high <= low:
        # a scene with room for none of them has the least
        return low
    while True:
        area = draw.lognormal(preset.area_ln_mean, preset.area_ln_sd)
        if low <= area <= high:
            return area


def _place_slump(
    draw: Draws, site: Site, ground: Ground, area_m2: float, *, number: int, dem_trace: bool
) -> Feature | None:
    for _ in range(500):
        setting = _SETTINGS[draw.weighted([w for _, w in _SETTINGS])][0]
        spot = _spot(draw, site, setting, area_m2)
        if spot is None:
            continue
        (x, y), down, slope = spot
        scar = draw_scar(draw, (x, y), down, area_m2, has_tongue=draw.chance(0.85))
        outline = scar.polygon()
        if not ground.is_free(outline, 2.5 * _GAP_M if area_m2 > 3000 else _GAP_M):
            continue
        ground.take(outline)
        depth = _headwall_m(draw, area_m2, scar, slope)
        return Feature(
            number=number,
            kind="slump",
            shape=scar,
            outline=outline,
            seed=subseed(site.seed, "texture", number),
            tint=slump_tint(draw, site.region.slump_shift_dn),
            depth_m=depth,
            bulge_m=depth * draw.uniform(0.15, 0.35),
            wall_m=draw.uniform(6.0, 9.0),
            dem_trace=dem_trace,
            setting=setting,
        )
    return None


def _spot(
    draw: Draws, site: Site, setting: str, area_m2: float
) -> tuple[tuple[float, float], tuple[float, float], float] | None:
    """A place, its direction downslope and its slope; None when the place drawn is no slump ground."""
    x, y = draw.uniform(0, site.extent_m), draw.uniform(0, site.extent_m)
    back = 0.75 * math.sqrt(area_m2) + 10.0
    if setting == "lakeshore" and site.terrain.lakes:
        lake = site.terrain.lakes[draw.integer(0, len(site.terrain.lakes) - 1)].shape
        angle = draw.uniform(0, 2 * math.pi)
        out = lake.radius_m + back
        x, y = lake.x + out * math.cos(angle), lake.y + out * math.sin(angle)
    elif setting == "stream" and len(site.terrain.streams):
        x0, y0, x1, y1, _, _ = site.terrain.streams[draw.integer(0, len(site.terrain.streams) - 1)].tolist()
        run, side = math.hypot(x1 - x0, y1 - y0) or 1.0, 1.0 if draw.chance(0.5) else -1.0
        x, y = x0 - side * (y1 - y0) / run * (back + 15.0), y0 + side * (x1 - x0) / run * (back + 15.0)
    if not (0 < x < site.extent_m and 0 < y < site.extent_m):
        return None
    down, slope = site.downslope(x, y)
    low, high = site.preset.slope_limits_degrees
    azimuth = math.degrees(math.atan2(down[0], -down[1]))
    lean = 0.5 + 0.5 * math.cos(math.radians(azimuth - site.region.aspect_preferred))
    accepted = draw.chance(1 - site.region.aspect_strength * (1 - lean))
    return ((x, y), down, slope) if low <= slope <= high and accepted else None


def _headwall_m(draw: Draws, area_m2: float, scar: Scar, slope_degrees: float) -> float:
    """Height of the headwall: higher in larger slumps, and no more than leaves the floor descending."""
    height = 3.6 * (area_m2 / 8000.0) ** 0.2 * math.exp(draw.normal(0, 0.32))
    descent = math.tan(math.radians(slope_degrees)) * scar.neck * scar.length_m
    return float(round(min(max(height, 2.0), 12.0, max(1.6, 0.85 * descent)), 4))


def slump_tint(draw: Draws, shift_dn: float) -> tuple[float, float, float]:
    """Floor minus surroundings: brightness by the measured quantiles, less green in 70 %."""
    light = draw.quantile(BRIGHTNESS_QUANTILES) + 0.5 * shift_dn - 3.0
    green = -draw.uniform(1.5, 6.0) if draw.chance(0.62) else draw.uniform(0.0, 4.5)
    red, blue = -0.4 * green + draw.normal(0, 1.2), -0.4 * green + draw.normal(0, 2.6)
    return light + red, light + green, light + blue


def place_lookalikes(site: Site, ground: Ground, slumps: int) -> list[Feature]:
    """At least `lookalikes_per_slump` look-alikes for each slump; kinds without room become bare patches."""
    draw = Draws(site.seed, "lookalikes")
    preset = site.preset
    wanted = max(
        math.ceil(preset.lookalikes_per_slump * slumps), round(preset.lookalikes_per_km2 * preset.area_km2)
    )
    found: list[Feature] = []
    attempts = 0
    while len(found) < wanted and attempts < 3 * wanted + 50:
        attempts += 1
        kind = preset.lookalike_weights[draw.weighted([w for _, w in preset.lookalike_weights])][0]
        one = _place_lookalike(Draws(site.seed, "lookalike", attempts), site, ground, kind, len(found))
        if one is not None:
            found.append(one)
    return found


def _place_lookalike(draw: Draws, site: Site, ground: Ground, kind: str, number: int) -> Feature | None:
    for _ in range(60):
        made = MAKERS[kind](draw, site)
        if made is None:
            continue
        shape, traits = made
        outline = Polygon(shape) if isinstance(shape, np.ndarray) else shape.polygon()
        if outline.is_valid and ground.is_free(outline):
            ground.take(outline)
            seed = subseed(site.seed, "lookalike texture", number)
            return Feature(number=number, kind=kind, shape=shape, outline=outline, seed=seed, **traits)
    return None


Made = tuple[Shape, dict[str, Any]] | None


def _somewhere(draw: Draws, site: Site) -> tuple[float, float]:
    return draw.uniform(0, site.extent_m), draw.uniform(0, site.extent_m)


def _like_area(draw: Draws, site: Site, limit_m2: float) -> float:
    low = site.preset.area_limits_m2[0]
    return min(max(draw.lognormal(site.preset.area_ln_mean, site.preset.area_ln_sd), low), limit_m2)


def _bare_patch(draw: Draws, site: Site) -> Made:
    """Dry bare ground: the colours of slump floors, no headwall, no relief."""
    x, y = _somewhere(draw, site)
    radius = math.sqrt(_like_area(draw, site, 60_000) / math.pi)
    blob = draw_blob(draw, x, y, radius, roughness=0.13, stretch=draw.uniform(1.0, 1.8))
    return blob, {"tint": slump_tint(draw, site.region.slump_shift_dn), "wall_m": draw.uniform(5.0, 22.0)}


def _bank(draw: Draws, site: Site) -> Made:
    """A bare bank along a stream or slope: straight scarp, shadow and bare face, no bowl."""
    if len(site.terrain.streams) and draw.chance(0.6):
        x, y, x1, y1, _, _ = site.terrain.streams[draw.integer(0, len(site.terrain.streams) - 1)].tolist()
        heading = (x1 - x, y1 - y)
        x, y = x - 0.3 * (y1 - y), y + 0.3 * (x1 - x)
    else:
        x, y = _somewhere(draw, site)
        down, slope = site.downslope(x, y)
        if slope < 3:
            return None
        heading = (-down[1], down[0])
    shape = draw_ribbon(
        draw, (x, y), heading, length_m=draw.uniform(80, 420), half_width_m=draw.uniform(6, 15), winding=0.16
    )
    down, _ = site.downslope(x, y)
    sign = 1.0 if heading[0] * down[1] - heading[1] * down[0] > 0 else -1.0
    tint = slump_tint(draw, site.region.slump_shift_dn)
    return shape, {"tint": tint, "depth_m": sign * draw.uniform(1.5, 5.0), "reach_m": 70.0}


def _gully(draw: Draws, site: Site) -> Made:
    """Thermo-erosion gully: a narrow winding V downslope."""
    x, y = _somewhere(draw, site)
    down, slope = site.downslope(x, y)
    if slope < 3:
        return None
    half = draw.uniform(6, 16)
    shape = draw_ribbon(draw, (x, y), down, length_m=draw.uniform(90, 420), half_width_m=half, winding=0.22)
    bare = draw.chance(0.5)
    tint = slump_tint(draw, site.region.slump_shift_dn) if bare else (-14.0, -6.0, -12.0)
    return shape, {"tint": tint, "depth_m": draw.uniform(1.5, 5.5), "reach_m": 30.0}


def _drained_basin(draw: Draws, site: Site) -> Made:
    """A drained lake: a wide flat hollow, greener, with a rim."""
    x, y = _somewhere(draw, site)
    if site.downslope(x, y)[1] > 5:
        return None
    blob = draw_blob(draw, x, y, draw.uniform(60, 170), roughness=0.1, stretch=draw.uniform(1.0, 1.3))
    light = draw.normal(0, 6)
    tint = (light - draw.uniform(3, 9), light + draw.uniform(0, 3), light - draw.uniform(3, 9))
    return blob, {"tint": tint, "depth_m": draw.uniform(1.0, 3.0), "reach_m": 50.0}


def _stable_scar(draw: Draws, site: Site) -> Made:
    """An old slump: the bowl is there, softened and grown over."""
    area = _like_area(draw, site, 80_000)
    spot = _spot(draw, site, "hillslope", area)
    if spot is None:
        return None
    centre, down, slope = spot
    scar = draw_scar(draw, centre, down, area, has_tongue=draw.chance(0.6))
    depth = _headwall_m(draw, area, scar, slope) * draw.uniform(0.6, 1.0)
    light = draw.normal(-3, 5)
    tint = (light - draw.uniform(3, 8), light + draw.uniform(0, 4), light - draw.uniform(3, 8))
    return scar, {
        "tint": tint,
        "depth_m": depth,
        "bulge_m": depth * draw.uniform(0.1, 0.3),
        "wall_m": draw.uniform(16, 28),
    }


def _snow(draw: Draws, site: Site) -> Made:
    """A late snow patch: a bright crescent like a headwall."""
    x, y = _somewhere(draw, site)
    return draw_crescent(draw, x, y, draw.uniform(50, 220)), {"wall_m": 4.0}


def _road(draw: Draws, site: Site) -> Made:
    """A gravel pad or a piece of track: sharp edges, slightly raised."""
    x, y = _somewhere(draw, site)
    tint = (draw.uniform(10, 34),) * 3
    if draw.chance(0.45):
        width, height, angle = draw.uniform(30, 110), draw.uniform(30, 90), draw.uniform(0, math.pi)
        c, s = math.cos(angle), math.sin(angle)
        corners = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        ring = [
            (x + (a * width * c - b * height * s) / 2, y + (a * width * s + b * height * c) / 2)
            for a, b in corners
        ]
        return np.round(np.array(ring), 3), {"tint": tint, "depth_m": -draw.uniform(0.4, 1.2), "wall_m": 4.0}
    angle = draw.uniform(0, 2 * math.pi)
    shape = draw_ribbon(
        draw,
        (x, y),
        (math.cos(angle), math.sin(angle)),
        length_m=draw.uniform(250, 900),
        half_width_m=draw.uniform(4, 7),
        winding=0.04,
    )
    return shape, {"tint": tint, "depth_m": -draw.uniform(0.2, 0.8)}


def _cloud_shadow(draw: Draws, site: Site) -> Made:
    """The shadow of a small cloud: dark, soft, in the image only."""
    x, y = _somewhere(draw, site)
    blob = draw_blob(draw, x, y, draw.uniform(40, 150), roughness=0.1, stretch=draw.uniform(1.0, 1.6))
    return blob, {"depth_m": draw.uniform(0.2, 0.42), "wall_m": draw.uniform(20, 50), "reach_m": 60.0}


MAKERS: dict[str, Callable[[Draws, Site], Made]] = {
    "bare_patch": _bare_patch,
    "bank": _bank,
    "gully": _gully,
    "drained_basin": _drained_basin,
    "stable_scar": _stable_scar,
    "snow": _snow,
    "road": _road,
    "cloud_shadow": _cloud_shadow,
}
"""How each kind of look-alike is drawn: shape and traits, or None where the place does not suit."""


def draw_voids(site: Site) -> list[Blob]:
    """Holes of the elevation model."""
    draw = Draws(site.seed, "voids")
    count = round(site.preset.dem_voids_per_km2 * site.preset.area_km2 + draw.uniform(-0.5, 0.5))
    return [
        draw_blob(
            draw, *_somewhere(draw, site), draw.uniform(25, 130), roughness=0.2, stretch=draw.uniform(1, 1.5)
        )
        for _ in range(count)
    ]


def draw_wedge(site: Site) -> Doubles:
    """Half-planes a x + b y < c (metres) where the scene has no data: slanted edges. Shape (n, 3)."""
    draw = Draws(site.seed, "wedge")
    extent = site.extent_m
    planes = []
    if draw.chance(site.preset.nodata_wedge):
        for corner in ((0, 0), (1, 1)) if draw.chance(0.4) else ((0, 0),):
            angle = draw.uniform(0.03, 0.25)
            inward = 1.0 if corner == (0, 0) else -1.0
            a, b = round(inward * math.cos(angle), 9), round(inward * math.sin(angle), 9)
            start = a * corner[0] * extent + b * corner[1] * extent
            planes.append((a, b, start + draw.uniform(0.04, 0.22) * extent))
    return np.array(planes, np.float64).reshape(-1, 3)


def wedge_polygons(planes: Doubles, extent_m: float) -> list[Polygon]:
    """The part of the scene without data."""
    frame = box(0, 0, extent_m, extent_m)
    shapes = []
    for a, b, c in planes.tolist():
        far = 4 * extent_m
        foot = (a * c, b * c)
        edge = [(foot[0] - b * far, foot[1] + a * far), (foot[0] + b * far, foot[1] - a * far)]
        back = [(x - a * far, y - b * far) for x, y in reversed(edge)]
        shapes.append(Polygon(edge + back).intersection(frame))
    return [s for s in shapes if not s.is_empty]

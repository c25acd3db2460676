"""Shapes on the ground: slumps, scars, blobs, crescents, winding lines.

All coordinates are metres from the scene's upper left corner, x to the right and y DOWN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np
from shapely import LineString, Polygon

from rtsmap.simulate.noise import Doubles, Draws


@dataclass(frozen=True, slots=True)
class Blob:
    """A star-shaped outline: radius times a few harmonics of the direction."""

    x: float
    y: float
    radius_m: float
    harmonics: tuple[tuple[float, float], ...]
    stretch: float = 1.0
    direction: tuple[float, float] = (1.0, 0.0)

    @property
    def reach_m(self) -> float:
        """No point of the outline is further than this from the centre."""
        swing = sum(math.hypot(a, b) for a, b in self.harmonics)
        return self.radius_m * (1 + swing) * max(self.stretch, 1 / self.stretch)

    def polygon(self, points: int = 72) -> Polygon:
        """The outline as a polygon."""
        ring = []
        ux, uy = self.direction
        for waves in _waves(points, len(self.harmonics)):
            swing = sum(a * c + b * s for (a, b), (c, s) in zip(self.harmonics, waves[1:], strict=True))
            radius = self.radius_m * (1 + swing)
            cosine, sine = waves[0]
            u, v = radius * cosine * self.stretch, radius * sine / self.stretch
            ring.append((self.x + u * ux - v * uy, self.y + u * uy + v * ux))
        return Polygon(ring)


@cache
def _waves(points: int, harmonics: int) -> list[list[tuple[float, float]]]:
    """Cosine and sine of once, twice .. the direction to each point of a ring."""
    angles = [2 * math.pi * k / points for k in range(points)]
    return [[(math.cos(n * a), math.sin(n * a)) for n in range(1, harmonics + 2)] for a in angles]


def draw_blob(draw: Draws, x: float, y: float, radius_m: float, *, roughness: float, stretch: float) -> Blob:
    """A blob with harmonics 2 to 6 of falling strength."""
    harmonics = tuple((draw.normal(0, roughness / n), draw.normal(0, roughness / n)) for n in range(1, 6))
    swing = sum(math.hypot(a, b) for a, b in harmonics)
    if swing > 0.75:
        harmonics = tuple((a * 0.75 / swing, b * 0.75 / swing) for a, b in harmonics)
    angle = draw.uniform(0, 2 * math.pi)
    return Blob(x, y, radius_m, harmonics, stretch, (round(math.cos(angle), 9), round(math.sin(angle), 9)))


def blob_field(blob: Blob, x: Doubles, y: Doubles) -> Doubles:
    """Depth inside the outline in metres (negative outside) on the lattice y x x. Near enough, not exact."""
    return depth_at(blob, x[None, :], y[:, None])


def depth_at(blob: Blob, x: Doubles, y: Doubles) -> Doubles:
    """Depth inside a blob at points, as `blob_field`."""
    dx, dy = x - blob.x, y - blob.y
    ux, uy = blob.direction
    u = (dx * ux + dy * uy) / blob.stretch
    v = (dy * ux - dx * uy) * blob.stretch
    radius = np.sqrt(u * u + v * v) + 1e-6
    cos_1, sin_1 = u / radius, v / radius
    cos_n, sin_n = cos_1, sin_1
    edge = np.ones_like(radius)
    for a, b in blob.harmonics:  # harmonic 2 first: cos and sin of n + 1 by the addition theorem
        cos_n, sin_n = cos_n * cos_1 - sin_n * sin_1, sin_n * cos_1 + cos_n * sin_1
        edge += a * cos_n + b * sin_n
    return edge * blob.radius_m - radius


@dataclass(frozen=True, slots=True)
class Scar:
    """The outline of a slump or of an old scar in its slope.

    `ring` (n, 2) x, y; `is_headwall` (n,) for the edge that starts at each point; `origin` is the top
    of the headwall, `down` points downslope (length 1). The bowl ends and the tongue begins at
    `neck` (share of `length_m`).
    """

    ring: Doubles
    is_headwall: tuple[bool, ...]
    origin: tuple[float, float]
    down: tuple[float, float]
    length_m: float
    width_m: float
    neck: float

    def polygon(self) -> Polygon:
        """The outline as a polygon."""
        return Polygon(self.ring)


def draw_scar(
    draw: Draws, centre: tuple[float, float], down: tuple[float, float], area_m2: float, *, has_tongue: bool
) -> Scar:
    """A scar of exactly `area_m2`, its middle at `centre`."""
    ratio = 1.0 + min(draw.lognormal(-0.4, 0.7), 5.0)
    state = draw.integer(0, 1 << 60)
    roughness = 1.0
    while True:
        points, t, neck = _unit_scar(Draws(state), ratio, roughness, has_tongue=has_tongue)
        shape = Polygon(points)
        if shape.is_valid and shape.area > 0:
            break
        roughness *= 0.6
        if roughness < 0.01:
            raise AssertionError("a smooth scar outline must be valid")
    length = math.sqrt(area_m2 / shape.area)
    u, v = (points[:, 0] - 0.5) * length, points[:, 1] * length
    ring = np.stack([centre[0] + u * down[0] - v * down[1], centre[1] + u * down[1] + v * down[0]], axis=1)
    wall = t < neck * 0.62
    is_headwall = tuple(bool(a and b) for a, b in zip(wall, np.roll(wall, -1), strict=True))
    origin = (centre[0] - 0.5 * length * down[0], centre[1] - 0.5 * length * down[1])
    return Scar(np.round(ring, 4), is_headwall, origin, down, length, length / ratio, neck)


def _half_width(t: float, neck: float, at_neck: float, tongue: float, power: float) -> float:
    """Half-width of a scar at share t of its length: bowl, neck, tongue with a round end."""
    widest = 0.5 * neck
    if t <= widest:
        return float((1 - ((widest - t) / widest) ** power) ** (1 / power))
    if t <= neck:
        fall = 0.5 - 0.5 * math.cos(math.pi * (t - widest) / (neck - widest))
        return 1 - fall * (1 - at_neck)
    rise = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (t - neck) / (0.6 * (1 - neck) + 1e-9)))
    width = at_neck + rise * (tongue - at_neck)
    end = neck + 0.6 * (1 - neck)
    return width * math.sqrt(max(0.0, 1 - ((t - end) / (1 - end)) ** 2)) if t > end else width


def _unit_scar(
    draw: Draws, ratio: float, roughness: float, *, has_tongue: bool
) -> tuple[Doubles, Doubles, float]:
    """Outline with length 1 along u: points (u, v), position t along the length, and the neck's t."""
    neck = draw.uniform(0.48, 0.68) if has_tongue else draw.uniform(0.82, 0.9)
    at_neck = draw.uniform(0.38, 0.62) if has_tongue else draw.uniform(0.7, 0.95)
    tongue = at_neck * draw.uniform(1.0, 1.45)
    power = draw.uniform(1.9, 2.8)
    bend = draw.uniform(-0.16, 0.16)
    half = 0.5 / ratio
    along = 0.5 - 0.5 * np.cos(np.pi * np.arange(25) / 24.0)
    widths = np.array([half * _half_width(float(t), neck, at_neck, tongue, power) for t in along])
    t = np.concatenate([along, along[-2:0:-1]])
    v = np.concatenate([widths, -widths[-2:0:-1]]) + bend * (t - 0.2) ** 2
    points = np.stack([t, v], axis=1)
    step = np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], axis=1) / np.hypot(step[:, 0], step[:, 1])[:, None]
    outward = normal if _signed_area(points) < 0 else -normal
    push = roughness * half * (_scallops(draw, t, neck) + _ripple(draw, len(t)))
    return np.round(points + outward * push[:, None], 7), t, neck


def _signed_area(points: Doubles) -> float:
    following = np.roll(points, -1, axis=0)
    return float(np.sum(points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0])) / 2


def _scallops(draw: Draws, t: Doubles, neck: float) -> Doubles:
    """Arcuate lobes of the headwall, in half-widths."""
    lobes, depth, phase = draw.integer(1, 4), draw.uniform(0.06, 0.26), draw.uniform(0, math.pi)
    around = np.arange(len(t)) / len(t) * 2 * math.pi
    fade = np.clip(1 - t / (neck * 0.7), 0, 1)
    return np.asarray(depth * (np.abs(np.sin(lobes * around * 1.3 + phase)) - 0.5) * fade, np.float64)


def _ripple(draw: Draws, count: int) -> Doubles:
    """Irregularities all around, in half-widths."""
    around = np.arange(count) / count * 2 * math.pi
    total = np.zeros(count)
    for n in range(2, 13):
        total += draw.normal(0, 0.16 / n**0.8) * np.cos(n * around + draw.uniform(0, 2 * math.pi))
    return total


@dataclass(frozen=True, slots=True)
class ScarField:
    """A scar on a lattice.

    Depth inside (negative outside), distance to the headwall, and how that wall faces the sun (-1 away
    .. 1 towards); `t` along and `v` across in shares of the length.
    """

    inside_m: Doubles
    to_headwall_m: Doubles
    facing: Doubles
    t: Doubles
    v: Doubles


def scar_field(scar: Scar, sun: tuple[float, float], x: Doubles, y: Doubles) -> ScarField:
    """Distances of a lattice y x x to a scar's outline, exact."""
    px, py = x[None, :], y[:, None]
    shape = (len(y), len(x))
    best: Doubles = np.full(shape, 1e18)
    wall: Doubles = np.full(shape, 1e18)
    facing: Doubles = np.zeros(shape)
    inside = np.zeros(shape, bool)
    ring = scar.ring.tolist()
    turn = 1.0 if _signed_area(scar.ring) > 0 else -1.0
    for k, (ax, ay) in enumerate(ring):
        bx, by = ring[(k + 1) % len(ring)]
        squared = _to_segment(px, py, (ax, ay), (bx, by))
        best = np.minimum(best, squared)
        crosses = (ay > py) != (by > py)
        inside ^= crosses & (px < (bx - ax) * (py - ay) / (by - ay if by != ay else 1e-30) + ax)
        if scar.is_headwall[k]:
            length = math.sqrt((bx - ax) ** 2 + (by - ay) ** 2) or 1.0
            # the wall faces into the scar
            face = turn * (-(by - ay) * sun[0] + (bx - ax) * sun[1]) / length
            facing = np.where(squared < wall, face, facing)
            wall = np.minimum(wall, squared)
    depth = np.sqrt(best)
    u = (px - scar.origin[0]) * scar.down[0] + (py - scar.origin[1]) * scar.down[1]
    v = (py - scar.origin[1]) * scar.down[0] - (px - scar.origin[0]) * scar.down[1]
    return ScarField(
        np.where(inside, depth, -depth), np.sqrt(wall), facing, u / scar.length_m, v / scar.length_m
    )


def _to_segment(px: Doubles, py: Doubles, a: tuple[float, float], b: tuple[float, float]) -> Doubles:
    """Squared distance of points to a segment."""
    (ax, ay), (bx, by) = a, b
    dx, dy = bx - ax, by - ay
    squared = dx * dx + dy * dy or 1e-12
    share = np.clip(((px - ax) * dx + (py - ay) * dy) / squared, 0.0, 1.0)
    ex, ey = px - ax - share * dx, py - ay - share * dy
    squared_distance: Doubles = ex * ex + ey * ey
    return squared_distance


@dataclass(frozen=True, slots=True)
class Ribbon:
    """A winding line of some width: gullies, banks, roads."""

    line: tuple[tuple[float, float], ...]
    half_width_m: float
    length_m: float = field(default=0.0)

    def polygon(self) -> Polygon:
        """The outline as a polygon."""
        return LineString(self.line).buffer(self.half_width_m, quad_segs=3)


def draw_ribbon(
    draw: Draws,
    start: tuple[float, float],
    heading: tuple[float, float],
    *,
    length_m: float,
    half_width_m: float,
    winding: float,
) -> Ribbon:
    """A ribbon that starts in direction `heading` and turns by `winding` (radians, sd) a step."""
    steps = max(3, min(24, int(length_m / 25)))
    angle = math.atan2(heading[1], heading[0])
    x, y = start
    line = [(round(x, 3), round(y, 3))]
    turn = 0.0
    for _ in range(steps):
        turn = 0.5 * turn + draw.normal(0, winding)
        x += length_m / steps * math.cos(angle + turn)
        y += length_m / steps * math.sin(angle + turn)
        line.append((round(x, 3), round(y, 3)))
    return Ribbon(tuple(line), half_width_m, length_m)


def ribbon_field(ribbon: Ribbon, x: Doubles, y: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Distance to the centre line, on which side (-1 left, 1 right of travel), and t along it (0..1)."""
    px, py = x[None, :], y[:, None]
    shape = (len(y), len(x))
    best: Doubles = np.full(shape, 1e18)
    side: Doubles = np.zeros(shape)
    along: Doubles = np.zeros(shape)
    pieces = list(pairwise(ribbon.line))
    for k, ((ax, ay), (bx, by)) in enumerate(pieces):
        squared = _to_segment(px, py, (ax, ay), (bx, by))
        nearer = squared < best
        cross = (bx - ax) * (py - ay) - (by - ay) * (px - ax)
        dx, dy = bx - ax, by - ay
        share = np.clip(((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
        side = np.where(nearer, np.where(cross > 0, 1.0, -1.0), side)
        along = np.where(nearer, (k + share) / len(pieces), along)
        best = np.minimum(best, squared)
    return np.sqrt(best), side, along


def draw_crescent(draw: Draws, x: float, y: float, length_m: float) -> Doubles:
    """Ring of a crescent (a snow patch in a lee hollow), (n, 2)."""
    angle, bow = draw.uniform(0, 2 * math.pi), draw.uniform(0.15, 0.5)
    thick = length_m * draw.uniform(0.07, 0.2)
    share = np.linspace(0, 1, 15)
    base = bow * length_m * (1 - (2 * share - 1) ** 2)
    rough = np.array([draw.normal(0, 0.3) for _ in share])
    bulk = thick * np.sin(np.pi * share) * np.maximum(1 + rough, 0.25)
    u = np.concatenate([(share - 0.5) * length_m, (share[::-1] - 0.5) * length_m])[:-1]
    v = np.concatenate([base + bulk / 2, (base - bulk / 2)[::-1]])[:-1]
    c, s = math.cos(angle), math.sin(angle)
    return np.round(np.stack([x + u * c - v * s, y + u * s + v * c], axis=1), 3)

"""What is common to one scene: colours, sun, relief, sensor. Drawn once from the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rtsmap.simulate.noise import Draws
from rtsmap.simulate.presets import Preset

Colour = tuple[float, float, float]

PALETTES: dict[str, tuple[Colour, Colour, Colour]] = {
    # tundra, dry ground, wet ground; 8-bit red, green, blue
    "banks": ((142, 132, 106), (164, 151, 122), (110, 106, 80)),
    "nitze": ((112, 110, 88), (138, 130, 106), (84, 94, 66)),
    "yamal": ((78, 85, 64), (98, 94, 74), (60, 75, 50)),
    "gydan": ((86, 84, 66), (112, 102, 84), (62, 74, 54)),
    "herschel": ((90, 98, 66), (124, 118, 92), (62, 80, 46)),
    "lena": ((104, 104, 84), (130, 122, 100), (76, 84, 64)),
    "peel": ((72, 80, 58), (104, 98, 80), (52, 66, 44)),
    "dark": ((62, 62, 52), (86, 80, 68), (44, 54, 40)),
}
"""Background colours of regions, after published chips of Banks, Herschel, Yamal, Gydan, Lena."""

WATERS: tuple[tuple[Colour, float], ...] = (
    ((24, 34, 34), 0.55),
    ((112, 112, 92), 0.20),
    ((66, 124, 108), 0.15),
    ((178, 182, 174), 0.10),
)
"""Colours of lakes with their shares: clear and dark, turbid, turquoise, ice."""


@dataclass(frozen=True, slots=True)
class Region:
    """The common traits of one scene. Angles in degrees, azimuths clockwise from north."""

    tundra: Colour
    dry: Colour
    wet: Colour
    gain: float
    sun_azimuth: float
    sun_altitude: float
    shading: float
    mottle_dn: float
    streak_dn: float
    polygon_dn: float
    polygon_cell_px: float
    slump_shift_dn: float
    aspect_preferred: float
    aspect_strength: float
    relief_scale: float
    lakes_per_km2: float
    slumps_per_km2: float
    noise_dn: float
    dem_noise_m: float

    @property
    def sun(self) -> tuple[float, float]:
        """Horizontal direction to the sun as (right, down), length 1."""
        azimuth = math.radians(self.sun_azimuth)
        return round(math.sin(azimuth), 9), round(-math.cos(azimuth), 9)


def draw_region(preset: Preset, seed: int) -> Region:
    """The region of one seed."""
    draw = Draws(seed, "region")
    colours = PALETTES[preset.palettes[draw.integer(0, len(preset.palettes) - 1)]]
    shift = [draw.normal(0.0, preset.palette_jitter_dn) * 0.4 for _ in range(3)]
    common = draw.normal(0.0, preset.palette_jitter_dn)
    contrast = draw.uniform(0.7, 1.5)
    tundra = _shifted(colours[0], shift, common)
    return Region(
        tundra=tundra,
        dry=_contrasted(tundra, _shifted(colours[1], shift, common), contrast),
        wet=_contrasted(tundra, _shifted(colours[2], shift, common), contrast),
        gain=draw.uniform(0.92, 1.1),
        sun_azimuth=draw.uniform(140.0, 220.0),
        sun_altitude=draw.uniform(28.0, 45.0),
        shading=draw.uniform(0.8, 1.2),
        mottle_dn=draw.uniform(6.0, 13.0),
        streak_dn=draw.uniform(3.0, 10.0),
        polygon_dn=draw.uniform(-26.0, -8.0) if draw.chance(0.8) else draw.uniform(4.0, 10.0),
        polygon_cell_px=draw.uniform(5.0, 9.0),
        slump_shift_dn=draw.uniform(-3.0, 4.0),
        aspect_preferred=draw.uniform(0.0, 360.0),
        aspect_strength=draw.between(preset.aspect_strength),
        relief_scale=draw.between(preset.relief_scale),
        lakes_per_km2=draw.between(preset.lakes_per_km2),
        slumps_per_km2=draw.between(preset.slumps_per_km2),
        noise_dn=draw.between(preset.noise_dn),
        dem_noise_m=draw.between(preset.dem_noise_m),
    )


def _shifted(colour: Colour, shift: list[float], common: float) -> Colour:
    red, green, blue = (max(18.0, c + s + common) for c, s in zip(colour, shift, strict=True))
    return red, green, blue


def _contrasted(centre: Colour, colour: Colour, factor: float) -> Colour:
    red, green, blue = (c + factor * (x - c) for c, x in zip(centre, colour, strict=True))
    return red, green, blue

"""What can be simulated: named sets of numbers. `benchmark-1` never changes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rtsmap.errors import OptionsError

LOOKALIKE_WEIGHTS: tuple[tuple[str, float], ...] = (
    ("bare_patch", 0.29),
    ("bank", 0.13),
    ("gully", 0.13),
    ("drained_basin", 0.08),
    ("stable_scar", 0.16),
    ("snow", 0.08),
    ("road", 0.06),
    ("cloud_shadow", 0.07),
)
"""Kinds of places that are no slumps but share a trait with them, and how often each is drawn."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Numbers of one family of scenes. Pairs are limits of a uniform draw for each seed.

    `size_px` is the scene's side; `slump_count` overrules `slumps_per_km2`. Slump areas are
    log-normal and drawn again outside `area_limits_m2`. `palettes` and `palette_jitter` (DN) rule
    the region's colours, `scene_epsg` its zone. Raises OptionsError for impossible numbers.
    """

    name: str
    size_px: int = 1280
    ground_sample_distance_m: float = 4.0
    scene_epsg: tuple[int, ...] = (32608,)
    dem_epsg: int = 3413
    dem_ground_sample_distance_m: float = 5.0
    dem_margin_m: float = 240.0
    slumps_per_km2: tuple[float, float] = (1.6, 2.25)
    slump_count: tuple[int, int] | None = None
    area_ln_mean: float = 9.0
    area_ln_sd: float = 1.3
    area_limits_m2: tuple[float, float] = (1500.0, 900_000.0)
    slope_limits_degrees: tuple[float, float] = (4.0, 17.0)
    aspect_strength: tuple[float, float] = (0.0, 0.8)
    without_dem_trace: float = 0.30
    lookalikes_per_slump: float = 5.3
    lookalikes_per_km2: float = 3.0
    lookalike_weights: tuple[tuple[str, float], ...] = LOOKALIKE_WEIGHTS
    lakes_per_km2: tuple[float, float] = (0.3, 1.0)
    relief_scale: tuple[float, float] = (1.4, 2.3)
    palettes: tuple[str, ...] = ("banks", "nitze", "yamal", "gydan")
    palette_jitter_dn: float = 5.0
    noise_dn: tuple[float, float] = (1.0, 2.5)
    nodata_wedge: float = 0.6
    declares_nodata: bool = True
    dem_noise_m: tuple[float, float] = (0.08, 0.2)
    dem_voids_per_km2: float = 0.12

    def __post_init__(self) -> None:
        if not 64 <= self.size_px <= 40_000:
            raise OptionsError(f"preset '{self.name}': size_px must be within 64..40000, got {self.size_px}")
        if not 0 < self.area_limits_m2[0] < self.area_limits_m2[1]:
            raise OptionsError(f"preset '{self.name}': area_limits_m2 {self.area_limits_m2} are no range")
        if not 0 <= self.without_dem_trace <= 1:
            raise OptionsError(
                f"preset '{self.name}': without_dem_trace is a share, got {self.without_dem_trace}"
            )

    @property
    def area_km2(self) -> float:
        """Ground covered by the scene."""
        return (self.size_px * self.ground_sample_distance_m / 1000.0) ** 2


_BENCHMARK = Preset("benchmark-1")

_TRAINING = Preset(
    "training",
    scene_epsg=(32607, 32608, 32609, 32610, 32612, 32641, 32642, 32643, 32652),
    slumps_per_km2=(0.8, 3.0),
    area_limits_m2=(1000.0, 900_000.0),
    palettes=("banks", "nitze", "yamal", "gydan", "herschel", "lena", "peel", "dark"),
    palette_jitter_dn=10.0,
    lakes_per_km2=(0.1, 1.4),
    relief_scale=(1.2, 2.8),
    noise_dn=(0.5, 4.0),
    dem_noise_m=(0.05, 0.3),
)

PRESETS: dict[str, Preset] = {
    "benchmark-1": _BENCHMARK,
    "benchmark-1-sparse": replace(_BENCHMARK, name="benchmark-1-sparse", size_px=800, slump_count=(0, 1)),
    "training": _TRAINING,
    "demo": replace(_BENCHMARK, name="demo", size_px=640, palettes=("nitze",), nodata_wedge=1.0),
}
"""Presets by name. benchmark-1 is for comparing models; its smallest slump, 1500 m2, is about as small
as a slump can be seen at 4 m (94 pixels)."""


def find_preset(name: str) -> Preset:
    """The preset of that name; raises OptionsError that lists those there are."""
    try:
        return PRESETS[name]
    except KeyError:
        raise OptionsError(f"unknown preset '{name}'; there are: {', '.join(PRESETS)}") from None

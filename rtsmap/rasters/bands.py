"""What a network wants to see: bands, grouped into modalities, at one ground resolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rtsmap.errors import BandError

BAND_UNITS: dict[str, str] = {
    "red": "DN",
    "green": "DN",
    "blue": "DN",
    "nir": "DN",
    "ndvi": "1",
    "ndwi": "1",
    "relative_elevation": "m",
    "slope": "degree",
    "shaded_relief": "DN",
    "rise_right": "1",
    "rise_up": "1",
}
"""Every band name that rtsmap knows, with its unit. DN is the 8-bit scale 0-255."""

GRADIENT_BANDS = ("rise_right", "rise_up")
"""Rise over run towards the right and towards the top of the image."""

TERRAIN_BANDS = frozenset({"relative_elevation", "slope", "shaded_relief", *GRADIENT_BANDS})
"""Bands derived from an elevation model; all others are read from imagery."""

_LARGEST = 1e9

BANDS_EXAMPLE = "red=5,green=3,blue=2"
"""Natural colour of the eight WorldView bands."""


def parse_bands(text: str) -> dict[str, int]:
    """Band numbers by name from `red=5,green=3,blue=2`; BandError says what cannot be understood."""
    bands: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = (piece.strip().lower() for piece in part.partition("="))
        if not number.isdecimal():
            raise BandError(f"bands '{text}': cannot read '{part}'; wanted NAME=NUMBER as in {BANDS_EXAMPLE}")
        if name in bands:
            raise BandError(f"bands '{text}': '{name}' is named twice")
        bands[name] = int(number)
    return check_bands(bands)


def check_bands(bands: Mapping[str, int]) -> dict[str, int]:
    """The same, once it is sure that imagery can have them: known names, a number of its own for each."""
    for name, number in bands.items():
        if name not in BAND_UNITS or name in TERRAIN_BANDS:
            known = ", ".join(sorted(set(BAND_UNITS) - TERRAIN_BANDS))
            raise BandError(f"bands: imagery has no band called '{name}'; rtsmap knows: {known}")
        if not isinstance(number, int) or number < 1:
            raise BandError(f"bands: '{name}' was given as {number!r}; wanted a whole number from 1")
        twins = [other for other in bands if bands[other] == number]
        if len(twins) > 1:
            raise BandError(
                f"bands: {' and '.join(twins)} were all given as {number}; wanted a band of its own for each"
            )
    return dict(bands)


def _is_number(value: Any) -> bool:
    """Whether single precision can reckon with it: nan and infinity are none, nor is True."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


@dataclass(frozen=True, slots=True)
class Band:
    """One band as the network sees it.

    `mean` and `sd` normalise it; values outside `low`..`high` are clipped (all in the band's unit).
    Raises BandError for unknown names and impossible numbers.
    """

    name: str
    mean: float
    sd: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.name not in BAND_UNITS:
            known = ", ".join(sorted(BAND_UNITS))
            raise BandError(f"unknown band '{self.name}'; rtsmap knows: {known}")
        for key in ("mean", "sd", "low", "high"):
            if not _is_number(getattr(self, key)):
                raise BandError(
                    f"band '{self.name}': {key} must be a number within 1e9 of 0, got {getattr(self, key)!r}"
                )
        if self.sd * _LARGEST < 1 or not self.low < self.high:
            raise BandError(
                f"band '{self.name}': wanted sd > 0 (1e-9 or more) and low < high, "
                f"got sd={self.sd}, low={self.low}, high={self.high}"
            )

    @property
    def unit(self) -> str:
        """Unit of the band's values."""
        return BAND_UNITS[self.name]


@dataclass(frozen=True, slots=True)
class Modality:
    """A named group of bands that shares one branch of the network and one validity mask."""

    name: str
    bands: tuple[Band, ...]

    def __post_init__(self) -> None:
        names = self.band_names
        if not isinstance(self.name, str) or not self.name:
            raise BandError(f"a modality's name must be a text, got {self.name!r}")
        if not names:
            raise BandError(f"modality '{self.name}' has no bands")
        if len(set(names)) != len(names):
            raise BandError(f"modality '{self.name}' names a band twice: {', '.join(names)}")
        if 0 < len(TERRAIN_BANDS.intersection(names)) < len(names):
            raise BandError(
                f"modality '{self.name}' mixes terrain with imagery ({', '.join(names)}): "
                "they come from different files and need validity masks of their own"
            )

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands in channel order."""
        return tuple(band.name for band in self.bands)

    @property
    def is_terrain(self) -> bool:
        """True when the bands come from an elevation model."""
        return self.bands[0].name in TERRAIN_BANDS


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Ground resolution in metres per pixel, and the modalities of a network (first one leads)."""

    resolution_m: float
    modalities: tuple[Modality, ...]

    def __post_init__(self) -> None:
        if not _is_number(self.resolution_m) or not 0.05 <= self.resolution_m <= 1000:
            raise BandError(f"resolution_m must be a number within 0.05..1000, got {self.resolution_m!r}")
        if not self.modalities:
            raise BandError("an input spec needs at least one modality")
        if len(set(self.names)) != len(self.names):
            raise BandError(f"a modality is named twice: {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the modalities in order."""
        return tuple(modality.name for modality in self.modalities)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in card.toml and plan.json."""
        return {
            "resolution_m": self.resolution_m,
            "modalities": [{"name": m.name, "bands": [asdict(b) for b in m.bands]} for m in self.modalities],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputSpec:
        """Rebuild from `to_dict`; raises BandError on missing or unknown keys."""
        try:
            if set(data) != {"resolution_m", "modalities"}:
                raise BandError(f"input spec has keys {sorted(data)}, wanted resolution_m, modalities")
            modalities = tuple(
                Modality(m["name"], tuple(Band(**b) for b in m["bands"])) for m in data["modalities"]
            )
            spec = cls(data["resolution_m"], modalities)
            return replace(spec, resolution_m=float(spec.resolution_m))
        except (KeyError, TypeError) as exc:
            raise BandError(f"input spec is incomplete or has unknown keys: {exc}") from exc


OPTICAL_RGB = Modality(
    "optical",
    (
        Band("red", 92.0, 28.0, 0.0, 255.0),
        Band("green", 96.0, 26.0, 0.0, 255.0),
        Band("blue", 78.0, 25.0, 0.0, 255.0),
    ),
)
"""8-bit RGB, normalised with figures near those of the published slump chips."""

NIR = Band("nir", 100.0, 31.0, 0.0, 255.0)
"""Near infrared on the 8-bit scale, spread about its mean as that of the published slump chips is."""

SPECTRAL = Modality("spectral", (NIR, Band("ndvi", 0.45, 0.2, -1.0, 1.0), Band("ndwi", -0.4, 0.2, -1.0, 1.0)))
"""What other sensors see beyond natural colour; the figures of the indices are those of summer tundra."""

TERRAIN = Modality(
    "terrain",
    (
        Band("relative_elevation", 0.0, 3.0, -50.0, 50.0),
        Band("slope", 5.0, 6.0, 0.0, 90.0),
        Band("shaded_relief", 180.0, 25.0, 0.0, 255.0),
    ),
)
"""Relief from an elevation model: height against the mean within 100 m, slope, shading."""

TERRAIN_FOR_TRAINING = Modality(
    "terrain", (*TERRAIN.bands, *(Band(name, 0.0, 0.15, -60.0, 60.0) for name in GRADIENT_BANDS))
)
"""The gradient as well, from which slope and shading are made anew when a chip is turned or flipped."""

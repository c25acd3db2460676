"""What features do to the relief."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rtsmap.simulate.noise import Doubles, Floats, noise_at, smoothstep
from rtsmap.simulate.outlines import Blob, Ribbon, Scar, ScarField, blob_field, ribbon_field, scar_field
from rtsmap.simulate.placement import Feature

_NO_SUN = (1.0, 0.0)


def carve(z: Floats, detail: Floats, feature: Feature, x: Doubles, y: Doubles) -> None:
    """Change relief `z` and small relief `detail` on the lattice y x x, in place."""
    carver = CARVERS.get(feature.kind)
    if carver is not None:
        carver(z, detail, feature, x, y)


def scar_profile(feature: Feature, field: ScarField) -> Floats:
    """Metres to add to the slope: a step down at the headwall that fades to the neck, then the deposit."""
    scar = feature.scar
    t = field.t.astype(np.float32)
    neck = np.float32(scar.neck)
    bowl = np.minimum(np.float32(1) - np.float32(0.72) * t / neck, smoothstep((neck + 0.14 - t) / 0.2))
    below = smoothstep(field.inside_m / feature.wall_m)
    tongue = smoothstep((t - neck) / (1 - neck + 0.02) * 2.5) * smoothstep(field.inside_m / 14.0)
    change = np.float32(feature.bulge_m) * tongue - np.float32(feature.depth_m) * below * np.maximum(bowl, 0)
    return np.asarray(change, np.float32)


def _scar(z: Floats, detail: Floats, feature: Feature, x: Doubles, y: Doubles) -> None:
    field = scar_field(feature.scar, _NO_SUN, x, y)
    z += scar_profile(feature, field)
    calm = 0.6 if feature.kind == "slump" else 0.2
    detail *= 1 - np.float32(calm) * smoothstep(field.inside_m / 8.0 + 0.5)


def _gully(z: Floats, _detail: Floats, feature: Feature, x: Doubles, y: Doubles) -> None:
    distance, _, along = ribbon_field(feature.ribbon, x, y)
    half = feature.ribbon.half_width_m
    profile = np.maximum(1 - (distance / (1.3 * half)) ** 2, 0) * smoothstep(
        np.minimum(along, 1 - along) / 0.12
    )
    z -= (feature.depth_m * profile).astype(np.float32)


def _bank(z: Floats, _detail: Floats, feature: Feature, x: Doubles, y: Doubles) -> None:
    """A scarp along the line; the ground below it climbs back within 60 m."""
    distance, side, along = ribbon_field(feature.ribbon, x, y)
    sign = 1.0 if feature.depth_m > 0 else -1.0
    across = distance * side * sign
    step = smoothstep((across + 8.0) / 12.0) * smoothstep((66.0 - across) / 58.0)
    ends = smoothstep(np.minimum(along, 1 - along) / 0.15) * smoothstep((66.0 - distance) / 20.0)
    z -= np.float32(abs(feature.depth_m)) * step * ends


def _basin(z: Floats, detail: Floats, feature: Feature, x: Doubles, y: Doubles) -> None:
    depth = blob_field(feature.blob, x, y)
    z -= np.float32(feature.depth_m) * smoothstep(depth / 22.0 + 0.4)
    rim = np.maximum(1 - ((depth + 10) / 14.0) ** 2, 0)
    z += (0.35 * rim).astype(np.float32)
    detail *= 1 - np.float32(0.6) * smoothstep(depth / 20.0)


def _pad(z: Floats, _detail: Floats, feature: Feature, x: Doubles, y: Doubles) -> None:
    z -= np.float32(feature.depth_m) * smoothstep(depth_inside(feature, x, y) / 6.0 + 0.5)


def depth_inside(feature: Feature, x: Doubles, y: Doubles) -> Doubles:
    """Metres inside the outline of any feature, negative outside."""
    shape = feature.shape
    if isinstance(shape, Blob):
        return blob_field(shape, x, y)
    if isinstance(shape, Ribbon):
        return shape.half_width_m - ribbon_field(shape, x, y)[0]
    if isinstance(shape, Scar):
        return scar_field(shape, _NO_SUN, x, y).inside_m
    ring = Scar(shape, (False,) * len(shape), (0.0, 0.0), (1.0, 0.0), 1.0, 1.0, 0.5)
    return scar_field(ring, _NO_SUN, x, y).inside_m


def rough_edge(feature: Feature, x: Doubles, y: Doubles, cell_m: float) -> Floats:
    """Noise in the frame of the scene for frayed borders."""
    return noise_at(feature.seed, np.broadcast_to(y[:, None], (len(y), len(x))) / cell_m, x[None, :] / cell_m)


CARVERS: dict[str, Callable[[Floats, Floats, Feature, Doubles, Doubles], None]] = {
    "slump": _scar,
    "stable_scar": _scar,
    "gully": _gully,
    "bank": _bank,
    "drained_basin": _basin,
    "road": _pad,
}
"""Kinds that have relief; the others are seen in the image only."""

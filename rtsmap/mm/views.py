"""Views of one chip: the network looks at it several times, transposed or turned.

Only views that leave the light where it is: a transposed chip is still lit from the upper left, and a
chip turned by 180 degrees is after its shaded relief was recomputed from shade and slope, which tell
the relief of the opposite sun (rtsmap.rasters.terrain.shaded_relief with its default sun). Every view is its
own inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rtsmap.nets.branches import Inputs
from rtsmap.rasters.bands import GRADIENT_BANDS, InputSpec, Modality

SUN_ALTITUDE_DEGREES = 45.0


@dataclass(frozen=True, slots=True)
class View:
    """How a chip is turned: by 180 degrees, then about its diagonal."""

    turned: bool = False
    transposed: bool = False

    def maps(self, values: Tensor) -> Tensor:
        """Maps (..., H, W) as the view shows them."""
        values = values.flip(-2, -1) if self.turned else values
        return values.transpose(-2, -1) if self.transposed else values

    def shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the view of a chip of this shape."""
        return (shape[1], shape[0]) if self.transposed else shape

    def boxes(self, boxes: Tensor, shape: tuple[int, int]) -> Tensor:
        """Boxes (n, 4) x0 y0 x1 y1 on a chip of this shape, as the view shows them."""
        if self.turned:
            height, width = shape
            boxes = boxes.new_tensor([width, height, width, height]) - boxes[:, [2, 3, 0, 1]]
        return boxes[:, [1, 0, 3, 2]] if self.transposed else boxes


VIEWS = (View(), View(transposed=True), View(turned=True), View(turned=True, transposed=True))
"""In the order in which they are taken."""


def hindrance(views: int, spec: InputSpec) -> str | None:
    """Why a network that wants this cannot look at so many views, in a sentence; None where it can."""
    if views not in {1, 2, 4}:
        return "wanted 1, 2 or 4"
    terrain = [set(modality.band_names) for modality in spec.modalities if modality.is_terrain]
    if views > 1 and any(names.intersection(GRADIENT_BANDS) for names in terrain):
        return "the bands rise_right and rise_up of this model do not turn along with a chip"
    if views > 2 and any("shaded_relief" in names and "slope" not in names for names in terrain):
        return "this model has shaded_relief without slope, which cannot be turned"
    return None


def viewed(inputs: Inputs, view: View, spec: InputSpec) -> Inputs:
    """Normalised inputs of a batch as the view shows them."""
    shown = {}
    for modality in spec.modalities:
        pixels, valid = inputs[modality.name]
        if view.turned and "shaded_relief" in modality.band_names:
            pixels = _lit_from_behind(pixels, modality)
        shown[modality.name] = (view.maps(pixels), view.maps(valid))
    return shown


def _lit_from_behind(pixels: Tensor, modality: Modality) -> Tensor:
    """The same bands with the sun at the opposite side: shade and slope give the sum of both reliefs."""
    names = modality.band_names
    shade, slope = names.index("shaded_relief"), names.index("slope")
    bands = modality.bands
    steepness = torch.deg2rad(pixels[:, slope] * bands[slope].sd + bands[slope].mean)
    both = 2 * 255 * math.sin(math.radians(SUN_ALTITUDE_DEGREES)) * torch.cos(steepness)
    relief = pixels[:, shade] * bands[shade].sd + bands[shade].mean
    opposite = ((both - relief).clamp(0, 255) - bands[shade].mean) / bands[shade].sd
    lit = pixels.clone()
    lit[:, shade] = opposite
    return lit

"""A sheet of held-out chips at the end of a stage: every modality, true outlines and those found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rtsmap.instances.detections import Detection
from rtsmap.instances.drawing import draw_found, draw_true, explain_outlines
from rtsmap.mm.detector import MASK_THRESHOLD
from rtsmap.mm.held_out import HeldOut
from rtsmap.mm.samples import Sample
from rtsmap.rasters.bands import InputSpec, Modality
from rtsmap.rasters.chips import Layer

COLUMNS = 6
MOST = 12
"""Chips that are drawn of one set."""

_NO_DATA = 1.0
_Shown = Sequence[tuple[Sample, Sequence[Detection]]]


def draw_predictions(
    path: Path,
    held_out: HeldOut,
    found: Mapping[str, Sequence[Sequence[Detection]]],
    spec: InputSpec,
    min_score: float,
) -> None:
    """Draw up to `MOST` chips of each set, the modalities side by side.

    Detections of at least `min_score` are shown. Chips where nothing is and nothing was found are left out.
    """
    from matplotlib.figure import Figure

    sure = {name: [[d for d in ds if d.score >= min_score] for ds in found[name]] for name in held_out.sets}
    chosen = {name: choose(samples, sure[name]) for name, samples in held_out.sets.items()}
    chosen = {name: shown for name, shown in chosen.items() if shown}
    across = max(1, COLUMNS // len(spec.modalities))
    lines = [-(-len(shown) // across) for shown in chosen.values()]
    size = (2.2 * across * len(spec.modalities), 2.45 * max(1, sum(lines)) + 0.4 * len(lines) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"score >= {min_score:g}" if chosen else "nothing there and nothing found")
    if chosen:
        parts = figure.subfigures(len(chosen), 1, height_ratios=lines, squeeze=False)[:, 0]
        for part, (name, shown), height in zip(parts, chosen.items(), lines, strict=True):
            part.suptitle(f"{name}: {len(shown)} of {len(held_out.sets[name])} chips")
            _draw_set(part.subplots(height, across * len(spec.modalities), squeeze=False), shown, spec)
        explain_outlines(figure)
    temporary = path.with_name(path.name + ".part")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(path)


def choose(samples: Sequence[Sample], found: Sequence[Sequence[Detection]]) -> _Shown:
    """At most `MOST` chips on which there is something to see, spread over all of them."""
    seen = [pair for pair in zip(samples, found, strict=True) if len(pair[0].masks) or pair[1]]
    if len(seen) <= MOST:
        return seen
    return [seen[round(i * (len(seen) - 1) / (MOST - 1))] for i in range(MOST)]


def _draw_set(axes: Any, shown: _Shown, spec: InputSpec) -> None:
    flat = axes.ravel()
    for axis in flat:
        axis.set_axis_off()
    panels = [(sample, found, modality) for sample, found in shown for modality in spec.modalities]
    for axis, (sample, found, modality) in zip(flat, panels, strict=False):
        height, width = sample.ignored.shape
        layer = sample.layers[modality.name]
        axis.imshow(picture(layer, modality), interpolation="nearest", vmin=0, vmax=1, cmap="gray")
        axis.set_title(sample.name if modality is spec.modalities[0] else modality.name, fontsize=6)
        axis.set_xlim(-0.5, width - 0.5)
        axis.set_ylim(height - 0.5, -0.5)
        if not layer.valid.any():
            axis.text(width / 2, height / 2, f"no {modality.name}", ha="center", color="grey", fontsize=7)
            continue
        for mask in sample.masks:
            draw_true(axis, mask)
        for one in found:
            draw_found(axis, _whole_mask(one, sample.ignored.shape), one.score)


def picture(layer: Layer, modality: Modality) -> npt.NDArray[np.float32]:
    """Natural colour (H, W, 3) or one grey band (H, W), 0..1, white where there is no data.

    Bands other than red, green and blue are shown from two standard deviations below their mean to two above.
    """
    names = modality.band_names
    if {"red", "green", "blue"} <= set(names):
        rgb = layer.pixels[[names.index(name) for name in ("red", "green", "blue")]] / 255
        colours = np.where(layer.valid, np.clip(rgb, 0, 1), _NO_DATA)
        return np.asarray(colours.transpose(1, 2, 0), np.float32)
    number = names.index("shaded_relief") if "shaded_relief" in names else 0
    band = modality.bands[number]
    grey = (layer.pixels[number] - band.mean) / (4 * band.sd) + 0.5
    return np.asarray(np.where(layer.valid, np.clip(grey, 0, 1), _NO_DATA), np.float32)


def _whole_mask(found: Detection, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(shape, np.bool_)
    mask[found.window.slices()] = found.mask >= MASK_THRESHOLD
    return mask

"""A sheet of labelled chips, the worst and the best, with true outlines and those that were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rtsmap.atomic import whole_file
from rtsmap.errors import InputError, why
from rtsmap.instances.coco_scores import mask_of, pixel_overlaps
from rtsmap.instances.drawing import draw_found, draw_true, explain_outlines
from rtsmap.rasters.bands import OPTICAL_RGB
from rtsmap.rasters.eight_bands import NPZ, file_of_chip, read_eight_bands
from rtsmap.runs.chip_scores import LabelledChips

COLUMNS = 6
COLUMN_INCHES = 2.2
_TITLE_INCHES = 0.3


def draw_sheet(
    path: Path,
    chips: LabelledChips,
    results: Sequence[Mapping[str, Any]],
    *,
    min_score: float,
    count: int = 12,
    overwrite: bool = False,
) -> None:
    """Draw the `count` worst chips and the `count` best ones by the IoU of all their slump pixels.

    Of `results` (COCO) those of at least `min_score` count. Chips that rightly show nothing are not drawn.
    With few chips the best ones are those that are not among the worst already. The sheet holds the
    pictures themselves: mind their licence.
    """
    from matplotlib.figure import Figure

    sure = [result for result in results if result["score"] >= min_score]
    worst, best = worst_and_best(chips, sure, count)
    rows = [(name, part) for name, part in (("Worst", worst), ("Best", best)) if part]
    heights = [_row_heights([image for image, _ in part]) for _, part in rows]
    parts_heights = [sum(lines) + 0.4 for lines in heights]
    figure = Figure(figsize=(COLUMN_INCHES * COLUMNS, sum(parts_heights) + 0.8), layout="constrained")
    figure.suptitle(f"{len(chips.group_of)} chips, score >= {min_score:g}")
    if rows:
        parts = figure.subfigures(len(rows), 1, height_ratios=parts_heights, squeeze=False)[:, 0]
        for part, (name, images), lines in zip(parts, rows, heights, strict=True):
            part.suptitle(name)
            axes = part.subplots(len(lines), COLUMNS, squeeze=False, height_ratios=lines).ravel()
            for axis in axes:
                axis.set_axis_off()
            for axis, (image, iou) in zip(axes, images, strict=False):
                _draw_chip(axis, chips, image, sure)
                axis.set_title(f"{Path(image['file_name']).stem}: IoU {iou:.2f}", fontsize=7)
        explain_outlines(figure)
    with whole_file(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=120)


def _row_heights(images: Sequence[Mapping[str, Any]]) -> list[float]:
    """Inches of each row: as its tallest chip needs them, chips much taller than wide being drawn smaller."""
    shapes = [min(image["height"] / image["width"], 1.5) for image in images]
    rows = [shapes[start : start + COLUMNS] for start in range(0, len(shapes), COLUMNS)]
    return [COLUMN_INCHES * max(row) + _TITLE_INCHES for row in rows]


Ranked = list[tuple[Mapping[str, Any], float]]


def worst_and_best(
    chips: LabelledChips, results: Sequence[Mapping[str, Any]], count: int
) -> tuple[Ranked, Ranked]:
    """Images with their pixel IoU: the `count` worst, worst first, and of the rest the best, best first.

    Of chips with the same IoU the one with more wrong pixels is the worse.
    """
    overlaps = pixel_overlaps(chips.document, results)

    def badness(image: Mapping[str, Any]) -> tuple[float, int, str]:
        both, either = overlaps[image["id"]]
        return both / either, both - either, str(image["file_name"])

    shown = [image for image in chips.document["images"] if overlaps[image["id"]][1]]
    ranked = [(image, badness(image)[0]) for image in sorted(shown, key=badness)]
    return ranked[:count], ranked[count:][::-1][:count]


def _draw_chip(
    axis: Any, chips: LabelledChips, image: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> None:
    shape = (image["height"], image["width"])
    axis.imshow(_picture(chips.images / image["file_name"], shape), interpolation="nearest")
    for annotation in chips.document["annotations"]:
        if annotation["image_id"] == image["id"]:
            draw_true(axis, mask_of(annotation["segmentation"], shape))
    for result in results:
        if result["image_id"] == image["id"]:
            draw_found(axis, mask_of(result["segmentation"], shape), result["score"])
    axis.set_xlim(-0.5, shape[1] - 0.5)
    axis.set_ylim(shape[0] - 0.5, -0.5)


def _picture(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    file = file_of_chip(path)
    if file.suffix == NPZ:
        colours, _ = read_eight_bands(file).bands(OPTICAL_RGB.band_names)
        return np.rint(colours.transpose(1, 2, 0)).astype(np.uint8)
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except OSError as exc:
        raise InputError(f"{path}: cannot be read as a picture: {why(exc)}") from exc
    if pixels.shape[:2] != shape:
        raise InputError(f"{path}: {pixels.shape[:2]} pixels (rows, columns), but the labels say {shape}")
    return pixels

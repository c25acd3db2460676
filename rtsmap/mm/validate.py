"""Scores of a network on labelled samples during training: instance F1 from masks, no georeference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from rtsmap.instances.detections import Detection
from rtsmap.mm.samples import Sample
from rtsmap.rasters.chips import Chip
from rtsmap.rasters.tiling import Tile, Window


@dataclass(frozen=True, slots=True)
class Hit:
    """One detection: its score and its best still free IoU with a slump (0 when none)."""

    score: float
    iou: float


def chip_of(sample: Sample) -> Chip:
    """The sample as a detector sees a chip, on a grid of its own pixels."""
    window = Window(0, 0, *sample.ignored.shape)
    return Chip(sample.layers, GeoBox(window.shape, Affine.identity(), None), Tile(0, window, window))


def match_sample(
    detections: Sequence[Detection], sample: Sample, least_iou: float, mask_threshold: int = 128
) -> list[Hit]:
    """Greedy one-to-one matching by score; detections mostly on ignored ground are left out.

    A slump is taken by the first detection that shares `least_iou` with it, as COCO does for each such limit.
    """
    hits = []
    free = list(range(len(sample.masks)))
    for found in sorted(detections, key=lambda d: -d.score):
        mask = found.mask >= mask_threshold
        area, rows_cols = int(mask.sum()), found.window.slices()
        if not area or (sample.ignored[rows_cols] & mask).sum() > area / 2:
            continue
        ious = [_iou(mask, area, sample.masks[i], rows_cols) for i in free]
        best = int(np.argmax(ious)) if ious else -1
        hits.append(Hit(found.score, ious[best] if ious else 0.0))
        if ious and ious[best] >= least_iou:
            free.pop(best)
    return hits


def _iou(
    mask: npt.NDArray[np.bool_], area: int, truth: npt.NDArray[np.bool_], rows_cols: tuple[slice, slice]
) -> float:
    shared = int((truth[rows_cols] & mask).sum())
    return shared / (area + int(truth.sum()) - shared) if shared else 0.0


def best_f1(hits: Sequence[Hit], slumps: int, iou: float) -> tuple[float, float, float, float]:
    """(F1, score threshold, precision, recall) at the threshold with the best F1; `hits` matched at `iou`."""
    best = (0.0, 1.0, 0.0, 0.0)
    right = 0
    for count, hit in enumerate(sorted(hits, key=lambda h: -h.score), start=1):
        right += hit.iou >= iou
        f1 = 2 * right / (count + slumps) if slumps else 0.0
        if f1 > best[0]:
            best = (f1, hit.score, right / count, right / slumps)
    return best


def average_precision(hits: Sequence[Hit], slumps: int, iou: float) -> float:
    """Area under the precision-recall curve with monotone precision (COCO without interpolation points).

    `hits` matched at `iou`.
    """
    ordered = sorted(hits, key=lambda h: -h.score)
    right = np.cumsum([hit.iou >= iou for hit in ordered])
    if not slumps or not len(right) or not right[-1]:
        return 0.0
    precision = right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.concatenate([[0], right / slumps])
    return float(np.sum(np.diff(recall) * precision))

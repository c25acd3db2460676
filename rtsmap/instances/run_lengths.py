"""Outlines as compressed COCO run lengths, in memory that grows with the outline and not with the image."""

from __future__ import annotations

import warnings
from math import ceil, floor
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from pycocotools import mask as coco_mask
from shapely.geometry.base import BaseGeometry


def coco_result(
    image_id: int, outline: BaseGeometry, shape: tuple[int, int], score: float, *, category_id: int = 1
) -> dict[str, Any] | None:
    """A result for an image (h, w) of the pixels whose centre lies in the outline, given in (x, y) pixels.

    None where no pixel does.
    """
    counts = _counts(_inside(outline, shape), shape)
    if len(counts) == 1:
        return None
    with warnings.catch_warnings():
        # pycocotools speaks to numpy 2 as to numpy 1
        warnings.simplefilter("ignore", DeprecationWarning)
        runs = coco_mask.frPyObjects({"size": list(shape), "counts": counts}, *shape)
    return {
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": {"size": list(shape), "counts": runs["counts"].decode("ascii")},
        "score": score,
    }


def runs_of(counts: str) -> list[int]:
    """The runs that COCO's compressed run lengths stand for: numbers of 5 bits a letter, least first.

    From the third on a number is the difference to the one before last.
    """
    runs: list[int] = []
    value = shift = 0
    for code in counts.encode("ascii"):
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _inside(outline: BaseGeometry, shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Numbers of the pixels inside, counted down the columns, sorted."""
    height, width = shape
    left, top, right, bottom = outline.bounds
    rows, cols = np.mgrid[
        max(0, floor(top)) : min(height, ceil(bottom)), max(0, floor(left)) : min(width, ceil(right))
    ]
    shapely.prepare(outline)
    inside = shapely.contains_xy(outline, cols + 0.5, rows + 0.5)
    return np.sort(cols[inside].astype(np.int64) * height + rows[inside])


def _counts(pixels: npt.NDArray[np.int64], shape: tuple[int, int]) -> list[int]:
    """Lengths of runs of zeros and ones in turn, beginning with zeros."""
    total = shape[0] * shape[1]
    if not pixels.size:
        return [total]
    gaps = np.flatnonzero(np.diff(pixels) > 1)
    starts = np.concatenate([pixels[:1], pixels[gaps + 1]])
    ends = np.concatenate([pixels[gaps], pixels[-1:]]) + 1
    edges = np.column_stack([starts, ends]).ravel()
    counts: list[int] = np.diff(np.concatenate([[0], edges, [total]])).tolist()
    return counts[:-1] if counts[-1] == 0 else counts

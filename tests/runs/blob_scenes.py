"""Small scenes with bright blobs, and engines that find them without a network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from odc.geo.geobox import GeoBox

from rtsmap.instances.detections import Detector
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from rtsmap.rasters.writing import write_geotiff
from rtsmap.runs.engine import Engine

RESOLUTION_M = 4.0
SPEC = InputSpec(RESOLUTION_M, (OPTICAL_RGB, TERRAIN))
LEFT, TOP = 512_000.0, 7_704_000.0
GROUND, SLUMP = 90, 200


@dataclass(frozen=True, slots=True)
class BlobScene:
    """Files of a scene; `labels` (H, W) numbers its blobs from 1."""

    path: Path
    labels: np.ndarray
    geobox: GeoBox


def grid(shape, resolution_m: float = RESOLUTION_M, left: float = LEFT, top: float = TOP) -> GeoBox:
    height, width = shape
    box = (left, top - height * resolution_m, left + width * resolution_m, top)
    return GeoBox.from_bbox(box, "EPSG:32608", shape=shape)


def blob_labels(shape, seed: int, count: int, radius: int = 30) -> np.ndarray:
    """Ellipses apart from each other: what touches an earlier one is left out."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, int)
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    for _ in range(count):
        r, c = rng.integers(shape[0]), rng.integers(shape[1])
        a, b = rng.integers(3, radius, 2)
        near = ((rows - r) / (a + 3)) ** 2 + ((cols - c) / (b + 3)) ** 2 <= 1
        if not labels[near].any():
            labels[((rows - r) / a) ** 2 + ((cols - c) / b) ** 2 <= 1] = labels.max() + 1
    return labels


def write_scene(path: Path, labels: np.ndarray, valid: np.ndarray | None = None) -> BlobScene:
    """Blobs of SLUMP, each a little different, on GROUND; invalid pixels are 0 and masked."""
    red = np.where(labels > 0, SLUMP + labels % 40, GROUND).astype(np.uint8)
    pixels = np.stack([red, np.full_like(red, 100), np.full_like(red, 80)])
    if valid is not None:
        pixels[:, ~valid] = 0
    geobox = grid(labels.shape)
    write_geotiff(path, pixels, geobox, valid=valid, band_names=("red", "green", "blue"), block_px=64)
    return BlobScene(path, labels, geobox)


def write_dem(path: Path, geobox: GeoBox, resolution_m: float = 8.0, share: float = 1.0) -> Path:
    """A plane that rises 0.1 m a metre towards the east, over the western `share` of a grid and beyond."""
    height = int(geobox.shape[0] * RESOLUTION_M / resolution_m) + 100
    width = int(geobox.shape[1] * RESOLUTION_M * share / resolution_m) + 50
    dem_grid = grid((height, width), resolution_m, LEFT - 50 * resolution_m, TOP + 50 * resolution_m)
    x = (np.arange(width) - 50 + 0.5) * resolution_m
    elevation = np.broadcast_to(100 + 0.1 * x, (height, width)).astype(np.float32)
    write_geotiff(path, elevation, dem_grid, nodata=-9999.0)
    return path


def engine(
    chip_px: int = 64, overlap_px: int = 16, detector: Detector | None = None, spec: InputSpec = SPEC
) -> Engine:
    """An engine around a thresholding detector, or another one that tells itself apart by its repr."""
    finder = detector or ThresholdDetector(low=160, high=255)
    return Engine(
        spec=spec,
        chip_px=chip_px,
        overlap_px=overlap_px,
        identity={"detector": "blobs"},
        load=partial(_same, finder),
        min_score=0.5,
    )


def _same(detector: Detector) -> Detector:
    return detector

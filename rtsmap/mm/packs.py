"""Packed training images: one safetensors file, read by slices, needing neither rasterio nor geopandas.

Each image `i` of a pack has the tensors

    i/optical           (3, H, W) uint8    red, green, blue in DN
    i/optical_valid     (H, W)    uint8    1 = data
    i/gradient          (2, H, W) float16  rise over run towards the right and towards the top of the image
    i/relative_elevation (H, W)   float16  metres above the mean within 100 m
    i/terrain_valid     (H, W)    uint8    1 = data
    i/spectral          (C, H, W) float16  bands beyond natural colour, named in the index, in their units
    i/spectral_valid    (H, W)    uint8    1 = data
    i/labels            (H, W)    int16    0 background, n > 0 slump n, -1 ground to ignore
    i/kinds             (H, W)    uint8    0 plain ground, k > 0 look-alike KINDS[k - 1], 255 unknown

The three terrain tensors are absent where there is no elevation model, `gradient` alone where only heights
are known, the spectral ones where there are no such bands, `kinds` where look-alikes are not known.
Gradients are stored instead of slope and shading, so that flips and rotations can recompute the shading for
the true sun.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rtsmap.errors import GridMismatchError, InputError
from rtsmap.mm.writing import written_whole
from rtsmap.rasters.bands import OPTICAL_RGB, Modality
from rtsmap.rasters.tiling import Window

KINDS = ("bare_patch", "bank", "gully", "drained_basin", "stable_scar", "snow", "road", "cloud_shadow")
"""Look-alikes that simulated scenes know by name."""

UNKNOWN_KIND = 255


@dataclass(frozen=True, slots=True)
class Terrain:
    """Gradient (2, H, W), relative elevation (H, W) in metres and validity (H, W), True = data.

    `gradient` is None where it is not known: then there is neither slope nor shading.
    """

    gradient: npt.NDArray[np.float32] | None
    relative_elevation: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Spectral:
    """Bands `names` beyond natural colour (C, H, W) in their units, and where all have data (H, W)."""

    names: tuple[str, ...]
    pixels: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """Pixels and labels of one image or of a window of it; see the module's text for the arrays.

    `group` names images that must stay on one side of a split; `resolution_m` is what a pixel shows, None
    where nobody knows; `hard` are places that look like slumps and are none. Raises GridMismatchError when
    shapes disagree.
    """

    name: str
    group: str
    optical: npt.NDArray[np.uint8]
    optical_valid: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int16]
    terrain: Terrain | None
    kinds: npt.NDArray[np.uint8] | None = None
    resolution_m: float | None = None
    spectral: Spectral | None = None
    hard: tuple[Window, ...] = ()

    def __post_init__(self) -> None:
        shape = self.labels.shape
        shapes = [self.optical.shape[1:], self.optical_valid.shape]
        if self.terrain:
            terrain = self.terrain
            shapes += [terrain.relative_elevation.shape, terrain.valid.shape]
            if terrain.gradient is not None:
                shapes.append(terrain.gradient.shape[1:])
        if self.spectral:
            shapes += [self.spectral.pixels.shape[1:], self.spectral.valid.shape]
        if self.kinds is not None:
            shapes.append(self.kinds.shape)
        if any(s != shape for s in shapes):
            raise GridMismatchError(f"training image {self.name}: labels are {shape}, other arrays {shapes}")


def write_pack(path: Path, images: Iterable[TrainingImage]) -> None:
    """Write images to one pack, under a temporary name until it is whole. Raises WriteError."""
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    index = []
    for i, image in enumerate(images):
        tensors[f"{i}/optical"] = image.optical
        tensors[f"{i}/optical_valid"] = image.optical_valid.astype(np.uint8)
        tensors[f"{i}/labels"] = image.labels.astype(np.int16)
        tensors |= {f"{i}/{name}": array for name, array in _more_tensors(image).items()}
        if image.kinds is not None:
            tensors[f"{i}/kinds"] = image.kinds
        index.append(
            {
                "name": image.name,
                "group": image.group,
                "shape": list(image.labels.shape),
                "terrain": image.terrain is not None,
                "gradient": image.terrain is not None and image.terrain.gradient is not None,
                "spectral": list(image.spectral.names) if image.spectral else [],
                "kinds": image.kinds is not None,
                "slumps": _slump_windows(image.labels),
                "hard": [[w.row0, w.col0, w.row1, w.col1] for w in image.hard],
                "resolution_m": image.resolution_m,
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    with written_whole(path) as temporary:
        save_file(contiguous, temporary, metadata={"rtsmap_pack": "1", "index": json.dumps(index)})


def _more_tensors(image: TrainingImage) -> dict[str, npt.NDArray[np.generic]]:
    """What only some images have."""
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    if image.terrain:
        tensors["relative_elevation"] = image.terrain.relative_elevation.astype(np.float16)
        tensors["terrain_valid"] = image.terrain.valid.astype(np.uint8)
        if image.terrain.gradient is not None:
            tensors["gradient"] = image.terrain.gradient.astype(np.float16)
    if image.spectral:
        tensors["spectral"] = image.spectral.pixels.astype(np.float16)
        tensors["spectral_valid"] = image.spectral.valid.astype(np.uint8)
    return tensors


def _slump_windows(labels: npt.NDArray[np.int16]) -> list[list[int]]:
    from scipy.ndimage import find_objects

    found = find_objects(np.maximum(labels, 0))
    return [[i + 1, s[0].start, s[1].start, s[0].stop, s[1].stop] for i, s in enumerate(found) if s]


@dataclass(frozen=True, slots=True)
class PackedImage:
    """Where one image of a pack lies, its (H, W) shape and the windows of its slumps by label.

    `hard` are the windows of places that look like slumps and are none. `resolution_m` is None where nobody
    knows, and in packs made before it was recorded.
    """

    path: Path
    number: int
    name: str
    group: str
    shape: tuple[int, int]
    has_terrain: bool
    has_kinds: bool
    slumps: tuple[tuple[int, Window], ...]
    resolution_m: float | None = None
    has_gradient: bool = True
    spectral: tuple[str, ...] = ()
    hard: tuple[Window, ...] = ()

    def shows(self, modality: Modality) -> bool:
        """Whether all bands of a modality can be had from it."""
        names = set(modality.band_names)
        if modality.is_terrain:
            return self.has_terrain and (self.has_gradient or names <= {"relative_elevation"})
        return names <= {*OPTICAL_RGB.band_names, *self.spectral}

    def read(self, window: Window) -> TrainingImage:
        """Read the part of the image under `window`, which must lie inside it."""
        rows, cols = window.slices()
        with safe_open(self.path, framework="numpy") as file:

            def part(name: str) -> npt.NDArray[np.generic]:
                view = file.get_slice(f"{self.number}/{name}")
                return np.asarray(view[rows, cols] if len(view.get_shape()) == 2 else view[:, rows, cols])

            terrain = None
            if self.has_terrain:
                terrain = Terrain(
                    part("gradient").astype(np.float32) if self.has_gradient else None,
                    part("relative_elevation").astype(np.float32),
                    part("terrain_valid").astype(bool),
                )
            spectral = None
            if self.spectral:
                pixels, valid = part("spectral").astype(np.float32), part("spectral_valid").astype(bool)
                spectral = Spectral(self.spectral, pixels, valid)
            return TrainingImage(
                self.name,
                self.group,
                part("optical").astype(np.uint8),
                part("optical_valid").astype(bool),
                part("labels").astype(np.int16),
                terrain,
                part("kinds").astype(np.uint8) if self.has_kinds else None,
                self.resolution_m,
                spectral,
            )


def read_index(path: Path) -> Iterator[PackedImage]:
    """The images of a pack, without their pixels. Raises InputError for a file that is no pack."""
    if not path.exists():
        raise InputError(
            f"{path}: there is no such pack; `rtsmap pack` makes it from labelled chips, and `data` of the "
            "recipe says where packs lie"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as exc:
        raise InputError(f"{path}: not a readable pack of training images ({exc})") from exc
    if metadata.get("rtsmap_pack") != "1":
        raise InputError(f"{path} is no pack of training images of this version")
    try:
        images = [_packed(path, i, entry) for i, entry in enumerate(json.loads(metadata["index"]))]
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise InputError(f"{path}: the index of the pack is damaged ({exc}); pack the sources anew") from exc
    yield from images


def _packed(path: Path, number: int, entry: Mapping[str, Any]) -> PackedImage:
    height, width = entry["shape"]
    return PackedImage(
        path=path,
        number=number,
        name=entry["name"],
        group=entry["group"],
        shape=(height, width),
        has_terrain=entry["terrain"],
        has_kinds=entry.get("kinds", False),
        slumps=tuple((int(s[0]), Window(*s[1:])) for s in entry["slumps"]),
        resolution_m=entry.get("resolution_m"),
        has_gradient=entry.get("gradient", entry["terrain"]),
        spectral=tuple(entry.get("spectral", ())),
        hard=tuple(Window(*place) for place in entry.get("hard", ())),
    )

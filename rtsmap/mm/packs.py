"""Packed training images: one safetensors file, read by slices, needing neither rasterio nor geopandas.

Each image `i` of a pack has the tensors

    i/optical           (3, H, W) uint8    red, green, blue in DN
    i/optical_valid     (H, W)    uint8    1 = data
    i/gradient          (2, H, W) float16  rise over run towards the right and towards the top of the image
    i/relative_elevation (H, W)   float16  metres above the mean within 100 m
    i/terrain_valid     (H, W)    uint8    1 = data
    i/labels            (H, W)    int16    0 background, n > 0 slump n, -1 ground to ignore
    i/kinds             (H, W)    uint8    0 plain ground, k > 0 look-alike KINDS[k - 1], 255 unknown

The three terrain tensors are absent where there is no elevation model, `kinds` where look-alikes are not
known. Gradients are stored instead of slope and shading, so that flips and rotations can recompute the
shading for the true sun.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rtsmap.errors import GridMismatchError, InputError
from rtsmap.rasters.tiling import Window

KINDS = ("bare_patch", "bank", "gully", "drained_basin", "stable_scar", "snow", "road", "cloud_shadow")
"""Look-alikes that simulated scenes know by name."""

UNKNOWN_KIND = 255


@dataclass(frozen=True, slots=True)
class Terrain:
    """Gradient (2, H, W), relative elevation (H, W) in metres and validity (H, W), True = data."""

    gradient: npt.NDArray[np.float32]
    relative_elevation: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """Pixels and labels of one image or of a window of it; see the module's text for the arrays.

    `group` names images that must stay on one side of a split; `resolution_m` is what a pixel shows, None
    where nobody knows. Raises GridMismatchError when
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

    def __post_init__(self) -> None:
        shape = self.labels.shape
        shapes = [self.optical.shape[1:], self.optical_valid.shape]
        if self.terrain:
            terrain = self.terrain
            shapes += [terrain.gradient.shape[1:], terrain.relative_elevation.shape, terrain.valid.shape]
        if self.kinds is not None:
            shapes.append(self.kinds.shape)
        if any(s != shape for s in shapes):
            raise GridMismatchError(f"training image {self.name}: labels are {shape}, other arrays {shapes}")


def write_pack(path: Path, images: Iterable[TrainingImage]) -> None:
    """Write images to one pack, under a temporary name until it is whole."""
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    index = []
    for i, image in enumerate(images):
        tensors[f"{i}/optical"] = image.optical
        tensors[f"{i}/optical_valid"] = image.optical_valid.astype(np.uint8)
        tensors[f"{i}/labels"] = image.labels.astype(np.int16)
        if image.terrain:
            tensors[f"{i}/gradient"] = image.terrain.gradient.astype(np.float16)
            tensors[f"{i}/relative_elevation"] = image.terrain.relative_elevation.astype(np.float16)
            tensors[f"{i}/terrain_valid"] = image.terrain.valid.astype(np.uint8)
        if image.kinds is not None:
            tensors[f"{i}/kinds"] = image.kinds
        index.append(
            {
                "name": image.name,
                "group": image.group,
                "shape": list(image.labels.shape),
                "terrain": image.terrain is not None,
                "kinds": image.kinds is not None,
                "slumps": _slump_windows(image.labels),
                "resolution_m": image.resolution_m,
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    contiguous = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    save_file(contiguous, temporary, metadata={"rtsmap_pack": "1", "index": json.dumps(index)})
    temporary.replace(path)


def _slump_windows(labels: npt.NDArray[np.int16]) -> list[list[int]]:
    from scipy.ndimage import find_objects

    found = find_objects(np.maximum(labels, 0))
    return [[i + 1, s[0].start, s[1].start, s[0].stop, s[1].stop] for i, s in enumerate(found) if s]


@dataclass(frozen=True, slots=True)
class PackedImage:
    """Where one image of a pack lies, its (H, W) shape and the windows of its slumps by label.

    `resolution_m` is None where nobody knows, and in packs made before it was recorded.
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
                    part("gradient").astype(np.float32),
                    part("relative_elevation").astype(np.float32),
                    part("terrain_valid").astype(bool),
                )
            return TrainingImage(
                self.name,
                self.group,
                part("optical").astype(np.uint8),
                part("optical_valid").astype(bool),
                part("labels").astype(np.int16),
                terrain,
                part("kinds").astype(np.uint8) if self.has_kinds else None,
                self.resolution_m,
            )


def read_index(path: Path) -> Iterator[PackedImage]:
    """The images of a pack, without their pixels. Raises InputError for a file that is no pack."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as exc:
        raise InputError(f"{path}: not a readable pack of training images ({exc})") from exc
    if metadata.get("rtsmap_pack") != "1":
        raise InputError(f"{path} is no pack of training images of this version")
    for i, entry in enumerate(json.loads(metadata["index"])):
        slumps = tuple((int(s[0]), Window(*s[1:])) for s in entry["slumps"])
        height, width = entry["shape"]
        yield PackedImage(
            path=path,
            number=i,
            name=entry["name"],
            group=entry["group"],
            shape=(height, width),
            has_terrain=entry["terrain"],
            has_kinds=entry.get("kinds", False),
            slumps=slumps,
            resolution_m=entry.get("resolution_m"),
        )

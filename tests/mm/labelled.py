"""Small labelled images for the tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rtsmap.mm.packs import PackedImage, Terrain, TrainingImage, read_index, write_pack


def labelled_image(
    seed: int = 0, shape: tuple[int, int] = (96, 80), *, terrain: bool = True
) -> TrainingImage:
    """Grey noise with two bright rectangles that are also hollows."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int16)
    labels[20:44, 10:40] = 1
    labels[60:80, 45:75] = 2
    optical = rng.normal(90, 5, (3, *shape)) + 80 * (labels > 0)
    relative = np.where(labels > 0, -3.0, 0.0) + rng.normal(0, 0.1, shape)
    relief = Terrain(
        rng.normal(0, 0.05, (2, *shape)).astype(np.float32),
        relative.astype(np.float32),
        np.ones(shape, np.bool_),
    )
    return TrainingImage(
        f"image {seed}",
        f"group {seed}",
        optical.astype(np.uint8),
        np.ones(shape, np.bool_),
        labels,
        relief if terrain else None,
    )


def packed(directory: Path, count: int = 2) -> list[PackedImage]:
    """A pack of `count` images, the last one without terrain."""
    path = directory / "some images.pack"
    write_pack(path, [labelled_image(i, terrain=i < count - 1) for i in range(count)])
    return list(read_index(path))

"""How likely a slump is at each pixel, as tiles saw it: a raster from what the shards of a run hold.

At each pixel every tile that read it has a say: its greatest product of score and mask probability, 0 where
it found nothing above the detector's own floor. The value is the mean of these, weighted with the distance to
each tile's edge, as when masks are joined across seams. Scores are those that users are told. No threshold of
the map and no second look changes it. NaN is ground that the map's coverage does not call mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely

from rtsmap.atomic import refuse_existing
from rtsmap.errors import InputError
from rtsmap.instances.coverage import MAPPED, TileCoverage
from rtsmap.instances.detections import Detection
from rtsmap.instances.ground import Ground
from rtsmap.instances.linking import boxes
from rtsmap.instances.seams import distance_weights
from rtsmap.rasters.cog import blocks_of, write_cog
from rtsmap.rasters.tiling import Tile, Window
from rtsmap.runs.detecting import Task
from rtsmap.runs.progress import Progress, silent
from rtsmap.runs.shards import read_shard

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_SHARDS_IN_MEMORY = 64
_Content = dict[int, tuple[TileCoverage, list[Detection]]]


def check_probability(path: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, a raster that could not be written in the end."""
    if path.suffix.lower() not in {".tif", ".tiff"}:
        raise InputError(f"{path}: the probability is written as GeoTIFF; name a .tif")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; create it first")
    refuse_existing(path, overwrite=overwrite)


def write_probability(
    task: Task,
    path: Path,
    *,
    ground: Ground | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> None:
    """Write the raster of a run whose tiles are all on disk: 0..1, a COG on the run's grid.

    Ground that is not wanted is NaN. Memory does not grow with the scene.
    """
    geobox = task.run.plan.geobox
    surface = _Surface(task, ground)
    windows = list(blocks_of(tuple(geobox.shape)))

    def blocks() -> Iterator[tuple[Window, Floats]]:
        for count, window in enumerate(windows, 1):
            yield window, surface.read(window)
            progress("probability", count, len(windows))

    write_cog(path, blocks(), geobox, band_name="slump probability", overwrite=overwrite)


class _Surface:
    """The values of any window, from the shards that it meets."""

    def __init__(self, task: Task, ground: Ground | None) -> None:
        self._task = task
        self._ground = ground
        self._tree = shapely.STRtree(boxes([shard.window for shard in task.shards]))
        self._content = lru_cache(_SHARDS_IN_MEMORY)(self._read_shard)

    def read(self, window: Window) -> Floats:
        """Probability (h, w), NaN where nothing was seen."""
        total, weights = np.zeros(window.shape, np.float32), np.zeros(window.shape, np.float32)
        seen = np.zeros(window.shape, np.bool_)
        for number in sorted(self._tree.query(boxes([window])[0]).tolist()):
            content = self._content(number)
            for tile in self._task.shards[number].tiles:
                coverage, found = content[tile.index]
                common = tile.read.intersection(window)
                if coverage.status != MAPPED or common.empty:
                    continue
                here = common.slices(window)
                weight = distance_weights(tile.read, common)
                weights[here] += weight
                total[here] += weight * self._says(found, common)
                core = tile.core.intersection(window)
                if not core.empty:
                    seen[core.slices(window)] = _seen(tile, coverage, core)
        if self._ground is not None:
            seen &= self._ground.wants(window)
        return np.where(seen, total / np.where(seen, weights, 1), np.float32(np.nan))

    def _says(self, found: list[Detection], window: Window) -> Floats:
        """The tile's word: its greatest product of score and mask probability at each pixel."""
        word = np.zeros(window.shape, np.float32)
        for part in found:
            common = part.window.intersection(window)
            if common.empty:
                continue
            score = np.float32(self._task.engine.told_score(part.score) / 255)
            there = word[common.slices(window)]
            np.maximum(there, score * part.mask[common.slices(part.window)], out=there)
        return word

    def _read_shard(self, number: int) -> _Content:
        run, plan = self._task.run, self._task.shards[number]
        shard = read_shard(run.shard_path(plan.index), plan, run.plan.fingerprint)
        content: _Content = {result.tile: (result.coverage, []) for result in shard.tiles}
        for part in shard.detections:
            content[part.tile][1].append(part)
        return content


def _seen(tile: Tile, coverage: TileCoverage, window: Window) -> Bools:
    """Where the imagery of a part of a tile's core has data, in the cells of the coverage."""
    if coverage.valid is None:
        return np.ones(window.shape, np.bool_)
    rows = (np.arange(window.row0, window.row1) - tile.core.row0) // coverage.stride
    cols = (np.arange(window.col0, window.col1) - tile.core.col0) // coverage.stride
    cells: Bools = coverage.valid[np.ix_(rows, cols)]
    return cells

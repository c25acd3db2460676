"""Second looks in a run: rounds of chips placed by slumps, computed and kept like shards of tiles."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import astuple, dataclass, replace
from functools import cache, reduce
from itertools import count, groupby
from pathlib import Path

from rtsmap.instances.coverage import MAPPED
from rtsmap.instances.detections import Detection
from rtsmap.instances.looks import LookGrid, Trail, distinct
from rtsmap.instances.seams import Instance, MergeOptions
from rtsmap.rasters.tiling import Tile, Window
from rtsmap.runs.detecting import Task, complete
from rtsmap.runs.plan import LOOKS, Run, ShardPlan
from rtsmap.runs.progress import Progress
from rtsmap.runs.shards import read_shard


@dataclass(frozen=True, slots=True)
class Looked:
    """The slumps that looks left, sorted by `instance_key`, and how many looks at how many candidates."""

    instances: tuple[Instance, ...]
    candidates: int
    looks: int
    failed: int


def look_again(
    task: Task, candidates: Sequence[Instance], options: MergeOptions, chip_px: int, progress: Progress
) -> Looked:
    """Look at candidates until each look stays where it is; what was found twice is kept once.

    `task` is that of the run's tiles. Looks are kept in the run directory, so that a run that is started
    again, or wants other thresholds of the same candidates, does not compute them again.
    """
    grid = LookGrid.of(task.run.plan.geobox, chip_px)
    trails = [Trail(candidate) for candidate in candidates]
    # loaded once for all rounds, and not at all where every look is on disk
    engine = replace(task.engine, load=cache(task.engine.load))
    task = replace(task, engine=engine, unwanted=frozenset())
    looks = _Looks(task, progress)
    while wanted := _wanted(trails, grid):
        looks.compute(wanted.keys())
        for tile, found in looks.read(wanted.keys()):
            for trail in wanted[tile.read]:
                if found is None:
                    trail.give_up()
                else:
                    trail.take(tile, found, options)
    looks.sweep()
    results = (trail.result(grid, options) for trail in trails)
    instances = distinct((result for result in results if result is not None), options)
    return Looked(tuple(instances), len(candidates), looks.made, looks.failed)


def _wanted(trails: Sequence[Trail], grid: LookGrid) -> dict[Window, list[Trail]]:
    """Where trails want to look next."""
    wanted: dict[Window, list[Trail]] = {}
    for trail in trails:
        if (window := trail.next_look(grid)) is not None:
            wanted.setdefault(window, []).append(trail)
    return wanted


class _Looks:
    """Looks on disk: each round in a folder of its own, named by what it looks at."""

    def __init__(self, task: Task, progress: Progress) -> None:
        self._task = task
        self._progress = progress
        self._places: dict[Window, tuple[Run, ShardPlan]] = {}
        self._folders: list[Path] = []
        self.failed = 0
        # numbered after the run's tiles, so that messages about tiles are never ambiguous
        self._numbers = count(1 + max(tile.index for shard in task.shards for tile in shard.tiles))

    @property
    def made(self) -> int:
        """Looks so far."""
        return len(self._places)

    def compute(self, windows: AbstractSet[Window]) -> None:
        """Have the network look at those of the windows that it has not seen."""
        missing = sorted(windows - self._places.keys(), key=self._nearby)
        if not missing:
            return
        shards = tuple(self._shards(missing))
        content = [(tile.index, astuple(tile.read)) for shard in shards for tile in shard.tiles]
        name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        run = self._task.run
        run = replace(run, directory=run.directory / LOOKS / name)
        run.directory.mkdir(parents=True, exist_ok=True)
        self._folders.append(run.directory)
        stage = f"second look, round {len(self._folders)}"
        task = replace(self._task, run=run, shards=shards)
        receipts, _ = complete(task, lambda _, done, total: self._progress(stage, done, total))
        self.failed += sum(len(receipt.failed) for receipt in receipts)
        self._places |= {tile.read: (run, shard) for shard in shards for tile in shard.tiles}

    def read(self, windows: AbstractSet[Window]) -> Iterator[tuple[Tile, list[Detection] | None]]:
        """Each window's look and what was found on it; None where the look failed."""
        for _, group in groupby(sorted(windows, key=self._key), key=lambda window: self._key(window)[0]):
            together = set(group)
            run, shard = self._places[next(iter(together))]
            content = read_shard(run.shard_path(shard.index), shard, run.plan.fingerprint)
            mapped = {result.tile for result in content.tiles if result.coverage.status == MAPPED}
            by_tile: dict[int, list[Detection]] = {index: [] for index in mapped}
            for part in content.detections:
                by_tile[part.tile].append(part)
            yield from ((tile, by_tile.get(tile.index)) for tile in shard.tiles if tile.read in together)

    def sweep(self) -> None:
        """Remove looks of other candidates, which failed tiles or another lowest score had left."""
        folder = self._task.run.directory / LOOKS
        for stale in set(folder.glob("*")).difference(self._folders):
            shutil.rmtree(stale, ignore_errors=True)

    def _key(self, window: Window) -> tuple[str, Window]:
        run, shard = self._places[window]
        return str(run.shard_path(shard.index)), window

    def _nearby(self, window: Window) -> tuple[int, int, int, Window]:
        """Sorts windows into squares that are read at once."""
        side = 2 * window.height
        return window.height, window.row0 // side, window.col0 // side, window

    def _shards(self, windows: Sequence[Window]) -> Iterator[ShardPlan]:
        squares = groupby(windows, key=lambda window: self._nearby(window)[:3])
        for index, (_, group) in enumerate(squares):
            tiles = tuple(Tile(next(self._numbers), window, window) for window in group)
            yield ShardPlan(index, tiles, reduce(Window.union, (tile.read for tile in tiles)))

"""Second looks in a run: rounds of chips placed by slumps, computed and kept like shards of tiles."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import astuple, dataclass, replace
from functools import reduce
from itertools import count, groupby
from pathlib import Path

from rtsmap.instances.coverage import MAPPED
from rtsmap.instances.detections import Detection
from rtsmap.instances.looks import LookGrid, Trail, distinct
from rtsmap.instances.seams import Instance, MergeOptions
from rtsmap.rasters.tiling import Tile, Window
from rtsmap.runs.detecting import Receipt, Task
from rtsmap.runs.plan import LOOKS, Run, ShardPlan
from rtsmap.runs.shards import read_shard


@dataclass(frozen=True, slots=True)
class Looked:
    """The slumps that looks left, sorted by `instance_key`, and how many looks at how many candidates."""

    instances: tuple[Instance, ...]
    candidates: int
    looks: int
    failed: int


class Looking:
    """Looks at candidates, round by round, until each look stays where it is.

    `round` is the work to do next: looks that are not known yet, as a task like that of the run's tiles.
    Once its shards are on disk, `hear` follows what they say to the next round; None means that all is said.
    `hear_shard` takes in one of them before the others are there, and may be left out.
    Rounds depend on the candidates alone, so that every worker finds the same. They are kept in the run
    directory, for runs that are started again or want other thresholds of the same candidates.
    """

    def __init__(
        self, task: Task, candidates: Sequence[Instance], options: MergeOptions, chip_px: int
    ) -> None:
        self._grid = LookGrid.of(task.run.plan.geobox, chip_px)
        self._trails = [Trail(candidate) for candidate in candidates]
        self._options = options
        self._looks = _Looks(replace(task, unwanted=frozenset()))
        self._heard: dict[Window, list[Trail]] = {}
        self._results: dict[int, Instance | None] = {}
        self.round: Task | None = None
        self._go_on()

    @property
    def rounds(self) -> int:
        """How many rounds there were so far, with the one to do."""
        return self._looks.rounds

    def hear_shard(self, index: int) -> list[Instance]:
        """Take in one shard of the round, which is on disk; gives the slumps that need no further look."""
        if self.round is None:
            return []
        tiles = self.round.shards[index].tiles
        return self._listen({tile.read for tile in tiles} & self._heard.keys())

    def hear(self, receipts: Sequence[Receipt]) -> None:
        """Take in what is left of the round, whose receipts are given."""
        self._looks.failed += sum(len(receipt.failed) for receipt in receipts)
        self._listen(set(self._heard))
        self._go_on()

    def result(self) -> Looked:
        """What looks left; what was found twice is kept once."""
        results = [self._result(trail) for trail in self._trails]
        instances = distinct((result for result in results if result is not None), self._options)
        return Looked(tuple(instances), len(self._trails), self._looks.made, self._looks.failed)

    def sweep(self) -> None:
        """Remove looks of other candidates, which failed tiles or another lowest score had left."""
        self._looks.sweep()

    def _go_on(self) -> None:
        self.round = None
        while self.round is None:
            self._heard = _wanted(self._trails, self._grid)
            if not self._heard:
                return
            self.round = self._looks.place(self._heard.keys())
            if self.round is None:
                self._listen(set(self._heard))

    def _listen(self, windows: AbstractSet[Window]) -> list[Instance]:
        """Have trails take what was found on these looks; gives the slumps of those that end there."""
        ended = []
        for tile, found in self._looks.read(windows):
            for trail in self._heard.pop(tile.read):
                if found is None:
                    trail.give_up()
                else:
                    trail.take(tile, found, self._options)
                if trail.next_look(self._grid) is None:
                    ended.append(self._result(trail))
        return [instance for instance in ended if instance is not None]

    def _result(self, trail: Trail) -> Instance | None:
        """What is left of a trail that has ended."""
        if id(trail) not in self._results:
            self._results[id(trail)] = trail.result(self._grid, self._options)
        return self._results[id(trail)]


def _wanted(trails: Sequence[Trail], grid: LookGrid) -> dict[Window, list[Trail]]:
    """Where trails want to look next."""
    wanted: dict[Window, list[Trail]] = {}
    for trail in trails:
        if (window := trail.next_look(grid)) is not None:
            wanted.setdefault(window, []).append(trail)
    return wanted


class _Looks:
    """Looks on disk: each round in a folder of its own, named by what it looks at."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._places: dict[Window, tuple[Run, ShardPlan]] = {}
        self._folders: list[Path] = []
        self.failed = 0
        # numbered after the run's tiles, so that messages about tiles are never ambiguous
        self._numbers = count(1 + max(tile.index for shard in task.shards for tile in shard.tiles))

    @property
    def rounds(self) -> int:
        """Rounds that showed something new."""
        return len(self._folders)

    @property
    def made(self) -> int:
        """Looks so far."""
        return len(self._places)

    def place(self, windows: AbstractSet[Window]) -> Task | None:
        """The task of looking at those of the windows that were not looked at; None if all were."""
        missing = sorted(windows - self._places.keys(), key=self._nearby)
        if not missing:
            return None
        shards = tuple(self._shards(missing))
        content = [(tile.index, astuple(tile.read)) for shard in shards for tile in shard.tiles]
        name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        run = self._task.run
        run = replace(run, directory=run.directory / LOOKS / name)
        self._folders.append(run.directory)
        self._places |= {tile.read: (run, shard) for shard in shards for tile in shard.tiles}
        return replace(self._task, run=run, shards=shards)

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

"""From pixels to shards: blocks are read ahead, the network works, shards are written behind it.

Reading, detecting and writing run at the same time in threads, with few blocks in between. A tile that
fails is tried once more by itself, then recorded as failed; any other error stops the run, and so do
very many failures in a row, which are the device's and not the tiles'.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import chain, takewhile

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from threadpoolctl import threadpool_limits

from rtsmap.errors import EngineError, InputError, ModelError, RunError
from rtsmap.instances.coverage import FAILED, LEFT_OUT, MAPPED, NO_DATA, NO_PIXELS, TileCoverage, core_cells
from rtsmap.instances.detections import Detection, Detector
from rtsmap.rasters.chips import Chip, ChipReader, Layer, cut_chip
from rtsmap.rasters.opening import kept_open
from rtsmap.rasters.tiling import Tile, Window
from rtsmap.runs.ahead import ahead
from rtsmap.runs.engine import Engine
from rtsmap.runs.interrupts import deferred
from rtsmap.runs.plan import Run, ShardPlan
from rtsmap.runs.shards import Shard, TileResult, write_shard
from rtsmap.timing import carried, in_stage, stage

logger = logging.getLogger(__name__)

COVERAGE_STRIDE_PX = 4
"""Coverage is kept in cells of this many grid pixels."""

_TILE_ERRORS = (InputError, OSError, RuntimeError, MemoryError)
"""What may go wrong with one tile only; anything else is the user's model or a bug of ours."""

_WRITES_BEHIND = 2

GIVE_UP_AFTER_TILES = 64
"""When the detector fails on so many tiles one after the other, the rest would fail too."""


@dataclass(frozen=True, slots=True)
class Task:
    """A group of shards to compute, with all that this takes; cheap to pickle.

    `unwanted` are indexes of tiles that are neither read nor shown to the detector.
    """

    run: Run
    reader: ChipReader
    shards: tuple[ShardPlan, ...]
    engine: Engine
    min_valid_share: float
    read_threads: int
    unwanted: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a shard's tiles, without masks.

    `seen` are the tiles that were mapped; `whole`, their indexes, those without a gap in the imagery.
    """

    shard: int
    detections: int
    seen: tuple[Tile, ...]
    whole: tuple[int, ...]
    failed: tuple[tuple[Tile, str], ...]
    no_data: int
    left_out: int = 0
    halvings: int = 0


@dataclass(slots=True)
class _Block:
    """A shard on its way: chips that the network has still to see, and what is known already."""

    shard: ShardPlan
    chips: list[Chip] = field(default_factory=list)
    pending: dict[int, TileResult] = field(default_factory=dict)
    results: list[TileResult] = field(default_factory=list)
    detections: list[Detection] = field(default_factory=list)
    halvings: int = 0


def default_read_threads() -> int:
    """Half the cores, 2 to 8: a core aligns about 2 Mpx of terrain a second, a GPU looks at some more."""
    return max(2, min(8, (os.cpu_count() or 1) // 2))


def map_shards(
    task: Task, on_shard: Callable[[Receipt], None] | None = None, shards: Iterable[ShardPlan] | None = None
) -> list[Receipt]:
    """Compute and write a group of shards; `on_shard` is told about each one that is on disk.

    `shards`, instead of all of the task's, may be a stream: each is asked for when it is about to be read.
    """
    receipts: list[Receipt] = []
    todo = iter(task.shards if shards is None else shards)
    if (first := next(todo, None)) is None:
        return receipts

    def finish(written: Future[Receipt]) -> None:
        receipts.append(written.result())
        if on_shard:
            on_shard(receipts[-1])

    with (
        kept_open(),
        # threads of BLAS look for work for a while after each product, on cores that others need
        threadpool_limits(1, "blas"),
        _threads(task.read_threads, "read") as readers,
        ThreadPoolExecutor(1, "write") as writer,
        deferred() as interrupted,
    ):
        read, detect, write = carried(_read_shard), carried(_detect), carried(_write)
        blocks = ahead(readers, partial(read, task), chain([first], todo), depth=task.read_threads + 1)
        with stage("loading"):
            detector = task.engine.load()
        calls_at_once = int(getattr(detector, "calls_at_once", 1))
        written: deque[Future[Receipt]] = deque()
        lost, halvings = 0, _halvings(detector)
        with _threads(calls_at_once, "detect") as callers, _given_up_on_interrupt(detector):
            # after Ctrl-C what is in hand is finished, and nothing more begun
            begun = takewhile(lambda _: not interrupted(), blocks)
            detected = ahead(callers, partial(detect, detector), begun, depth=calls_at_once)
            for block, asked, answered in in_stage("waiting", detected):
                lost = 0 if answered else lost + asked
                if lost >= GIVE_UP_AFTER_TILES:
                    raise EngineError(_giving_up(block, lost))
                block.halvings, halvings = _halvings(detector) - halvings, _halvings(detector)
                _tell_of_halvings(block)
                written.append(writer.submit(write, task.run, block))
                while len(written) > _WRITES_BEHIND:
                    finish(written.popleft())
        while written:
            finish(written.popleft())
        if interrupted():
            raise KeyboardInterrupt
    return receipts


@contextmanager
def _given_up_on_interrupt(detector: Detector) -> Iterator[None]:
    """Tell a detector that can be told that nobody waits for its answers any more."""
    try:
        yield
    except KeyboardInterrupt:
        if (give_up := getattr(detector, "give_up", None)) is not None:
            give_up()
        raise


def _tell_of_halvings(block: _Block) -> None:
    if block.halvings:
        logger.warning("memory was short in shard %d: batches are smaller from here on", block.shard.index)


def _halvings(detector: Detector) -> int:
    """How often a detector has halved its batches, being short of memory; most never do."""
    return int(getattr(detector, "halvings", 0))


@contextmanager
def _threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool that starts nothing more once the block is left."""
    pool = ThreadPoolExecutor(count, name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def receipt_of(shard: Shard, plan: ShardPlan) -> Receipt:
    """The receipt of a shard."""
    tiles = {tile.index: tile for tile in plan.tiles}
    return Receipt(
        shard=shard.index,
        detections=len(shard.detections),
        seen=tuple(tiles[r.tile] for r in shard.tiles if r.coverage.status == MAPPED),
        whole=tuple(r.tile for r in shard.tiles if r.coverage.valid is None and r.coverage.status == MAPPED),
        failed=tuple((tiles[r.tile], r.coverage.reason) for r in shard.failed),
        no_data=sum(r.coverage.status == NO_DATA for r in shard.tiles),
        halvings=shard.halvings,
        left_out=sum(r.coverage.status == LEFT_OUT for r in shard.tiles),
    )


# Reading


@stage("cutting chips")
def _read_shard(task: Task, shard: ShardPlan) -> _Block:
    block = _Block(shard)
    leading = task.engine.spec.names[0]
    wanted = tuple(tile for tile in shard.tiles if tile.index not in task.unwanted)
    left_out = TileCoverage(LEFT_OUT)
    block.results += [TileResult(t.index, left_out) for t in shard.tiles if t.index in task.unwanted]
    for tile, chip in _read_chips(task.reader, wanted, task.run.plan.geobox):
        if isinstance(chip, str):
            block.results.append(TileResult(tile.index, TileCoverage(FAILED, chip)))
            continue
        shares = {name: _share(layer.valid) for name, layer in chip.layers.items()}
        cells = core_cells(chip.layers[leading].valid, tile, COVERAGE_STRIDE_PX)
        if shares[leading] == 0 or shares[leading] < task.min_valid_share:
            reason = (
                f"less than {task.min_valid_share:.1%} of the tile has data" if shares[leading] else NO_PIXELS
            )
            coverage = TileCoverage(NO_DATA, reason, cells, COVERAGE_STRIDE_PX)
            block.results.append(TileResult(tile.index, coverage, shares))
        else:
            coverage = TileCoverage(MAPPED, "", cells, COVERAGE_STRIDE_PX)
            block.pending[tile.index] = TileResult(tile.index, coverage, shares)
            block.chips.append(chip)
    return block


def _share(valid: npt.NDArray[np.bool_]) -> float:
    return np.count_nonzero(valid) / valid.size


def _read_chips(reader: ChipReader, tiles: Sequence[Tile], grid: GeoBox) -> Iterator[tuple[Tile, Chip | str]]:
    """Every tile with its chip, or with the reason why it cannot be read."""
    if not tiles:
        return
    window = reduce(Window.union, (tile.read for tile in tiles))
    try:
        layers = reader.read_block(window)
    except _TILE_ERRORS as exc:
        _refuse_vanished(reader)
        logger.warning("block %s cannot be read (%s); trying its tiles one by one", window, exc)
        for tile in tiles:
            yield tile, _read_alone(reader, tile, grid)
        return
    for tile in tiles:
        yield tile, cut_chip(layers, window, tile, grid)


def _refuse_vanished(reader: ChipReader) -> None:
    """Stop the run when an input is gone: the rest of its tiles would fail, too."""
    if (path := reader.vanished()) is not None:
        raise RunError(
            f"{path} has vanished while it was read. Put it back, or mount its disk again, then run the same "
            "command again; what is finished is kept"
        )


def _read_alone(reader: ChipReader, tile: Tile, grid: GeoBox) -> Chip | str:
    try:
        layers: Mapping[str, Layer] = reader.read_block(tile.read)
    except _TILE_ERRORS as exc:
        _refuse_vanished(reader)
        logger.warning("tile %d failed: %s", tile.index, exc)
        return _reason("reading", exc)
    return cut_chip(layers, tile.read, tile, grid)


# Detecting


def _detect(detector: Detector, block: _Block) -> tuple[_Block, int, int]:
    """Show the detector the block's chips all at once: it makes its own batches, the same in every run.

    Gives the block, how many chips were shown, and for how many the detector answered.
    """
    asked = len(block.chips)
    if block.chips and (reason := _try(detector, block, block.chips)) is not None:
        logger.warning("block %d failed (%s); trying its tiles one by one", block.shard.index, reason)
        for chip in block.chips:
            _detect_alone(detector, block, chip)
    block.chips.clear()
    return block, asked, asked - sum(r.coverage.reason.startswith(DETECTING) for r in block.results)


def _giving_up(block: _Block, lost: int) -> str:
    reason = next(r.coverage.reason for r in block.results if r.coverage.reason.startswith(DETECTING))
    return (
        f"the network failed on {lost} tiles in a row, last with: {reason}. Mend that (see rtsmap doctor), "
        "then run the same command again; what is finished is kept"
    )


def _detect_alone(detector: Detector, block: _Block, chip: Chip) -> None:
    if (reason := _try(detector, block, [chip])) is not None:
        logger.warning("tile %d failed: %s", chip.tile.index, reason)
        known = block.pending.pop(chip.tile.index)
        before = known.coverage
        coverage = TileCoverage(FAILED, reason, before.valid, before.stride)
        block.results.append(TileResult(known.tile, coverage, known.shares))


def _try(detector: Detector, block: _Block, chips: Sequence[Chip]) -> str | None:
    """Detect on chips; the reason if that failed. A model that cannot be used stops the run."""
    try:
        found = _ask(detector, chips)
    except ModelError:
        raise
    except _TILE_ERRORS as exc:
        return _reason(DETECTING, exc)
    for chip, detections in zip(chips, found, strict=True):
        block.results.append(block.pending.pop(chip.tile.index))
        block.detections.extend(detections)
    return None


def _ask(detector: Detector, chips: Sequence[Chip]) -> list[list[Detection]]:
    with stage("network"):
        found = detector.detect(chips)
    if len(found) != len(chips):
        raise EngineError(f"the detector gave {len(found)} answers for {len(chips)} chips")
    for chip, detections in zip(chips, found, strict=True):
        for detection in detections:
            if detection.tile != chip.tile.index or not chip.tile.read.contains(detection.window):
                raise EngineError(
                    f"the detector answered for tile {detection.tile} at {detection.window}, "
                    f"but was asked about tile {chip.tile.index} at {chip.tile.read}"
                )
    return found


DETECTING = "detecting"


def _reason(doing: str, exc: BaseException) -> str:
    """One line for the coverage layer."""
    first = (str(exc).strip() or type(exc).__name__).splitlines()[0]
    return f"{doing} failed: {first[:200]}"


# Writing


@stage("writing")
def _write(run: Run, block: _Block) -> Receipt:
    results = tuple(sorted(block.results, key=lambda result: result.tile))
    shard = Shard(block.shard.index, results, tuple(block.detections), block.halvings)
    write_shard(run.shard_path(shard.index), shard, run.plan.fingerprint)
    return receipt_of(shard, block.shard)

"""All that takes the network in one scene: its tiles, then rounds of second looks, stage by stage.

Any number of workers may do this for one scene at the same time, each with a `SceneWork` of its own. They
meet only in the run directory: shards of a stage are claimed one by one, and a stage begins for a worker when
it sees all of the stage before on disk. What is to be looked at again follows from the shards alone, so that
every worker finds the same rounds, and whoever is there when a round begins takes part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from enum import Enum
from itertools import count

from rtsmap import timing
from rtsmap.instances.seams import Instance, MergeOptions, TileMap
from rtsmap.runs.claims import Claims
from rtsmap.runs.detecting import Receipt, Task
from rtsmap.runs.looking import Looked, Looking
from rtsmap.runs.merging import merge_shards
from rtsmap.runs.pauses import Pauses
from rtsmap.runs.plan import Run, ShardPlan
from rtsmap.runs.progress import Progress, silent
from rtsmap.runs.shards import Shard, read_shard
from rtsmap.runs.stages import InShare, Stage

TILES = "mapping"
_WORTH_A_LOOK = 0.5
"""Slumps that score this share of the model's threshold on tiles may score more on a look."""


class State(Enum):
    """What a worker came away with: shards, nothing because others hold them, or all is done."""

    WORKED = "worked"
    WAITING = "waiting"
    FINISHED = "finished"


class SceneWork:
    """What of a scene's shards is done, and how the rest gets done.

    `merge` says which slumps are wanted; with `second_look` all that may become one, and
    `is_candidate`, is looked at again. `on_settled` is told of slumps that need no further look, while
    others do; `looked` says which of them are left in the end.
    `as_it_is` takes failed tiles for what they are instead of trying them again; with a `share` of the tiles
    those of other shares are taken so.
    """

    def __init__(
        self,
        task: Task,
        merge: MergeOptions,
        is_candidate: Callable[[Instance], bool] = lambda _: True,
        *,
        second_look: bool,
        as_it_is: bool = False,
        share: InShare | None = None,
        on_settled: Callable[[Instance], None] = lambda _: None,
    ) -> None:
        self.task = task
        self.tiles = Stage(task, as_it_is=as_it_is, share=share)
        self.looked: Looked | None = None
        self._merge = merge
        self._is_candidate = is_candidate
        self._second_look = second_look
        self._as_it_is = as_it_is
        self._share = share
        self._on_settled = on_settled
        self._stage = self.tiles
        self._looking: Looking | None = None
        self._computed_before = 0

    @property
    def computed(self) -> int:
        """Shards that were computed here, of all stages."""
        return self._computed_before + self._stage.computed

    @property
    def is_faultless(self) -> bool:
        """True when no tile has failed, and no second look: there is nothing to try again."""
        return self.tiles.is_faultless and not self.failed

    @property
    def failed(self) -> int:
        """Tiles and second looks that have failed, as far as is known here."""
        return self.tiles.failed + (self.looked.failed if self.looked else 0)

    @property
    def stage(self) -> Stage:
        """The stage to be done now, or the last one."""
        return self._stage

    @property
    def stage_name(self) -> str:
        """What users call it."""
        return TILES if self._looking is None else f"second look, round {self._looking.rounds}"

    def is_finished(self, progress: Progress = silent) -> bool:
        """True when nothing is left for the network; goes on to the next stage where one is complete."""
        while self._stage.is_complete:
            if not self._second_look or self.looked is not None:
                return True
            if self._stage.settle():
                self._next_stage(progress)
        return False

    def advance(
        self,
        claims: Claims,
        progress: Progress = silent,
        *,
        limit: int | None = None,
    ) -> State:
        """Compute what is free of the present stage: at most `limit` shards, of tiles those of the share."""
        if self.is_finished(progress):
            return State.FINISHED
        stage, name = self._stage, self.stage_name
        total = len(stage.task.shards)
        progress(name, stage.done, total)

        def on_shard(receipt: Receipt) -> None:
            progress(name, stage.done, total)
            if self._looking is not None:
                for instance in self._looking.hear_shard(receipt.shard):
                    self._on_settled(instance)

        with nullcontext() if stage is self.tiles else timing.stage(timing.LOOKS):
            computed = stage.advance(
                claims,
                on_shard,
                limit=limit,
                share=self._share if stage is self.tiles else None,
            )
        progress(name, stage.done, total)
        if self.is_finished(progress):
            return State.FINISHED
        return State.WORKED if computed or stage is not self._stage else State.WAITING

    def finish(self, claims: Claims, progress: Progress = silent) -> None:
        """Advance to the end, waiting for shards that other workers hold."""
        pauses = Pauses()
        while (state := self.advance(claims, progress)) is not State.FINISHED:
            if state is State.WAITING:
                pauses.sleep()
            else:
                pauses.begin_anew()

    def sweep(self) -> None:
        """Remove looks that this scene has no use for any more."""
        if self._looking:
            self._looking.sweep()

    def _next_stage(self, progress: Progress) -> None:
        if self._looking is None:
            self._looking = Looking(
                self.task, list(self._candidates(progress)), self._merge, self.task.run.plan.tiles.chip_px
            )
        else:
            with timing.stage(timing.LOOKS):
                self._looking.hear(self._stage.receipts)
        if self._looking.round is None:
            with timing.stage(timing.LOOKS):
                self.looked = self._looking.result()
        else:
            self._computed_before = self.computed
            self._stage = Stage(self._looking.round, as_it_is=self._as_it_is)

    def _candidates(self, progress: Progress) -> Iterator[Instance]:
        # up to the model's own threshold the same whatever the user's, so that looks can be kept
        engine = self.task.engine
        lowest = min(self._merge.min_score, _WORTH_A_LOOK * engine.own_score(engine.min_score))
        options = replace(
            self._merge, min_score=lowest, min_part_score=min(self._merge.min_part_score, lowest)
        )
        found = joined(self.task, self.tiles.receipts, options, progress)
        return filter(self._is_candidate, found)


def joined(
    task: Task, receipts: list[Receipt], options: MergeOptions, progress: Progress
) -> Iterator[Instance]:
    """Slumps joined from the parts that tiles saw."""
    tiles = TileMap(tile for receipt in receipts for tile in receipt.seen)
    read = _counted(task, options.min_part_score, progress)
    return timing.in_stage("merging", merge_shards(read, task.shards, tiles, options))


def read_shard_of(run: Run, shard: ShardPlan, min_score: float = 0.0) -> Shard:
    """A shard of a run, from disk, without detections that score less."""
    return read_shard(run.shard_path(shard.index), shard, run.plan.fingerprint, min_score)


def _counted(task: Task, min_score: float, progress: Progress) -> Callable[[ShardPlan], Shard]:
    """Reads what may be joined of shards, each twice in a merge, and tells how many were read."""
    done, total = count(1), 2 * len(task.shards)

    def counting(shard: ShardPlan) -> Shard:
        progress("merging", next(done), total)
        return read_shard_of(task.run, shard, min_score)

    return counting

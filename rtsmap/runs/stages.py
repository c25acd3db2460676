"""A stage of a run: shards that can be computed in any order, by any number of workers at once.

The tiles of a scene are one stage, each round of second looks another. What is on disk is the truth: a worker
claims a shard, looks whether it has appeared meanwhile, computes it, and lets the claim go.
"""

from __future__ import annotations

import logging
import os
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path

from rtsmap.errors import RunError, ShardError
from rtsmap.runs.claims import Claims, claiming
from rtsmap.runs.detecting import Receipt, Task, map_shards, receipt_of
from rtsmap.runs.pauses import Pauses
from rtsmap.runs.plan import Run, ShardPlan
from rtsmap.runs.progress import Progress
from rtsmap.runs.shards import read_shard

logger = logging.getLogger(__name__)

InShare = Callable[[ShardPlan], bool]
"""True for the shards that a worker is to compute."""


class Stage:
    """What of a task's shards is done, and how the rest gets done.

    Shards with failed tiles, and damaged ones, count as missing when the stage is opened, so that they are
    tried again, unless `as_it_is` or outside of `share`, whose workers may be gone. What fails from then on
    stays failed. What other workers finish meanwhile is known by name, and read when its receipt is wanted.
    """

    def __init__(self, task: Task, *, as_it_is: bool = False, share: InShare | None = None) -> None:
        self.task = task
        self.computed = 0
        self._missing = {shard.index: shard for shard in task.shards}
        self._unread: dict[int, ShardPlan] = {}
        self._receipts: dict[int, Receipt] = {}
        self._rejected: dict[int, tuple[int, int]] = {}
        self._by_name = {task.run.shard_path(shard.index).name: shard for shard in task.shards}
        self._place = 0
        self._look_around()
        self._read(as_it_is=as_it_is, share=share)
        self.reused = len(self._receipts)
        if self.reused and not as_it_is:
            logger.info(
                "%d of %d shards are finished and not computed again", self.reused, len(self.task.shards)
            )

    @property
    def missing(self) -> tuple[ShardPlan, ...]:
        """Shards that nobody has finished, as far as is known."""
        return tuple(self._missing.values())

    @property
    def is_complete(self) -> bool:
        """True when no shard is missing, as far as is known."""
        return not self._missing

    @property
    def done(self) -> int:
        """How many shards are finished."""
        return len(self.task.shards) - len(self._missing)

    @property
    def receipts(self) -> list[Receipt]:
        """Of all shards, in order. Raises RunError while some are missing."""
        if not self.settle():
            raise RunError(
                f"{self.task.run.directory}: {len(self._missing)} of {len(self.task.shards)} shards are not "
                "computed yet; `rtsmap work` on the run's folder computes them"
            )
        return [self._receipts[shard.index] for shard in self.task.shards]

    @property
    def is_faultless(self) -> bool:
        """True when all shards are there, were read, and have no failed tile."""
        return len(self._receipts) == len(self.task.shards) and not self.failed

    @property
    def failed(self) -> int:
        """Failed tiles, or looks, of the shards that were read or computed here."""
        return sum(len(receipt.failed) for receipt in self._receipts.values())

    def settle(self) -> bool:
        """Read what others have finished; what is damaged is missing again. True when nothing is missing."""
        self._read(as_it_is=True)
        return self.is_complete

    def advance(
        self,
        claims: Claims,
        on_shard: Callable[[Receipt], None],
        *,
        limit: int | None = None,
        share: InShare | None = None,
    ) -> int:
        """Compute shards that are missing and that no other worker holds; gives how many.

        At most `limit`, and only those of `share`.
        """
        wanted = [shard for shard in self._missing.values() if share is None or share(shard)]

        def finished(receipt: Receipt) -> None:
            self._missing.pop(receipt.shard, None)
            self._unread.pop(receipt.shard, None)
            self._receipts[receipt.shard] = receipt
            claims.release(self.task.run.directory, _name(receipt.shard))
            self.computed += 1
            on_shard(receipt)

        before = self.computed
        try:
            map_shards(self.task, finished, self._free(wanted, claims, limit))
        except KeyboardInterrupt:
            logger.warning(
                "stopped with %d of %d shards finished in %s; run the same command again to go on",
                self.done,
                len(self.task.shards),
                self.task.run.directory,
            )
            raise
        self._look_around()
        return self.computed - before

    def finish(self, claims: Claims, progress: Progress, name: str) -> None:
        """Advance until all shards are there, waiting for those that others hold."""
        total = len(self.task.shards)

        def tell() -> None:
            progress(name, self.done, total)

        tell()
        pauses = Pauses()
        while not self.is_complete:
            if self.advance(claims, lambda _: tell()):
                pauses.begin_anew()
            elif not self.is_complete:
                pauses.sleep()
            tell()

    def _free(self, wanted: list[ShardPlan], claims: Claims, limit: int | None) -> Iterator[ShardPlan]:
        """Shards claimed one by one: those after the last, and elsewhere where others are at work."""
        taken, run = 0, self.task.run
        place = bisect_left([shard.index for shard in wanted], self._place)
        while wanted and (limit is None or taken < limit):
            shard = wanted.pop(place % len(wanted))
            place %= len(wanted) + 1
            if not claims.take(run.directory, _name(shard.index)):
                # whoever holds this one will take those after it
                place = random.randrange(max(1, len(wanted)))
                continue
            # it may have been finished between the look and the claim
            if self._has_arrived(shard):
                claims.release(run.directory, _name(shard.index))
                self._note_arrival(shard)
                continue
            taken += 1
            self._place = shard.index + 1
            yield shard

    def _look_around(self) -> None:
        """Note what has appeared: one listing instead of a question for each shard."""
        for name in _names_in(self.task.run.directory):
            shard = self._by_name.get(name)
            if shard is not None and shard.index in self._missing and self._has_arrived(shard):
                self._note_arrival(shard)

    def _note_arrival(self, shard: ShardPlan) -> None:
        self._missing.pop(shard.index, None)
        self._unread[shard.index] = shard

    def _has_arrived(self, shard: ShardPlan) -> bool:
        signature = _signature(self.task.run, shard)
        return signature is not None and signature != self._rejected.get(shard.index)

    def _read(self, *, as_it_is: bool, share: InShare | None = None) -> None:
        """Take in the receipts of shards that are on disk; those that will not do are missing again."""
        rejected = []
        for index in sorted(i for i, shard in self._unread.items() if share is None or share(shard)):
            shard = self._unread.pop(index)
            if (receipt := self._look_into(shard, as_it_is=as_it_is)) is None:
                rejected.append(shard)
            else:
                self._receipts[index] = receipt
        if rejected:
            together = {**self._missing, **{shard.index: shard for shard in rejected}}
            self._missing = dict(sorted(together.items()))

    def _look_into(self, shard: ShardPlan, *, as_it_is: bool) -> Receipt | None:
        run, signature = self.task.run, _signature(self.task.run, shard)
        try:
            receipt = receipt_of(read_shard(run.shard_path(shard.index), shard, run.plan.fingerprint), shard)
        except ShardError as exc:
            logger.warning("%s; it is computed again", exc)
        else:
            if as_it_is or not receipt.failed:
                return receipt
            logger.info(
                "shard %d has %d failed tiles; they are tried again", shard.index, len(receipt.failed)
            )
        if signature is not None:
            self._rejected[shard.index] = signature
        return None


def complete(task: Task, progress: Progress, name: str = "mapping") -> tuple[list[Receipt], int]:
    """Compute those of the task's shards that are not on disk, or whose tiles failed when they were.

    Gives the receipts of all shards in order, and how many were computed now. Interrupted, it leaves the
    finished ones for the next call.
    """
    stage = Stage(task)
    with claiming() as claims:
        stage.finish(claims, progress, name)
    return stage.receipts, stage.computed


def _name(index: int) -> str:
    return f"shard-{index:06d}"


def _names_in(directory: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in os.scandir(directory))
    except FileNotFoundError:
        return frozenset()


def _signature(run: Run, shard: ShardPlan) -> tuple[int, int] | None:
    """Tells one writing of a shard from another; None where there is none."""
    try:
        found = run.shard_path(shard.index).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino

"""Workers: what computes the scenes of a run, alone or beside any number of others.

A worker needs nothing but the run directory. It goes through the scenes, computes what is free in each, and
comes back to those where others still hold something, until all are finished. Workers begin at different
scenes, so that few of them share one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rtsmap.atomic import whole_file
from rtsmap.errors import ModelError, OptionsError, RtsmapError
from rtsmap.runs.claims import Claims, claiming
from rtsmap.runs.engine import Engine, device_of_slot, engine_of
from rtsmap.runs.pauses import Pauses
from rtsmap.runs.plan import DONE, ShardPlan
from rtsmap.runs.reopening import Asked, read_asked, reopen
from rtsmap.runs.run_folders import missing_tiles
from rtsmap.runs.stages import InShare
from rtsmap.runs.working import SceneWork, State

logger = logging.getLogger(__name__)

Tell = Callable[[Path, str, int, int], None]
"""Told (directory of the scene's run, stage, done, total)."""


def tell_nobody(_directory: Path, _stage: str, _done: int, _total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Share:
    """The `index`-th of `count` equal shares of the scenes' tiles, counted from 1.

    Of each further scene the shares begin one shard later, so that scenes of one shard are shared, too.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise OptionsError(
                f"share {self.index}/{self.count}: wanted 1/{self.count} to {self.count}/{self.count}"
            )

    @classmethod
    def parse(cls, text: str) -> Share:
        """A share as users write it: `2/4`."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise OptionsError(f"share '{text}': wanted two numbers such as 2/4, for the second of four")
        return cls(int(index), int(count))

    def holds(self, shard: ShardPlan, scene: int = 0) -> bool:
        """True for shards of this share; `scene` is the place of theirs among all, from 0."""
        return (shard.index + scene) % self.count == self.index - 1

    def holds_any(self, shards: int, scene: int = 0) -> bool:
        """True when a scene of so many shards has one of this share."""
        return (self.index - 1 - scene) % self.count < shards


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to do; small, and all that is sent to another process or machine.

    `directories` are those of the scenes' runs, in the order in which this worker takes them. `model` stands
    in for the one that was planned with. `changes` are to the options. `limit` shards at most are computed.
    `token` tells apart jobs whose scenes may have changed meanwhile.
    """

    directories: tuple[Path, ...]
    model: Engine | str | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    share: Share | None = None
    limit: int | None = None
    token: str = ""

    @property
    def key(self) -> str:
        """Jobs of the same key can use the same loaded network."""
        return self.token or repr((self.model, self.changes))


@dataclass(frozen=True, slots=True)
class Done:
    """What a worker did.

    `computed` shards; `missing` those that it knows of in scenes it left `unfinished`; `problems` of scenes
    that cannot be worked on; `failed` tiles and looks of scenes, where there are some; `told` where the
    scenes' stages stand, for those who were not told meanwhile.
    """

    computed: int
    missing: int
    unfinished: tuple[Path, ...]
    problems: tuple[tuple[Path, str], ...]
    failed: tuple[tuple[Path, int], ...] = ()
    told: tuple[tuple[str, int, int], ...] = ()


class Worker:
    """Does jobs of one key, with one network for all of them.

    Where a machine has several GPUs, worker `slot`, from 0, takes one of them in turn. `engines` outlive the
    worker where they are given.

    """

    def __init__(self, job: Job, slot: int = 0, engines: dict[str, Engine] | None = None) -> None:
        self._job = job
        self._slot = slot
        self._engines = {} if engines is None else engines
        self._places = {directory: place for place, directory in enumerate(sorted(job.directories))}
        self._open: dict[Path, SceneWork] = {}
        self._latest: Path | None = None
        self._problems: dict[Path, str] = {}
        self._failed: dict[Path, int] = {}
        self._finished: set[Path] = set()

    def do(self, job: Job, tell: Tell = tell_nobody, *, wait: bool = True) -> Done:
        """Do a job. With `wait`, come back to scenes until they are finished, whoever finishes them."""
        computed, pauses = 0, Pauses()
        with claiming() as claims:
            while todo := self._unfinished(job):
                came = 0
                for directory in todo:
                    left = None if job.limit is None else job.limit - computed - came
                    if left == 0:
                        break
                    came += self._guarded(partial(self._visit, directory, job.share, left, claims, tell))
                computed += came
                if not wait or computed == job.limit:
                    break
                if came:
                    pauses.begin_anew()
                elif self._unfinished(job):
                    pauses.sleep()
        open_stages = [work.stage for directory in job.directories if (work := self._open.get(directory))]
        return Done(
            computed=computed,
            missing=sum(len(stage.task.shards) - stage.done for stage in open_stages),
            unfinished=self._unfinished(job),
            problems=tuple(self._problems.items()),
            failed=tuple((d, count) for d in job.directories if (count := self._failed.get(d))),
            told=tuple(self._standing(directory) for directory in job.directories if directory in self._open),
        )

    def _standing(self, directory: Path) -> tuple[str, int, int]:
        work = self._open[directory]
        return work.stage_name, work.stage.done, len(work.stage.task.shards)

    def _visit(
        self, directory: Path, share: Share | None, limit: int | None, claims: Claims, tell: Tell
    ) -> int:
        """Compute what is free in a scene; gives how many shards."""
        scene = self._places.get(directory, 0)
        if share and directory not in self._open and not share.holds_any(_count_shards(directory), scene):
            if _is_done(directory, dict(self._job.changes)):
                self._finished.add(directory)
            return 0
        if (work := self._work(directory, partial(share.holds, scene=scene) if share else None)) is None:
            return 0
        if self._latest not in {None, directory} and (left := self._open.get(self._latest)) is not None:
            # it may be hours before this worker comes back there
            left.task.reader.forget()
        self._latest = directory
        before, state = work.computed, State.WORKED
        while state is State.WORKED and (limit is None or work.computed - before < limit):
            state = work.advance(
                claims,
                partial(tell, directory),
                limit=None if limit is None else limit - (work.computed - before),
            )
        self._failed[directory] = work.failed
        if state is State.FINISHED:
            self._close(directory, work)
        return work.computed - before

    def _unfinished(self, job: Job) -> tuple[Path, ...]:
        return tuple(d for d in job.directories if d not in self._finished and d not in self._problems)

    def _guarded(self, visit: partial[int]) -> int:
        """One bad scene does not stop the others; a network that does not work stops everything."""
        directory: Path = visit.args[0]
        try:
            return visit()
        except ModelError:
            raise
        except RtsmapError as exc:
            logger.warning("%s: %s", directory.name, exc)
            self._problems[directory] = str(exc)
            self._open.pop(directory, None)
            return 0

    def _work(self, directory: Path, share: InShare | None) -> SceneWork | None:
        if _is_done(directory, dict(self._job.changes)):
            self._open.pop(directory, None)
            self._failed.pop(directory, None)
            self._finished.add(directory)
            return None
        if directory in self._open:
            return self._open[directory]
        scene_run = reopen(directory, self._engine, dict(self._job.changes))
        self._open[directory] = scene_run.work(share=share)
        return self._open[directory]

    def _close(self, directory: Path, work: SceneWork) -> None:
        if work.is_faultless:
            _mark_done(directory, dict(self._job.changes))
        del self._open[directory]
        self._finished.add(directory)

    def _engine(self, asked: Asked) -> Engine:
        options = asked.options
        key = repr((self._job.model, asked.model, options.of_network))
        if key not in self._engines:
            # one network at a time: the next model's scenes come after those of this one
            self._engines.clear()
            device = device_of_slot(options.device, self._slot)
            model = self._job.model or asked.model
            engine = engine_of(model, **{**options.of_network, "device": device})
            self._engines[key] = engine.loaded_once()
        return self._engines[key]


def _count_shards(directory: Path) -> int:
    return read_asked(directory).plan.count_shards()


def rotated(directories: Sequence[Path], slot: int, slots: int) -> tuple[Path, ...]:
    """The scenes in the order of worker `slot` of `slots`, from 0: each begins elsewhere."""
    start = slot * len(directories) // max(1, slots)
    return (*directories[start:], *directories[:start])


def _is_done(directory: Path, changes: Mapping[str, Any]) -> bool:
    try:
        found = json.loads((directory / DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return found == _noted(directory, changes) and not missing_tiles(directory)


def doubt_done(directory: Path) -> None:
    """Have the next worker look for itself whether anything of a scene is left for the network."""
    (directory / DONE).unlink(missing_ok=True)


def _mark_done(directory: Path, changes: Mapping[str, Any]) -> None:
    with whole_file(directory / DONE, overwrite=True) as temporary:
        temporary.write_text(json.dumps(_noted(directory, changes)) + "\n", encoding="utf-8")


def _noted(directory: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What a scene was finished with: lower thresholds may want more of the network."""
    return {"options": asdict(read_asked(directory, changes).options)}

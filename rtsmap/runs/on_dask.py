"""Scenes computed by the workers of a Dask cluster that is there already.

A task names a scene's run and how many shards to take; what it takes it claims in the run directory, which
all workers must see under the same path. So the scheduler holds no data, a task that Dask runs again finds
what is done, and workers may come and go: what a dead one held is free when its claims are over.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from rtsmap.errors import EngineError, RunError
from rtsmap.runs.engine import Engine
from rtsmap.runs.run_folders import missing_tiles
from rtsmap.runs.workers import Done, Job, Tell, Worker

logger = logging.getLogger(__name__)

SHARDS_A_TASK = 4
_AHEAD = 2
_WAIT_S = 1.0
_LOOK_S = 0.02
_LOST_TASKS = 3
_WORKERS: dict[str, Worker] = {}
_ENGINES: dict[str, Engine] = {}
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, slots=True)
class OnDask:
    """The cluster whose scheduler has this address."""

    address: str
    shards_a_task: int = SHARDS_A_TASK

    def run(self, job: Job, tell: Tell) -> Done:
        """Finish all scenes of the job. Raises RunError when there is no scheduler, or workers keep dying."""
        try:
            from distributed import Client
        except ImportError as exc:
            raise EngineError(
                "--scheduler needs Dask, which is not installed: pip install 'rtsmap[dask]'"
            ) from exc
        try:
            client = Client(self.address, timeout=20)
        except (OSError, ValueError) as exc:
            raise RunError(f"no Dask scheduler answers at {self.address}: {exc}") from exc
        with client:
            return _Course(client, replace(job, token=uuid.uuid4().hex), tell, self.shards_a_task).run()


class _Course:
    """The tasks of one job: how many each scene still needs, and how many are on their way."""

    def __init__(self, client: Any, job: Job, tell: Tell, shards_a_task: int) -> None:
        self._client, self._job, self._tell, self._shards_a_task = client, job, tell, shards_a_task
        self._wanted = {d: self._tasks_for(missing_tiles(d)) for d in job.directories}
        self._under_way: Counter[Path] = Counter()
        self._lost: Counter[Path] = Counter()
        self._computed = 0
        self._problems: dict[Path, str] = {}
        self._failed: dict[Path, int] = {}
        self._number = 0
        self._told_of_none = False

    def run(self) -> Done:
        """Submit tasks, a few more than there are threads, until all scenes are finished.

        Workers that join while tasks are long get tasks of their own at once: what waits at another's door
        Dask may leave there.
        """
        from distributed import as_completed

        arriving = as_completed()
        while self._wanted or self._under_way.total():
            for directory in self._next_scenes():
                arriving.add(self._submit(directory))
            if not _arrives(arriving, _WAIT_S):
                continue
            future = next(arriving)
            directory = Path(future.key.partition(" ")[2].rpartition(" ")[0])
            self._under_way[directory] -= 1
            self._take(directory, future)
        return Done(self._computed, 0, (), tuple(self._problems.items()), tuple(self._failed.items()))

    def _tasks_for(self, shards: int) -> int:
        return max(1, ceil(shards / self._shards_a_task))

    def _next_scenes(self) -> list[Path]:
        threads = sum(worker["nthreads"] for worker in self._client.scheduler_info(-1)["workers"].values())
        if not threads and not self._told_of_none:
            logger.warning("the Dask scheduler has no workers yet; waiting for the first one")
            self._told_of_none = True
        free = _AHEAD * max(1, threads) - self._under_way.total()
        chosen: list[Path] = []
        for directory in list(self._wanted):
            while self._wanted[directory] > 0 and len(chosen) < free:
                self._wanted[directory] -= 1
                chosen.append(directory)
        return chosen

    def _submit(self, directory: Path) -> Any:
        self._number += 1
        self._under_way[directory] += 1
        task = replace(self._job, directories=(directory,), limit=self._shards_a_task)
        # keys that differ: a task is no function of its arguments
        return self._client.submit(do_job, task, key=f"rtsmap {directory} {self._number}", pure=False)

    def _take(self, directory: Path, future: Any) -> None:
        """Hear what became of a task, and how many more its scene needs."""
        from distributed import KilledWorker

        try:
            done: Done = future.result()
        except KilledWorker as exc:
            self._lost[directory] += 1
            if self._lost[directory] > _LOST_TASKS:
                raise RunError(
                    f"{directory}: Dask workers died again and again, last with: {exc}. They may be out of "
                    "memory: use a smaller --batch-size. What is finished is kept: run it again"
                ) from exc
            logger.warning("%s: %s; tried again", directory, exc)
            self._wanted[directory] = max(1, self._wanted.get(directory, 0))
            return
        self._computed += done.computed
        self._problems |= dict(done.problems)
        for scene, count in done.failed:
            self._failed[scene] = max(count, self._failed.get(scene, 0))
        if directory not in done.unfinished:
            self._wanted.pop(directory, None)
        elif directory in self._wanted:
            coming = self._wanted[directory] + self._under_way[directory]
            self._wanted[directory] += max(0, self._tasks_for(done.missing) - coming)
            if not done.computed:
                time.sleep(_WAIT_S / 10)
        for stage, at, total in done.told:
            self._tell(directory, stage, at, total)


def _arrives(arriving: Any, within_s: float) -> bool:
    """Wait for the next finished task; False where none comes within that time."""
    until = time.monotonic() + within_s
    while not arriving.has_ready():
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_S)
    return True


def do_job(job: Job) -> Done:
    """A task on a worker: done by the one network that this process holds, whatever threads it has."""
    with _ONE_AT_A_TIME:
        if job.key not in _WORKERS:
            _WORKERS.clear()
            _WORKERS[job.key] = Worker(job, engines=_ENGINES)
        return _WORKERS[job.key].do(job, wait=False)

"""Scenes computed by several processes of this machine, each with a network of its own.

Processes are spawned, not forked, for a GPU or a thread pool does not survive a fork. Each goes through the
scenes like a worker on any other machine. One that dies is started again, a few times; what it held is free.
After Ctrl-C each finishes the shard in hand; the second Ctrl-C ends them at once.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rtsmap.errors import OptionsError, RtsmapError, RunError
from rtsmap.garbage import collect_seldom
from rtsmap.runs.workers import Done, Job, Tell, Worker, rotated

logger = logging.getLogger(__name__)

_RESTARTS = 3
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Processes:
    """So many workers on this machine, which share its cores, and its GPUs in turn."""

    workers: int

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= 1024:
            raise OptionsError(f"workers must be within 1..1024, got {self.workers}")

    def run(self, job: Job, tell: Tell) -> Done:
        """Finish all scenes of the job. Raises what stopped a worker; RunError when workers keep dying."""
        with _few_threads(self.workers):
            crew = [_Member(job, slot, self.workers) for slot in range(self.workers)]
        try:
            while busy := [member for member in crew if member.done is None]:
                for member in _heard_from(busy):
                    member.listen(tell)
        except KeyboardInterrupt:
            _let_finish(crew)
            raise
        finally:
            for member in crew:
                member.stop()
        return _together([member.done for member in crew if member.done])


class _Member:
    """One process, and what it tells."""

    def __init__(self, job: Job, slot: int, slots: int) -> None:
        self.done: Done | None = None
        self._deaths = 0
        self._slots = slots
        directories = rotated(job.directories, slot, slots)
        self._job = replace(job, directories=directories)
        self._slot = slot
        self._start()

    @property
    def connection(self) -> Connection:
        """Where messages come from."""
        return self._connection

    def listen(self, tell: Tell) -> None:
        """Take in one message."""
        try:
            kind, content = self._connection.recv()
        except (EOFError, OSError):
            self._mourn()
            return
        if kind == "told":
            tell(*content)
        elif kind == "done":
            self.done = content
        else:
            raise content

    def finish_shard(self) -> None:
        """Ask the process to end once the shard in hand is on disk."""
        if self.done is None and self._process.pid is not None and os.name != "nt":
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGINT)

    def see_off(self) -> None:
        """Wait until the process has ended; what it has to tell is heard, lest it waits for a listener."""
        with suppress(EOFError, OSError):
            while self.done is None:
                kind, _ = self._connection.recv()
                if kind != "told":
                    return

    def stop(self) -> None:
        """End the process if it still runs; what it has in hand is lost, what is on disk stays."""
        with suppress(OSError):
            self._connection.close()
        if self.done is None:
            self._process.terminate()
        self._process.join()

    def _start(self) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(
            target=_serve, args=(self._job, self._slot, theirs), name=f"rtsmap worker {self._slot + 1}"
        )
        self._process.start()
        theirs.close()

    def _mourn(self) -> None:
        self._process.join()
        self._deaths += 1
        what = f"worker {self._slot + 1} of {self._slots} died (exit code {self._process.exitcode})"
        if self._deaths > _RESTARTS:
            raise RunError(
                f"{what}, for the {self._deaths}th time. It may be out of memory: use fewer --workers or a "
                "smaller --batch-size. What is finished is kept; run the same command again to go on"
            )
        logger.warning("%s; it is started again", what)
        with _few_threads(self._slots):
            self._start()


def _serve(job: Job, slot: int, connection: Connection) -> None:
    """A worker process: does the job and tells how it goes."""

    def tell(directory: Path, stage: str, done: int, total: int) -> None:
        connection.send(("told", (directory, stage, done, total)))

    collect_seldom()
    answer: tuple[str, Any]
    if hasattr(os, "setpgrp"):
        # Ctrl-C in the terminal is for the parent, which passes it on once
        os.setpgrp()
    try:
        answer = ("done", Worker(job, slot).do(job, tell))
    except KeyboardInterrupt:
        return
    except RtsmapError as exc:
        answer = ("failed", exc)
    except Exception as exc:  # noqa: BLE001 - the parent raises it
        answer = ("failed", RuntimeError(f"worker {slot + 1}: {type(exc).__name__}: {exc}"))
    with suppress(OSError):
        connection.send(answer)


def _let_finish(crew: list[_Member]) -> None:
    logger.warning("Ctrl-C: each worker finishes the shard in hand; once more stops at once")
    for member in crew:
        member.finish_shard()
    for member in crew:
        member.see_off()


def _heard_from(members: list[_Member]) -> list[_Member]:
    """Those that have something to tell, or died."""
    by_connection = {member.connection: member for member in members}
    return [by_connection[ready] for ready in wait(list(by_connection))]  # type: ignore[index]


def _together(parts: list[Done]) -> Done:
    problems = dict(item for part in parts for item in part.problems)
    failed: dict[Path, int] = {}
    for directory, count in (item for part in parts for item in part.failed):
        failed[directory] = max(count, failed.get(directory, 0))
    computed = sum(part.computed for part in parts)
    return Done(computed, 0, (), tuple(problems.items()), tuple(failed.items()))


@contextmanager
def _few_threads(workers: int) -> Iterator[None]:
    """Have processes that are started in the block divide the cores; what the user has set stays."""
    share = str(max(1, (os.cpu_count() or 1) // workers))
    added = [name for name in _THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, share))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]

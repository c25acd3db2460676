"""Claims: which worker computes which shard, where workers have nothing in common but a folder.

A claim is a file that only one worker can create. Its holder touches it while it works and removes it when
the shard is on disk. The rule for claims that nobody will ever remove: a claim is over when its holder ran on
this machine and runs no more, or when nobody has touched it for `LEASE_S` seconds by the clock of the file
system. Should two workers compute one shard after all, because a holder was only asleep, both write the same
file, and nothing is lost but time.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rtsmap.atomic import folders_below
from rtsmap.runs.plan import CLAIMS

LEASE_S = 120.0
"""A claim that its holder has not renewed for so long is over."""

_RENEW_S = 20.0
_CLOCK_S = 30.0
_FOLDERS_KEPT = 10_000
_LEADS: dict[Path, tuple[float, float]] = {}


@contextmanager
def claiming() -> Iterator[Claims]:
    """The claims of a worker, renewed by a thread while the block runs and let go at its end."""
    claims, stop = Claims(), threading.Event()
    thread = threading.Thread(target=claims.renew_until, args=(stop,), name="claims", daemon=True)
    thread.start()
    try:
        yield claims
    finally:
        stop.set()
        thread.join()
        claims.release_all()


class Claims:
    """The claims of one worker; made by `claiming`, which keeps them alive."""

    def __init__(self) -> None:
        self._held: set[Path] = set()
        self._lock = threading.Lock()

    def take(self, directory: Path, name: str) -> bool:
        """Claim a shard of the run in `directory`; False when another worker holds it."""
        path = directory / CLAIMS / name
        if not (self._create(path) or (_is_over(path) and self._take_over(path))):
            return False
        with self._lock:
            self._held.add(path)
        return True

    def release(self, directory: Path, name: str) -> None:
        """Let a claim go; the last one takes the folder with it."""
        self._remove(directory / CLAIMS / name)

    def release_all(self) -> None:
        """Let all claims go."""
        for path in list(self._held):
            self._remove(path)

    def renew_until(self, stop: threading.Event) -> None:
        """Touch what is held, again and again."""
        while not stop.wait(_RENEW_S):
            with self._lock:
                held_now = list(self._held)
            for path in held_now:
                with suppress(OSError):
                    os.utime(path)

    def _remove(self, path: Path) -> None:
        with self._lock:
            self._held.discard(path)
            others = any(held.parent == path.parent for held in self._held)
        path.unlink(missing_ok=True)
        if not others:
            with suppress(OSError):
                path.parent.rmdir()

    def _create(self, path: Path) -> bool:
        text = json.dumps(_me())
        for _ in range(3):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                return False
            except FileNotFoundError:
                # somebody let the last claim go and removed the folder in this moment
                continue
            try:
                with os.fdopen(descriptor, "w") as stream:
                    stream.write(text)
            except OSError as exc:
                # an empty claim would keep others from the shard until its lease ends
                path.unlink(missing_ok=True)
                exc.filename = str(path)
                raise
            return True
        return False

    def _take_over(self, path: Path) -> bool:
        """Put a claim that is over aside, which only one worker can do, then claim anew."""
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.rename(aside)
        except OSError:
            return False
        mistaken = not _is_over(aside)
        if mistaken:
            # somebody took it over a moment ago, and this was the new claim
            with suppress(OSError):
                path.hardlink_to(aside)
        aside.unlink(missing_ok=True)
        return not mistaken and self._create(path)


def held(directory: Path) -> list[dict[str, Any]]:
    """Claims of a run that are not over: what their holders say of themselves, with `name`."""
    paths = sorted((directory / CLAIMS).glob("[!.]*"))
    return [{"name": path.name, **_read(path)} for path in paths if not _is_over(path)]


def sweep(directory: Path) -> None:
    """Remove claims of a run, and of its looks, that are over: those whose holders were killed."""
    for folder in folders_below(directory, CLAIMS):
        # whoever lets the last claim go removes the folder
        with suppress(FileNotFoundError):
            for path in folder.iterdir():
                if _is_over(path):
                    path.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


def _is_over(path: Path) -> bool:
    try:
        touched, now = path.stat().st_mtime, _now(path.parent)
    except OSError:
        return False
    holder = _read(path)
    if holder.get("machine") == _machine() and not _is_running(holder):
        return True
    return now - touched > LEASE_S


def _now(folder: Path) -> float:
    """The time by the clock that stamps files in this folder, which may be another machine's.

    Its lead over the clock here is asked for once in `_CLOCK_S` seconds.
    """
    asked, lead = _LEADS.get(folder, (0.0, 0.0))
    if not asked or not 0 <= time.time() - asked < _CLOCK_S:
        probe = folder / f".now-{uuid.uuid4().hex}"
        probe.touch()
        try:
            asked = time.time()
            lead = probe.stat().st_mtime - asked
        finally:
            probe.unlink(missing_ok=True)
        if len(_LEADS) > _FOLDERS_KEPT:
            _LEADS.clear()
        _LEADS[folder] = asked, lead
    return time.time() + lead


def _read(path: Path) -> dict[str, Any]:
    """What a claim says; nothing for one that was created in this moment, or broken."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _me() -> dict[str, Any]:
    return {
        "machine": _machine(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _machine() -> str:
    """Tells apart machines, and containers whose process numbers mean different processes."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(Path("/proc/self/ns/pid").readlink().name)
    return " ".join(parts)


def _started(pid: int) -> str:
    """When a process began, where the system tells: its number may be given to another one later."""
    try:
        # fields after the command's name, which may hold spaces and brackets
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_running(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if not isinstance(pid, int) or os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    started = holder.get("started")
    return not started or (_started(pid) == started and not _is_zombie(pid))


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False

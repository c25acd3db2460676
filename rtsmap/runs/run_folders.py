"""Run directories seen from outside: which scenes they hold, and how far these are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from rtsmap.errors import RunError
from rtsmap.instances.coverage import FAILED
from rtsmap.runs.claims import held
from rtsmap.runs.plan import LOOKS, PLAN
from rtsmap.runs.reopening import read_asked

SCENES = "scenes.json"
"""The file of a run directory that names its scenes where there are many."""
_LISTED = 10
_RECENT_S = 900.0


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a run is. `shards` and `done` count blocks of tiles, `looks` those of second looks so far.

    `failed` are (scene, tile, reason); `workers` who holds a claim now. `shards_a_minute` and `minutes_left`
    are from the shards of the last quarter of an hour with any, None where these are fewer than two.
    """

    scenes: int
    finished_scenes: int
    shards: int
    done: int
    looks: int
    failed: tuple[tuple[str, int, str], ...]
    workers: tuple[str, ...]
    shards_a_minute: float | None
    minutes_left: float | None
    problems: tuple[tuple[str, str], ...] = ()

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"scenes    {self.finished_scenes} of {self.scenes} have all their tiles"
        yield f"shards    {self.done} of {self.shards} computed, and {self.looks} of second looks"
        yield f"workers   {', '.join(self.workers) or 'none at the moment'}"
        if self.shards_a_minute is not None:
            yield f"speed     {self.shards_a_minute:.1f} shards a minute"
        if self.minutes_left is not None and self.done < self.shards:
            yield f"left      about {_duration(self.minutes_left)} for tiles; second looks come after them"
        yield f"failed    {len(self.failed)} tiles"
        for scene, tile, reason in self.failed[:_LISTED]:
            yield f"          {scene}, tile {tile}: {reason}"
        if len(self.failed) > _LISTED:
            yield f"          and {len(self.failed) - _LISTED} more"
        for scene, problem in self.problems:
            yield f"problem   {scene}: {problem}"


@dataclass(frozen=True, slots=True)
class SceneEntry:
    """One scene of a run over many: `name` is its folder, `problem` says why it could not be planned."""

    name: str
    scene: str
    scene_id: str
    acquired: str | None
    problem: str | None

    def to_dict(self) -> dict[str, str | None]:
        """Plain data."""
        return asdict(self)


def is_of_many(directory: Path) -> bool:
    """True for the run directory of many scenes."""
    return (directory / SCENES).is_file()


def read_entries(directory: Path) -> list[SceneEntry]:
    """The scenes of a run over many."""
    path = directory / SCENES
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return [SceneEntry(**entry) for entry in data["scenes"]]
    except FileNotFoundError as exc:
        raise RunError(
            f"{directory} is no run directory: it has neither {PLAN} nor {SCENES}. `rtsmap plan` makes one"
        ) from exc
    except (OSError, ValueError, LookupError, TypeError) as exc:
        raise RunError(f"{path} cannot be read ({exc}). Plan the run again; what is computed stays") from exc


def scene_directories(directory: Path) -> tuple[Path, ...]:
    """The run directories of the scenes of a run that can be worked on: itself where it is of one scene."""
    directory = directory.resolve()
    if (directory / PLAN).is_file():
        return (directory,)
    return tuple(directory / entry.name for entry in read_entries(directory) if not entry.problem)


def missing_tiles(directory: Path) -> int:
    """How many shards of tiles are not on disk."""
    return read_asked(directory).plan.count_shards() - len(list(directory.glob("shard-*.arrow")))


def standing(directory: Path) -> Standing:
    """How far a run is, from what lies in its directory; nobody's work is disturbed."""
    scenes = scene_directories(directory)
    totals, done, looks, finished = 0, 0, 0, 0
    times: list[float] = []
    failed: list[tuple[str, int, str]] = []
    workers: set[str] = set()
    for scene in scenes:
        total = read_asked(scene).plan.count_shards()
        found = sorted(scene.glob("shard-*.arrow"))
        looked = list(scene.glob(f"{LOOKS}/*/shard-*.arrow"))
        totals, done, looks = totals + total, done + len(found), looks + len(looked)
        finished += len(found) == total
        times += [path.stat().st_mtime for path in found]
        failed += [(scene.name, *failure) for path in found for failure in _failures(path)]
        for folder in (scene, *(path.parent for path in scene.glob(f"{LOOKS}/*/claims"))):
            workers |= {f"{claim.get('host', '?')}:{claim.get('pid', '?')}" for claim in held(folder)}
    problems = [(e.name, e.problem) for e in read_entries(directory)] if is_of_many(directory) else []
    speed = _shards_a_minute(times)
    return Standing(
        scenes=len(scenes),
        finished_scenes=finished,
        shards=totals,
        done=done,
        looks=looks,
        failed=tuple(failed),
        workers=tuple(sorted(workers)),
        shards_a_minute=speed,
        minutes_left=(totals - done) / speed if speed else None,
        problems=tuple((name, problem) for name, problem in problems if problem),
    )


def _failures(path: Path) -> Iterator[tuple[int, str]]:
    """Failed tiles of a shard, from its head alone; nothing of one that is damaged."""
    try:
        with pa.OSFile(str(path), "rb") as source, pa.ipc.open_file(source) as reader:
            head = json.loads(reader.schema.metadata[b"rtsmap"])
            failed = [(t["tile"], t["reason"]) for t in head["tiles"] if t["status"] == FAILED]
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException):
        return
    yield from failed


def _shards_a_minute(times: Sequence[float]) -> float | None:
    """Over the last quarter of an hour that gave any, so that nights of standstill do not count."""
    if not times:
        return None
    last = max(times)
    recent = sorted(t for t in times if t > last - _RECENT_S)
    seconds = recent[-1] - recent[0]
    return 60 * (len(recent) - 1) / seconds if seconds > 0 else None


def _duration(minutes: float) -> str:
    if minutes < 120:
        return f"{minutes:.0f} minutes"
    return f"{minutes / 60:.0f} hours" if minutes < 48 * 60 else f"{minutes / 60 / 24:.0f} days"

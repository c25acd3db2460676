"""The plan of a run, and the directory that holds it.

A plan says all that decides what the shards of a run hold: inputs, model, options, grid, tiles and
package versions. What only matters when shards are merged (thresholds, simplification) is not in it,
so those may change without computing anything again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

from odc.geo.geobox import GeoBox

from rtsmap import __version__
from rtsmap.atomic import whole_file
from rtsmap.errors import PlanMismatchError, RunError
from rtsmap.rasters.tiling import Tile, TileOptions, Window, plan_spans, plan_tiles

PLAN = "plan.json"
FORMAT = 1
LOOKS = "looks"
"""The folder of a run directory that holds second looks."""
CLAIMS = "claims"
"""The folder of a run directory that says who is computing which shard."""
DONE = "done.json"
"""Says in a scene's run directory that nothing is left for the network; workers that come later pass by."""
PACKAGES = ("numpy", "scipy", "rasterio", "pyproj", "odc-geo", "torch", "torchvision")
"""Packages whose versions can change pixels, masks or scores."""

_LOCK = ".lock"
_LOCK_WAIT_S = 30.0
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A block of neighbouring tiles that are read at once (`window`) and stored in one file."""

    index: int
    tiles: tuple[Tile, ...]
    window: Window


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the shards of a run.

    `inputs` are fingerprints (no paths: a moved file is the same file), `model` the detector's identity,
    `options` plain data, `geobox` the run's grid. A shard is a block of `shard_tiles` x `shard_tiles`
    tiles. `paths` says where the inputs were, `asked` what else the user asked for, so that a run can be
    opened again from its directory alone; neither counts when plans are compared.
    """

    inputs: Mapping[str, Any]
    model: Mapping[str, Any]
    options: Mapping[str, Any]
    geobox: GeoBox
    tiles: TileOptions
    shard_tiles: int
    versions: Mapping[str, str]
    paths: Mapping[str, Any] = field(default_factory=dict, compare=False)
    asked: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in plan.json."""
        return {
            "format": FORMAT,
            "inputs": dict(self.inputs),
            "model": dict(self.model),
            "options": dict(self.options),
            "grid": {
                "crs": str(self.geobox.crs),
                "affine": list(self.geobox.affine)[:6],
                "shape": list(self.geobox.shape),
            },
            "tiles": {
                "chip_px": self.tiles.chip_px,
                "overlap_px": self.tiles.overlap_px,
                "origin_px": self.tiles.origin_px,
                "shard_tiles": self.shard_tiles,
            },
            "versions": dict(self.versions),
        }

    @property
    def files(self) -> list[str]:
        """Where the inputs were, one by one."""
        named = ([name] if isinstance(name, str) else name or () for name in self.paths.values())
        return [file for files in named for file in files]

    @property
    def fingerprint(self) -> str:
        """sha256 of the plan; every shard carries it."""
        return hashlib.sha256(_canonical(self.to_dict())).hexdigest()

    def count_shards(self) -> int:
        """How many blocks of tiles there are."""
        height, width = self.geobox.shape
        spans = (
            plan_spans(size, self.tiles.chip_px, self.tiles.overlap_px, self.tiles.origin_px)
            for size in (height, width)
        )
        return prod(-(-len(along) // self.shard_tiles) for along in spans)

    def shards(self) -> tuple[ShardPlan, ...]:
        """Blocks of tiles over the whole grid, row by row; each tile is in exactly one."""
        height, width = self.geobox.shape
        tiles = plan_tiles((height, width), self.tiles)
        columns = sum(tile.core.row0 == 0 for tile in tiles)
        blocks: dict[tuple[int, int], list[Tile]] = {}
        for tile in tiles:
            row, column = divmod(tile.index, columns)
            blocks.setdefault((row // self.shard_tiles, column // self.shard_tiles), []).append(tile)
        return tuple(_shard(index, blocks[key]) for index, key in enumerate(sorted(blocks)))


def _shard(index: int, tiles: list[Tile]) -> ShardPlan:
    window = tiles[0].read
    for tile in tiles[1:]:
        window = window.union(tile.read)
    return ShardPlan(index, tuple(tiles), window)


def package_versions() -> dict[str, str]:
    """Versions of rtsmap and of what it computes with, read from the installed metadata."""
    found = ((name, _version(name)) for name in PACKAGES)
    return {"rtsmap": __version__, **{name: version for name, version in found if version}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory whose plan was written or found equal."""

    directory: Path
    plan: Plan
    resumed: bool

    def shard_path(self, index: int) -> Path:
        """Where shard `index` is, or will be."""
        return self.directory / f"shard-{index:06d}.arrow"

    def discard(self) -> None:
        """Remove the run's files, and the directory unless something else lies in it."""
        shutil.rmtree(self.directory / LOOKS, ignore_errors=True)
        shutil.rmtree(self.directory / CLAIMS, ignore_errors=True)
        own = (self.directory / name for name in (PLAN, DONE, _LOCK))
        for path in (*self.directory.glob("shard-*.arrow"), *own):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.directory.rmdir()


def open_run(directory: Path, plan: Plan, *, renew: bool = True) -> Run:
    """Create a run directory, or resume the one that is there.

    With `renew`, a run that is there learns where inputs are now, and what is asked for this time. Raises
    PlanMismatchError, naming the differences, when the directory holds another plan, and RunError when it
    holds something else.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as exc:
        # nothing can be made in some places, /proc for one, and others vanish
        raise RunError(f"{directory}: the run directory cannot be made there; name another place") from exc
    path = directory / PLAN
    # a plan appears whole, and so does its renewal, so that reading it needs no lock
    if path.exists():
        _check_same(path, plan)
        if renew:
            _renew(path, plan)
        return Run(directory, plan, resumed=True)
    with exclusive(directory):
        if path.exists():
            _check_same(path, plan)
            return Run(directory, plan, resumed=True)
        strangers = [entry.name for entry in directory.iterdir() if not entry.name.startswith(".")]
        if strangers:
            raise RunError(
                f"{directory} is no run directory: it has no {PLAN}, but holds {strangers[0]}. "
                "Name another one, or empty it"
            )
        _write(path, plan)
    return Run(directory, plan, resumed=False)


def _renew(path: Path, plan: Plan) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    wanted = json.loads(_canonical(_with_places(plan)))
    if any(found.get(key) != wanted[key] for key in ("paths", "asked")):
        _write(path, plan)


def _write(path: Path, plan: Plan) -> None:
    with whole_file(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(_with_places(plan), indent=1) + "\n", encoding="utf-8")


def _with_places(plan: Plan) -> dict[str, Any]:
    """All that plan.json holds."""
    return {**plan.to_dict(), "paths": dict(plan.paths), "asked": dict(plan.asked)}


def _check_same(path: Path, plan: Plan) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for key in ("paths", "asked"):
            found.pop(key, None)
    except (OSError, ValueError, AttributeError) as exc:
        raise RunError(f"{path} cannot be read ({exc}). Remove {path.parent} to start again") from exc
    wanted = json.loads(_canonical(plan.to_dict()))
    if found != wanted:
        raise PlanMismatchError(
            f"{path.parent} belongs to another run. {differences(found, wanted)}. "
            "Give the options and inputs of that run to go on with it, or remove the directory "
            "(or name another one with --run-dir) to start anew"
        )


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], limit: int = 6) -> str:
    """A sentence that names what differs between two plans."""
    old, new = dict(_flat(found)), dict(_flat(wanted))
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    parts = [f"{key} was {_short(old.get(key))}, now {_short(new.get(key))}" for key in keys[:limit]]
    more = f"; and {len(keys) - limit} more" if len(keys) > limit else ""
    return "It differs in: " + "; ".join(parts) + more


def _flat(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, data


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _canonical(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold the run's lock (planning and merging); the system frees it when the process dies.

    Where the file system knows no locks, as Lustre mounted without them, a warning stands in for it.
    """
    deadline = time.monotonic() + _LOCK_WAIT_S
    with (directory / _LOCK).open("a+b") as stream:
        while not _try_lock(stream.fileno()):
            if time.monotonic() > deadline:
                raise RunError(
                    f"{directory}: another process has been planning or merging for "
                    f"{_LOCK_WAIT_S:.0f} s. Wait until it is done, then run the same command again"
                )
            time.sleep(0.1)
        yield


@cache
def _tell_of_no_locks(reason: str) -> None:
    """Once, however many scenes a run has."""
    logger.warning(
        "the run directory is on a file system without locks (%s): plan and merge it once at a time",
        reason,
    )


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno not in _NO_LOCKS:
                return False
            _tell_of_no_locks(str(exc.strerror))
        return True

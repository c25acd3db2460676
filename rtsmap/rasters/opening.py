"""Opening rasters for reading, and reading again where that fails: disks and servers have bad moments.

While a run reads thousands of windows of the same files, `kept_open` has them stay open in between, so that
GDAL need not decode a block again for the next window that shares it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from xml.sax.saxutils import unescape

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from rtsmap.errors import ReadError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_SOURCE = re.compile(r"<SourceFilename[^>]*>([^<]*)</SourceFilename>")

GDAL_ERRORS = (RasterioError, CPLE_BaseError)
"""What reading with rasterio may raise; of damaged headers GDAL's own errors come through as they are."""

LOCAL_PAUSES_S = (0.1, 0.5)
REMOTE_PAUSES_S = (0.5, 2.0, 5.0)
"""Pauses before each further try."""

CACHE_MB = "256"
"""Memory for decoded blocks; GDAL's own limit is a share of the machine's."""

# `probe` refuses what is not georeferenced. rasterio also warns of its own arrays while it warps, and hides
# that by `catch_warnings`, which leaks when several threads warp.
warnings.filterwarnings("ignore", message="Dataset has no geotransform", category=NotGeoreferencedWarning)

# GDAL asks for it once, when it first needs to know
os.environ.setdefault("GDAL_CACHEMAX", CACHE_MB)

_HTTP = {
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
}
"""GDAL's own patience with servers, with back-off; what the user has set in the environment counts."""

AFRESH = {"CPL_VSIL_CURL_NON_CACHED": "/vsi"}
"""GDAL remembers what a server sent, half answers and none at all too; with this it asks again."""

_FINAL = re.compile(r"HTTP (?:response|error) code.*: ?(?:401|403|404|410)\b")


_FILE_SYSTEM = re.compile(r"/vsi([a-z0-9]+?)(?:_streaming)?/|\b([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_LOCAL = {"file", "zip", "tar", "gzip", "gz", "7z", "rar", "mem", "subfile", "sparse", "crypt", "stdin"}


def is_remote(dataset: str) -> bool:
    """True for what lies on a server, in an archive there too, and for virtual rasters over such."""
    named = (system or scheme for system, scheme in _FILE_SYSTEM.findall(dataset))
    return any(name.lower().rpartition("+")[2] not in _LOCAL for name in named)


_PART = re.compile(r'[a-z]\w+:(?:[^"]*"|(?:off:)?(?:\d+:)*)((?:[a-z]:[\\/])?[^":]+)', re.IGNORECASE)
"""What GDAL calls a part of a file: GPKG:file:table, GTIFF_DIR:1:file, NETCDF:"file":variable."""


def local_path(name: str) -> Path | None:
    """The system's own file that a name means, or of which it means a part, there or not.

    None for addresses, for what lies in an archive, and for the text of a virtual raster.
    """
    parts = _around_path(name)
    return None if parts is None else Path(parts[1])


def archive_of(name: str) -> Path | None:
    """The system's own archive in which something lies; None where there is none."""
    inside = re.sub(r"^(/vsi\w+/)+", "", name).replace("{", "").replace("}", "")
    if name == inside or is_remote(name):
        return None
    return next((path for path in (Path(inside), *Path(inside).parents) if path.is_file()), None)


def with_path(name: str, place: Callable[[Path], Path]) -> str:
    """A name with its `local_path` put elsewhere by `place`; one that has none stays as it is."""
    parts = _around_path(name)
    return name if parts is None else f"{parts[0]}{place(Path(parts[1]))}{parts[2]}"


def absolute(name: str) -> str:
    """The same raster from whatever folder it is asked for; addresses stay as they are."""
    system = re.match(r"(?:/vsi\w+/)+\{?", name)
    if system and archive_of(name):
        return f"{system[0]}{Path.cwd() / name[system.end() :]}"
    return with_path(name, Path.resolve)


def _around_path(name: str) -> tuple[str, str, str] | None:
    if _FILE_SYSTEM.search(name) or name.lstrip().startswith("<"):
        return None
    part = _PART.match(name)
    if part is None or os.path.exists(name):  # noqa: PTH110 - a name may be too long
        return "", name, ""
    return name[: part.start(1)], part[1], name[part.end(1) :]


@contextmanager
def opened(dataset: str, **options: Any) -> Iterator[Any]:
    """A dataset open for reading."""
    settings = {key: value for key, value in _HTTP.items() if key not in os.environ}
    with (
        rasterio.Env(**(settings if is_remote(dataset) else {})),
        rasterio.open(dataset, **options) as src,
    ):
        yield src


@contextmanager
def kept_open() -> Iterator[None]:
    """Have local files that `borrowed` opens stay open until the block ends."""
    _KEPT.enter()
    try:
        yield
    finally:
        _KEPT.leave()


@contextmanager
def borrowed(dataset: str, **options: Any) -> Iterator[Any]:
    """A dataset open for reading by one thread, maybe the one that was used before.

    One whose file has changed or vanished since, or that failed, is not used again.
    """
    key, signature = (dataset, *sorted(options.items())), _signature(dataset) if _KEPT.is_on else None
    if signature is None:
        with opened(dataset, **options) as src:
            yield src
        return
    # without it GDAL prints its warnings, those of reading too, once a thread and process
    with rasterio.Env():
        src = _KEPT.take(key, signature)
        if src is None:
            src = rasterio.open(dataset, **options)
        try:
            yield src
        except BaseException:
            src.close()
            raise
    _KEPT.give(key, signature, src)


class _Kept:
    """Datasets that are open and in nobody's hands, while there is anybody who may want them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._idle: dict[Any, list[tuple[Any, Any]]] = {}

    @property
    def is_on(self) -> bool:
        return self._users > 0

    def enter(self) -> None:
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            stale = [] if self._users else [src for idle in self._idle.values() for _, src in idle]
            if stale:
                self._idle.clear()
        _close(stale)

    def take(self, key: Any, signature: Any) -> Any | None:
        with self._lock:
            idle = self._idle.pop(key, [])
            fresh = [src for told, src in idle if told == signature]
            stale = [src for told, src in idle if told != signature]
            if fresh[1:]:
                self._idle[key] = [(signature, src) for src in fresh[1:]]
        _close(stale)
        return fresh[0] if fresh else None

    def give(self, key: Any, signature: Any, src: Any) -> None:
        with self._lock:
            if wanted := self._users > 0:
                self._idle.setdefault(key, []).append((signature, src))
        if not wanted:
            src.close()

    def forget(self) -> None:
        """After a fork: the files are the other process's."""
        self._lock, self._idle = threading.Lock(), {}


_KEPT = _Kept()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_KEPT.forget)


def _close(datasets: list[Any]) -> None:
    for src in datasets:
        with suppress(RasterioError):
            src.close()


def _signature(dataset: str) -> tuple[tuple[int, int, int], ...] | None:
    """Tells local files, those of a virtual raster too, from others of the same names; None where unknown."""
    names = [unescape(name) for name in _SOURCE.findall(dataset)] or [dataset]
    try:
        found = [Path(name).stat() for name in names]
    except (OSError, ValueError):
        return None
    return tuple((status.st_mtime_ns, status.st_size, status.st_ino) for status in found)


def patiently(read: Callable[[], Result], dataset: str, name: str) -> Result:
    """The result of `read`, tried again after growing pauses; ReadError with the file's name in the end.

    What a server refuses, or does not have, is not asked for again.
    """
    again, remote = False, is_remote(dataset)

    def once() -> Result:
        if not again:
            return read()
        with rasterio.Env(**(AFRESH if remote else {})):
            open_sources(dataset)
            return read()

    pauses = iter(REMOTE_PAUSES_S if remote else LOCAL_PAUSES_S)
    while True:
        try:
            return once()
        except (*GDAL_ERRORS, OSError) as exc:  # noqa: PERF203 - once a try
            pause_s = None if remote and _FINAL.search(innermost(exc)) else next(pauses, None)
            if pause_s is None:
                raise ReadError(f"{name}: {innermost(exc)}") from exc
            logger.info("%s: cannot be read (%s); trying again in %.1f s", name, innermost(exc), pause_s)
            time.sleep(pause_s)
            again = True


def open_sources(dataset: str) -> None:
    """Open each file of a virtual raster; raises RasterioError for one that does not open.

    GDAL remembers files that did not open, and may give no data for them the next time without a word.
    """
    for name in _SOURCE.findall(dataset):
        with opened(unescape(name), sharing=False):
            pass


def innermost(exc: BaseException) -> str:
    """One line of the error that began it: what GDAL said."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__

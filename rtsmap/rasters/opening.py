"""Opening rasters for reading, and reading again where that fails: disks and servers have bad moments."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from xml.sax.saxutils import unescape

import rasterio
from rasterio.errors import RasterioError

from rtsmap.errors import ReadError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_SOURCE = re.compile(r"<SourceFilename[^>]*>([^<]*)</SourceFilename>")

LOCAL_PAUSES_S = (0.1, 0.5)
REMOTE_PAUSES_S = (0.5, 2.0, 5.0)
"""Pauses before each further try."""

_HTTP = {
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
}
"""GDAL's own patience with servers, with back-off; what the user has set in the environment counts."""


def is_remote(dataset: str) -> bool:
    """True for addresses, GDAL's virtual file systems, and virtual rasters over such."""
    return "://" in dataset or "/vsi" in dataset


@contextmanager
def opened(dataset: str, **options: Any) -> Iterator[Any]:
    """A dataset open for reading."""
    settings = {key: value for key, value in _HTTP.items() if key not in os.environ}
    with (
        rasterio.Env(**(settings if is_remote(dataset) else {})),
        rasterio.open(dataset, **options) as src,
    ):
        yield src


def patiently(read: Callable[[], Result], dataset: str, name: str) -> Result:
    """The result of `read`, tried again after growing pauses; ReadError with the file's name in the end."""
    again = False

    def once() -> Result:
        if again:
            open_sources(dataset)
        return read()

    for pause_s in REMOTE_PAUSES_S if is_remote(dataset) else LOCAL_PAUSES_S:
        try:
            return once()
        except (RasterioError, OSError) as exc:  # noqa: PERF203 - once a try
            logger.info("%s: cannot be read (%s); trying again in %.1f s", name, innermost(exc), pause_s)
            time.sleep(pause_s)
            again = True
    try:
        return once()
    except (RasterioError, OSError) as exc:
        raise ReadError(f"{name}: {innermost(exc)}") from exc


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

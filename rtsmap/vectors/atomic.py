"""Files that appear whole or not at all: written beside their place, then moved into it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rtsmap.errors import InputError

COMPANIONS: Mapping[str, tuple[str, ...]] = {
    ".shp": (".shx", ".dbf", ".prj", ".cpg", ".sbn", ".sbx", ".qix", ".qmd", ".shp.xml"),
    ".gpkg": (".gpkg-wal", ".gpkg-shm", ".gpkg-journal"),
}
"""Files that belong to a file with such a suffix; those of a replaced file would spoil the new one."""


@contextmanager
def whole_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a path to write to, and move what was written there to `path` if the block succeeds.

    The temporary path has the same file name, in a hidden folder beside `path` that is always
    removed. Everything is fsynced before the move. Raises InputError when `path` exists and
    `overwrite` is false, before anything is written, or when its folder cannot be written to.
    """
    refuse_existing(path, overwrite=overwrite)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent))
    except OSError as exc:
        raise InputError(
            f"{path}: cannot write in the folder {path.parent}: {exc.strerror}; "
            "create it, or name another output"
        ) from exc
    try:
        yield folder / path.name
        # Another program may have made the file meanwhile.
        refuse_existing(path, overwrite=overwrite)
        _move_into_place(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise InputError when `path` exists and may not be replaced, or is a folder."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file to write")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; choose another name, or replace it with --overwrite")


def _move_into_place(folder: Path, path: Path) -> None:
    written = sorted(folder.iterdir())
    for file in written:
        _fsync(file)
    if len(written) > 1:
        # Old and new parts must never be seen together: the file that is opened goes first, comes last.
        path.unlink(missing_ok=True)
    for suffix in COMPANIONS.get(path.suffix.lower(), ()):
        path.with_suffix(suffix).unlink(missing_ok=True)
    for file in sorted(written, key=lambda file: file.name == path.name):
        file.replace(path.with_name(file.name))
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

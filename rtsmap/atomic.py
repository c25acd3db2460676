"""Files that appear whole or not at all: written beside their place, then moved into it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from glob import escape
from pathlib import Path

from rtsmap.errors import InputError, RunError

COMPANIONS: Mapping[str, tuple[str, ...]] = {
    ".shp": (".shx", ".dbf", ".prj", ".cpg", ".sbn", ".sbx", ".qix", ".qmd", ".shp.xml"),
    ".gpkg": (".gpkg-wal", ".gpkg-shm", ".gpkg-journal"),
}
"""Files that belong to a file with such a suffix; those of a replaced file would spoil the new one."""

_LONG_NAME = 40
_LONGEST_NAME_BYTES = 240
"""File systems end at 255, and what SQLite and GDAL write beside a file has longer names."""

OLD = ".old"
"""Where the files of a replaced one are while the new ones move in, inside the hidden folder."""


@contextmanager
def whole_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a path to write to, and move what was written there to `path` if the block succeeds.

    The temporary path has the same file name, in a hidden folder beside `path` that is always
    removed. Everything is fsynced before the move. Raises InputError when `path` exists and
    `overwrite` is false, before anything is written, or when its folder cannot be written to.
    """
    refuse_existing(path, overwrite=overwrite)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_hidden(path), suffix=".part", dir=path.parent))
    except OSError as exc:
        raise InputError(
            f"{path}: cannot write in the folder {path.parent}: {exc.strerror}; "
            "create it, or name another output"
        ) from exc
    try:
        yield folder / path.name
        if not (folder / path.name).exists():
            raise RunError(f"{path} was not written: nothing of that name came about")
        # Another program may have made the file meanwhile.
        refuse_existing(path, overwrite=overwrite)
        try:
            _move_into_place(folder, path)
        except OSError as exc:
            raise InputError(
                f"{path}: cannot be put in place: {exc}; close it in other programs and try again"
            ) from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _hidden(path: Path) -> str:
    """How the hidden folders of a file begin, which no other file shares, however alike their long names."""
    name = path.name
    if len(name) > _LONG_NAME:
        name = f"{name[:_LONG_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f".{name}."


def parts_of(path: Path) -> list[Path]:
    """Hidden folders in which processes write `path`, or wrote it when they were killed."""
    return list(path.parent.glob(f"{escape(_hidden(path))}*.part"))


def folders_below(directory: Path, pattern: str) -> list[Path]:
    """Folders of such names, however deep; those that others remove meanwhile do no harm, as in `rglob`."""
    walked = os.walk(directory)
    return [Path(parent, name) for parent, names, _ in walked for name in names if fnmatch(name, pattern)]


def remove_parts(folders: Iterable[Path], before: float) -> None:
    """Remove those that nobody has touched since a time of day; younger ones may be somebody's work."""
    for folder in folders:
        with suppress(FileNotFoundError):
            if folder.stat().st_mtime < before:
                shutil.rmtree(folder, ignore_errors=True)


def refuse_odd_name(path: Path) -> None:
    """Raise InputError for a path that pyogrio would take for another file: ; and ! part its URLs."""
    odd = sorted(set(";!") & set(str(path)))
    if odd:
        raise InputError(
            f"{path}: vector files cannot have {' or '.join(odd)} in their name or a folder's; rename it"
        )


def is_text(name: str) -> bool:
    """False for names of files that are not UTF-8, which neither GDAL nor SQLite opens."""
    return name == name.encode(errors="replace").decode()


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise InputError when `path` exists and may not be replaced, or could not be written as it is named."""
    if len(os.fsencode(path.name)) > _LONGEST_NAME_BYTES:
        raise InputError(f"{path}: the name is longer than {_LONGEST_NAME_BYTES} bytes; choose a shorter one")
    if not is_text(str(path)):
        raise InputError(f"{path}: names must be UTF-8; choose another name, or rename the folder")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file to write")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; choose another name, or replace it with --overwrite")


def refuse_inputs(out: Path, inputs: Iterable[Path | str | None]) -> None:
    """Raise InputError when `out` is one of the files that it is made from, by whatever name."""
    for file in inputs:
        if file is not None and _is_same(out, file):
            raise InputError(f"{out} is read to make the output, and would be replaced; name another output")


def _is_same(path: Path, other: Path | str) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        # one is not there, or is none of the system's files, as what lies on a server
        return False


def _move_into_place(folder: Path, path: Path) -> None:
    """Move what was written in `folder` to where `path` is, and put the old files back where that fails.

    One file replaces another in one step. Of several (a shapefile's) the old ones first go into a
    folder beside the new ones and the file that is opened goes first and comes last: parts of both are
    never seen together, and a process killed in between leaves all of them in the hidden folder.
    """
    written = sorted(folder.iterdir())
    for file in written:
        _fsync(file)
    replaced = [path.with_suffix(suffix) for suffix in COMPANIONS.get(path.suffix.lower(), ())]
    if len(written) > 1:
        replaced.insert(0, path)
    old = folder / OLD
    old.mkdir()
    try:
        _move([file for file in replaced if file.exists()], old)
        _move(sorted(written, key=lambda file: file.name == path.name), path.parent)
    except BaseException:
        # the file that is opened comes last: with it, all are in place
        if not (folder / path.name).exists():
            raise
        for file in written:
            if not file.exists():
                path.with_name(file.name).unlink(missing_ok=True)
        _move(sorted(old.iterdir(), key=lambda file: file.name == path.name), path.parent)
        raise
    _fsync(path.parent)


def _move(files: Iterable[Path], folder: Path) -> None:
    for file in files:
        file.replace(folder / file.name)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

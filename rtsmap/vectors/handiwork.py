"""What people have put into a map that is about to be replaced: carried over, or kept beside the new one."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pyogrio
import pyproj
import shapely

from rtsmap.atomic import whole_file
from rtsmap.errors import InputError
from rtsmap.vectors.edits import flat_and_valid, made_by_people
from rtsmap.vectors.labels import MAP_LAYER, look_first
from rtsmap.vectors.verdicts import COMMENT_COLUMN, REVIEW_COLUMN, Row, write_verdicts
from rtsmap.wording import count_of

_GEOPACKAGE = b"SQLite format 3\0"
_OF_SQLITE = ("sqlite_", "rtree_")
_UNREADABLE = (
    InputError,
    sqlite3.Error,
    pyogrio.errors.DataSourceError,
    pyogrio.errors.DataLayerError,
    pyproj.exceptions.CRSError,
    shapely.errors.GEOSException,
    AttributeError,
    KeyError,
    ValueError,
)
"""What a file raises that is damaged, or no map any more."""

Written = tuple[str | None, str | None]
"""Review and comment."""


def keep_handiwork(old: Path, new: Path, *, carry: bool, columns_of_maps: Collection[str]) -> tuple[str, ...]:
    """Save what people have put into the GeoPackage `old` before the map in the file `new` takes its place.

    If `carry`, reviews go over to footprints of the same id that have none. Where anything else would be
    lost (reviews of footprints that are gone, outlines drawn or changed, rows deleted, columns, layers,
    styles), a copy of the old file is kept beside it. Says so in sentences; none where nothing was done.
    """
    if not _is_geopackage(old):
        return ()
    notes = []
    try:
        went_over, lost = _carry_reviews(old, new, carry=carry)
        if went_over:
            notes.append(f"{old}: {count_of(went_over, 'review')} of the map that was replaced went over")
        lost += [*_lost_outlines(old, new), *_lost_tables(old, new, columns_of_maps)]
    except _UNREADABLE as exc:
        lost = [f"something that cannot be read ({exc})"]
    if lost:
        kept = _copy_beside(old)
        notes.append(
            f"{old}: the map that was replaced had {'; '.join(lost)}, which this one has not; it is kept as "
            f"{kept.name}"
        )
    return tuple(notes)


def _is_geopackage(path: Path) -> bool:
    """Also of one whose tables are damaged."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(_GEOPACKAGE)) == _GEOPACKAGE


def _carry_reviews(old: Path, new: Path, *, carry: bool) -> tuple[int, list[str]]:
    """How many reviews went over, and which are lost."""
    given = {key: written for key, written, _ in _reviews_in(old) if any(written)}
    if not given:
        return 0, []
    there = {key: (written, row) for key, written, row in _reviews_in(new)}
    gone = sum(key not in there for key in given)
    common = [(written, *there[key]) for key, written in given.items() if key in there]
    others = sum(now != was and not (carry and not any(now)) for was, now, _ in common)
    rows: list[Row] = [(*was, row) for was, now, row in common if carry and not any(now)]
    if rows:
        with closing(sqlite3.connect(new)) as database, database:
            write_verdicts(database, old, MAP_LAYER, rows)
    lost = []
    if gone:
        lost.append(f"{count_of(gone, 'review')} of footprints that are gone")
    if others:
        lost.append(f"{count_of(others, 'review')} with another verdict or comment")
    return len(rows), lost


def _reviews_in(path: Path) -> Iterator[tuple[Any, Written, int]]:
    """Id, review and comment of each footprint, and its rowid; the first of several with one id."""
    with _opened(path) as database:
        columns = {name.lower() for name in _columns(database, MAP_LAYER)}
        if "id" not in columns:
            return
        review, comment = (
            _quoted(name) if name in columns else "NULL" for name in (REVIEW_COLUMN, COMMENT_COLUMN)
        )
        query = f"SELECT id, {review}, {comment}, rowid FROM {_quoted(MAP_LAYER)} ORDER BY rowid DESC"  # noqa: S608
        rows = database.execute(query).fetchall()
    for key, said, remark, row in rows:
        if key is not None:
            yield key, (_text(said), _text(remark)), row


def _text(value: Any) -> str | None:
    """The text of a value, None for a blank one."""
    return (str(value).strip() or None) if value is not None else None


def _lost_outlines(old: Path, new: Path) -> list[str]:
    """Outlines that people have made and the new map does not have, and how many were deleted."""
    with _opened(old) as database:
        if not _columns(database, MAP_LAYER):
            return []
        (stored,) = database.execute(f"SELECT count(*) FROM {_quoted(MAP_LAYER)}").fetchone()  # noqa: S608
        # rows are numbered as they are written, and no number is given twice
        counted = "SELECT seq FROM sqlite_sequence WHERE name = ?"
        (ever,) = database.execute(counted, (MAP_LAYER,)).fetchone() or (stored,)
    frame = _footprints(old)
    people = _outlines(frame.geometry[made_by_people(frame)])
    lost = []
    if len(people):
        there = set(shapely.to_wkb(_outlines(_footprints(new).geometry)).tolist())
        drawn = sum(wkb not in there for wkb in shapely.to_wkb(people).tolist())
        if drawn:
            lost.append(f"{count_of(drawn, 'outline')} drawn or changed by hand")
    if ever > stored:
        lost.append(f"{count_of(ever - stored, 'row')} deleted by hand")
    return lost


def _footprints(path: Path) -> geopandas.GeoDataFrame:
    look_first(path, MAP_LAYER)
    frame = pyogrio.read_dataframe(path, layer=MAP_LAYER)
    frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)].reset_index(drop=True)
    frame.geometry = flat_and_valid(frame.geometry.to_numpy())
    for name in ("id", "score"):
        if name not in frame:
            frame[name] = None
    return frame


def _outlines(outlines: geopandas.GeoSeries) -> npt.NDArray[Any]:
    """As they compare, whatever their corner is that comes first."""
    parts = [shapely.MultiPolygon(shapely.get_parts(one).tolist()) for one in outlines]
    return np.asarray(shapely.normalize(np.array(parts, dtype=object)))


def _lost_tables(old: Path, new: Path, columns_of_maps: Collection[str]) -> list[str]:
    """Columns with content, layers and other tables, and styles, that the new map does not have."""
    own = {*columns_of_maps, REVIEW_COLUMN, COMMENT_COLUMN}
    with _opened(old) as before, _opened(new) as after:
        was, now = _tables(before), _tables(after)
        columns = [
            name
            for table in was.keys() & now.keys()
            for name in was[table].keys() - now[table].keys()
            if name.lower() not in own and not was[table][name] and _has_content(before, table, name)
        ]
        tables = [table for table in was.keys() - now.keys() if _has_content(before, table)]
        styles = _styles(before) - _styles(after)
    named = {"column": columns, "layer": tables, "style": styles}
    return [
        f"the {kind}{'s' * (len(names) > 1)} {', '.join(sorted(names))}"
        for kind, names in named.items()
        if names
    ]


def _tables(database: sqlite3.Connection) -> dict[str, dict[str, bool]]:
    """Columns by table; True for those that are not attributes: keys and geometries."""
    found = database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
    geometries = database.execute("SELECT table_name, column_name FROM gpkg_geometry_columns").fetchall()
    return {
        name: {
            column: key > 0 or (name, column) in geometries
            for column, key in _columns(database, name).items()
        }
        for (name,) in found
        if not name.startswith(_OF_SQLITE)
    }


def _columns(database: sqlite3.Connection, table: str) -> Mapping[str, int]:
    """By name of each column, its place in the key, or 0; nothing where there is no such table."""
    return {row[1]: row[5] for row in database.execute(f"PRAGMA table_info({_quoted(table)})")}


def _has_content(database: sqlite3.Connection, table: str, column: str | None = None) -> bool:
    where = "" if column is None else f" WHERE {_quoted(column)} IS NOT NULL"
    query = f"SELECT 1 FROM {_quoted(table)}{where} LIMIT 1"  # noqa: S608
    return database.execute(query).fetchone() is not None


def _styles(database: sqlite3.Connection) -> set[str]:
    if not {"f_table_name", "styleName"} <= _columns(database, "layer_styles").keys():
        return set()
    return {
        f"{table} {name}"
        for table, name in database.execute("SELECT f_table_name, styleName FROM layer_styles")
    }


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A database to read from."""
    with closing(sqlite3.connect(path)) as database:
        database.text_factory = lambda text: text.decode(errors="replace")
        yield database


def _copy_beside(old: Path) -> Path:
    """Copy a file, with what is still in its journal, to a name beside it that is free."""
    names = (f"{old.stem}.replaced{f'-{number}' if number > 1 else ''}{old.suffix}" for number in count(1))
    kept = next(path for path in map(old.with_name, names) if not path.exists())
    with whole_file(kept) as temporary:
        try:
            with closing(sqlite3.connect(old)) as source, closing(sqlite3.connect(temporary)) as target:
                # a backup waits for ever where another program has locked the file; this fails after seconds
                source.execute("SELECT count(*) FROM sqlite_master").fetchone()
                source.backup(target)
                target.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error:
            _copy_bytes(old, temporary)
        with suppress(OSError):
            shutil.copymode(old, temporary)
    return kept


def _copy_bytes(old: Path, new: Path) -> None:
    try:
        shutil.copyfile(old, new)
    except OSError as exc:
        raise InputError(
            f"{old}: holds what people have put there, and no copy can be kept beside it: {exc}; "
            "name another output"
        ) from exc

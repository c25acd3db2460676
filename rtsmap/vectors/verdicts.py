"""What a review says of footprints: the two columns that it adds to a map, and how they are written."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rtsmap.errors import InputError
from rtsmap.wording import count_of

REVIEW_COLUMN, COMMENT_COLUMN = "review", "review_comment"
"""Columns of a footprint that a review adds."""

ACCEPTED, REJECTED = "accepted", "rejected"

Row = tuple[str | None, str | None, int]
"""Review, comment, and the rowid of the footprint that they are of."""

_NAMED = 3
"""Of values that are no verdicts, so many are named."""

_GEOMETRY_FUNCTIONS = ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY")


def plain_verdicts(values: Iterable[Any]) -> list[str | None]:
    """Verdicts as people type them, in small letters and without blanks; None where there is nothing.

    What is neither accepted nor rejected stays as it is.
    """
    texts = ("" if pd.isna(value) else str(value).strip() for value in values)
    return [text.lower() if text.lower() in (ACCEPTED, REJECTED) else text or None for text in texts]


def notes_on_verdicts(values: Iterable[Any]) -> tuple[str, ...]:
    """A note on values that are no verdicts, if there are any."""
    strange = Counter(one for one in plain_verdicts(values) if one not in (ACCEPTED, REJECTED, None))
    if not strange:
        return ()
    named = ", ".join(f"'{str(one)[:40]}'" for one, _ in strange.most_common(_NAMED))
    more = ", ..." if len(strange) > _NAMED else ""
    count = count_of(strange.total(), "footprint")
    which = f"'{REVIEW_COLUMN}' of {count} is neither '{ACCEPTED}' nor '{REJECTED}'"
    return (f"{which} ({named}{more}); they count as undecided",)


def column_of(names: Iterable[str], wanted: str) -> str | None:
    """The column of this name, in small or large letters, between which SQLite knows no difference."""
    return next((name for name in names if str(name).lower() == wanted), None)


def write_verdicts(database: sqlite3.Connection, path: Path, layer: str, rows: Sequence[Row]) -> int:
    """Write reviews and comments into a layer of a GeoPackage; gives how many footprints got theirs.

    Raises InputError for columns of that name that hold no texts, by the name `path`.
    """
    for name in _GEOMETRY_FUNCTIONS:
        # the triggers of the spatial index name them, though no geometry changes here
        database.create_function(name, 1, _unused(name))
    columns = {row[1].lower(): row[2] for row in database.execute(f'PRAGMA table_info("{layer}")')}
    for column in (REVIEW_COLUMN, COMMENT_COLUMN):
        if not columns.get(column, "TEXT").upper().startswith("TEXT"):
            raise InputError(
                f"{path}: its column '{column}' is one of {columns[column]}, and a review is text; "
                "give it another name"
            )
        if column not in columns:
            database.execute(f'ALTER TABLE "{layer}" ADD COLUMN "{column}" TEXT')
    columns_set = f'"{REVIEW_COLUMN}" = ?, "{COMMENT_COLUMN}" = ?'
    update = f'UPDATE "{layer}" SET {columns_set} WHERE rowid = ?'  # noqa: S608
    return database.executemany(update, rows).rowcount if rows else 0


def _unused(name: str) -> Callable[[Any], int]:
    def fail(_: Any) -> int:
        raise AssertionError(f"{name} was called, though no geometry changes")

    return fail

"""What a review says of footprints: the two columns that it adds to a map, and how they are written."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

REVIEW_COLUMN, COMMENT_COLUMN = "review", "review_comment"
"""Columns of a footprint that a review adds."""

ACCEPTED, REJECTED = "accepted", "rejected"

Row = tuple[str | None, str | None, int]
"""Review, comment, and the rowid of the footprint that they are of."""

_GEOMETRY_FUNCTIONS = ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY")


def write_verdicts(database: sqlite3.Connection, layer: str, rows: Sequence[Row]) -> int:
    """Write reviews and comments into a layer of a GeoPackage; gives how many footprints got theirs."""
    for name in _GEOMETRY_FUNCTIONS:
        # the triggers of the spatial index name them, though no geometry changes here
        database.create_function(name, 1, _unused(name))
    columns = {row[1] for row in database.execute(f'PRAGMA table_info("{layer}")')}
    for column in (REVIEW_COLUMN, COMMENT_COLUMN):
        if column not in columns:
            database.execute(f'ALTER TABLE "{layer}" ADD COLUMN "{column}" TEXT')
    columns_set = f'"{REVIEW_COLUMN}" = ?, "{COMMENT_COLUMN}" = ?'
    update = f'UPDATE "{layer}" SET {columns_set} WHERE rowid = ?'  # noqa: S608
    return database.executemany(update, rows).rowcount if rows else 0


def _unused(name: str) -> Callable[[Any], int]:
    def fail(_: Any) -> int:
        raise AssertionError(f"{name} was called, though no geometry changes")

    return fail

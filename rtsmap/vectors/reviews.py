"""What people think of footprints, written back into the map."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from rtsmap.atomic import whole_file
from rtsmap.errors import InputError, RunError, why
from rtsmap.vectors.edits import distinct_ids
from rtsmap.vectors.geopackage import FOOTPRINT_LAYER, read_map, read_run_record
from rtsmap.vectors.verdicts import (
    ACCEPTED,
    COMMENT_COLUMN,
    REJECTED,
    REVIEW_COLUMN,
    notes_on_verdicts,
    write_verdicts,
)

FORMAT = "rtsmap-review-1"
MAX_BYTES = 64 << 20
MAX_COMMENT = 10_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """`review` is 'accepted', 'rejected' or None (undecided); `comment` may be empty."""

    review: str | None
    comment: str


@dataclass(frozen=True, slots=True)
class Applied:
    """How many footprints of a map stand where after a review, and notes for people."""

    accepted: int
    rejected: int
    undecided: int
    commented: int
    notes: tuple[str, ...]


def read_review(path: Path | str) -> tuple[dict[str, Verdict], str | None]:
    """Verdicts by footprint, and the plan of the run whose map was reviewed; InputError for other files."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes are no review; wanted what the page saved")
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        if isinstance(exc, InputError):
            raise
        raise InputError(f"{path}: cannot be read as a review: {why(exc)}") from exc
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"{path}: is no review; wanted the file that a page of `rtsmap report` saved")
    rows = document.get("reviews")
    if not isinstance(rows, list):
        raise InputError(f"{path}: wanted a list `reviews`, got {type(rows).__name__}")
    verdicts: dict[str, Verdict] = {}
    for number, row in enumerate(rows):
        identity, verdict = _verdict(row, f"{path}: review {number}")
        if identity in verdicts:
            raise InputError(f"{path}: review {number}: a second one of footprint {identity}")
        verdicts[identity] = verdict
    plan = document.get("plan_sha256")
    return verdicts, plan if isinstance(plan, str) else None


def _verdict(row: Any, where: str) -> tuple[str, Verdict]:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise InputError(f"{where}: wanted id, review and comment, got {str(row)[:80]}")
    review, comment = row.get("review"), row.get("comment", "")
    if review not in (ACCEPTED, REJECTED, None):
        raise InputError(
            f"{where}: review is {str(review)[:80]!r}; wanted '{ACCEPTED}', '{REJECTED}' or null"
        )
    if not isinstance(comment, str) or len(comment) > MAX_COMMENT:
        raise InputError(f"{where}: wanted a comment of at most {MAX_COMMENT} characters")
    return row["id"], Verdict(review, comment.strip())


def apply_review(gpkg: Path | str, review: Path | str) -> Applied:
    """Write a review into the columns `review` and `review_comment` of a map; whole or not at all.

    Footprints that the review does not name keep what they have, and everything else in the file stays as
    it is, also layers and styles that were added to it. Raises InputError for unknown footprints.
    """
    # a link would be replaced by the reviewed map, and the map itself would stay as it was
    gpkg = Path(gpkg).resolve()
    verdicts, plan = read_review(review)
    known = set(read_map(gpkg)["id"])
    unknown = sorted(verdicts.keys() - known)
    if unknown:
        raise InputError(
            f"{review}: {len(unknown)} of {len(verdicts)} footprints are not in {gpkg}, the first is "
            f"'{unknown[0][:80]}'; nothing was written. Review the report of this map"
        )
    with whole_file(gpkg, overwrite=True) as temporary:
        try:
            _write(gpkg, temporary, verdicts)
            # not every file system has modes
            with suppress(OSError):
                shutil.copymode(gpkg, temporary)
        except sqlite3.Error as exc:
            raise InputError(f"{gpkg}: the review cannot be written: {exc}") from exc
    after = read_map(gpkg)
    counts = Counter(after[REVIEW_COLUMN].dropna())
    notes = [f"{gpkg}: {note}" for note in notes_on_verdicts(after[REVIEW_COLUMN])]
    if plan is not None and plan != read_run_record(gpkg).get("plan_sha256"):
        notes.append(
            f"{review}: is of another run over the same ground; footprints were matched by their ids"
        )
    return Applied(
        counts[ACCEPTED],
        counts[REJECTED],
        len(after) - counts[ACCEPTED] - counts[REJECTED],
        int(after[COMMENT_COLUMN].notna().sum()),
        tuple(notes),
    )


def _write(source: Path, target: Path, verdicts: Mapping[str, Verdict]) -> None:
    """Copy a map, what is still in its journal included, and update the copy."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
        new.execute("PRAGMA journal_mode = DELETE")
        with new:
            # in the order in which `read_map` reads them, so that copies of an id are told apart as there
            stored = new.execute(f'SELECT id, rowid FROM "{FOOTPRINT_LAYER}" ORDER BY rowid').fetchall()  # noqa: S608
            distinct = distinct_ids(pd.Series([key for key, _ in stored], dtype="object"))
            places = {key: row for key, (_, row) in zip(distinct, stored, strict=True)}
            rows = [(one.review, one.comment or None, places.get(key, -1)) for key, one in verdicts.items()]
            changed = write_verdicts(new, source, FOOTPRINT_LAYER, rows)
            now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            stamp = "UPDATE gpkg_contents SET last_change = ? WHERE table_name = ?"
            new.execute(stamp, (now, FOOTPRINT_LAYER))
        if changed != len(rows):
            raise RunError(f"{source}: {changed} footprints would have changed, wanted {len(rows)}")

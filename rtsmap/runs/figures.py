"""Figures of an evaluation on disk, as .json or .csv."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rtsmap.atomic import refuse_existing, refuse_inputs, whole_file
from rtsmap.errors import InputError, OptionsError
from rtsmap.instances.map_scores import Figure

PICTURES = (".png", ".svg", ".pdf")
COLUMNS = ("figure", "value", "low", "high")


def write_figures(
    path: Path, figures: Mapping[str, Figure], facts: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Write figures with their 95 % intervals: as .csv, or as .json with `facts` and a .csv beside it.

    A figure of nothing is null in JSON and `nan` in CSV. Raises OptionsError for another suffix and
    InputError when a file exists.
    """
    for each in written_with(path):
        refuse_existing(each, overwrite=overwrite)
    for each in written_with(path):
        _write(each, figures, facts, overwrite=overwrite)


def written_with(path: Path) -> tuple[Path, ...]:
    """The files that `write_figures` writes; raises OptionsError for a suffix other than .json or .csv."""
    if path.suffix not in {".json", ".csv"}:
        raise OptionsError(f"{path}: figures are written as .json or .csv")
    return (path,) if path.suffix == ".csv" else (path, path.with_suffix(".csv"))


def check_outputs(
    *,
    figures: Path | None = None,
    picture: Path | None = None,
    others: Sequence[Path | None] = (),
    inputs: Sequence[Path | None] = (),
    overwrite: bool = False,
) -> None:
    """Raise, before anything is computed, for outputs that cannot be written.

    They exist, are `inputs`, lie in no folder, have a suffix that is unknown, or are asked for twice.
    """
    if picture is not None and picture.suffix not in PICTURES:
        raise OptionsError(f"{picture}: pictures are written as {', '.join(PICTURES)}")
    written = () if figures is None else written_with(figures)
    outputs = [path for path in (*written, picture, *others) if path is not None]
    for path in outputs:
        refuse_existing(path, overwrite=overwrite)
        refuse_inputs(path, inputs)
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; create it first")
    twice = [path for path, times in Counter(path.resolve() for path in outputs).items() if times > 1]
    if twice:
        raise OptionsError(f"{twice[0]} would be written twice; give the outputs different names")


def _write(path: Path, figures: Mapping[str, Figure], facts: Mapping[str, Any], *, overwrite: bool) -> None:
    rows = [
        (name, figure.value, *(figure.interval or (float("nan"), float("nan"))))
        for name, figure in figures.items()
    ]
    with whole_file(path, overwrite=overwrite) as temporary, temporary.open("w", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(rows)
        else:
            table = [dict(zip(COLUMNS, map(_known, row), strict=True)) for row in rows]
            json.dump({**facts, "figures": table}, file, indent=1)


def _known(value: object) -> object:
    return None if value != value else value  # noqa: PLR0124 - NaN, which JSON does not know

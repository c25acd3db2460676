"""Figures of an evaluation on disk, as .json or .csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtsmap.errors import OptionsError
from rtsmap.instances.map_scores import Figure
from rtsmap.vectors.atomic import whole_file

COLUMNS = ("figure", "value", "low", "high")


def write_figures(
    path: Path, figures: Mapping[str, Figure], facts: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Write figures with their 95 % intervals; `facts` stand beside them in JSON.

    A figure of nothing is null in JSON and `nan` in CSV. Raises OptionsError for another suffix and
    InputError when the file exists.
    """
    if path.suffix not in {".json", ".csv"}:
        raise OptionsError(f"{path}: figures are written as .json or .csv")
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

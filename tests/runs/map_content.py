"""What a map says, apart from when it was written: to compare maps with `==`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import shapely

from rtsmap.vectors.geopackage import read_layers


def content(path: Path) -> dict[str, Any]:
    layers = read_layers(path)
    record = {key: value for key, value in layers.run_record.items() if key not in {"finished_utc", "paths"}}
    return {
        "crs": layers.footprints.crs.to_wkt(),
        "footprints": rows(layers.footprints),
        "coverage": rows(layers.coverage),
        "record": record,
    }


def rows(frame: Any, without: tuple[str, ...] = (), digits: int | None = None) -> list[tuple[Any, ...]]:
    """Attributes and normalised geometry, NaN as None so that it equals itself.

    `digits` after the point are compared: means of means differ in the last ones.
    """
    plain = frame.drop(columns=["geometry", *without])
    plain = plain if digits is None else plain.round(digits)
    values = plain.astype(object).where(plain.notna(), None).itertuples(index=False, name=None)
    shapes = shapely.to_wkb(shapely.normalize(frame.geometry.to_numpy()))
    return sorted(((*row, shape) for row, shape in zip(values, shapes, strict=True)), key=repr)

"""Polygons as KML 2.2, coloured by score: what Google Earth opens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import geopandas
import numpy as np
import pandas as pd
import shapely
from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

from rtsmap.vectors.qgis_style import SCORE_COLOURS, SCORE_LIMITS

ID_COLUMN = "rts_id"
"""Of `id`: readers take that name for KML's own."""

_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<kml xmlns="http://www.opengis.net/kml/2.2">\n<Document>\n'
_TAIL = "</Folder>\n</Document>\n</kml>\n"
_INTS = -(2**31), 2**31 - 1
_NOT_IN_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def write_kml(path: Path, frame: geopandas.GeoDataFrame, name: str) -> None:
    """Write polygons in longitude and latitude, none across 180 degrees, with their columns as typed data.

    Where there is a column `score`, it chooses the colour and is the name that is shown. A column `id`
    becomes `id_name`.
    """
    columns = {str(column): frame[column] for column in frame.columns if column != frame.geometry.name}
    name_of_id = id_name(columns)
    columns = {name_of_id if column == "id" else column: values for column, values in columns.items()}
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"{_HEAD}<name>{_text(name)}</name>\n")
        file.writelines(_styles())
        file.writelines(_schema(columns))
        file.write(f"<Folder>\n<name>{_text(name)}</name>\n")  # without one, GDAL sees no layer in no slumps
        file.writelines(_placemarks(frame.geometry.to_numpy(), columns))
        file.write(_TAIL)


def id_name(columns: Iterable[str]) -> str:
    """The name of `id`: `ID_COLUMN`, with a number where people have a column of that name."""
    taken = {column.lower() for column in columns}
    names = chain([ID_COLUMN], (f"{ID_COLUMN}_{number}" for number in count(1)))
    return next(name for name in names if name not in taken)


def _styles() -> Iterator[str]:
    for number, colour in enumerate(SCORE_COLOURS):
        red, green, blue = (int(part) for part in colour.split(","))
        code = f"{blue:02x}{green:02x}{red:02x}"
        line = f"<LineStyle><color>ff{code}</color><width>2</width></LineStyle>"
        fill = f"<PolyStyle><color>50{code}</color></PolyStyle>"
        yield f'<Style id="score{number}">{line}{fill}</Style>\n'


def _schema(columns: Mapping[str, pd.Series]) -> Iterator[str]:
    yield '<Schema name="columns" id="columns">\n'
    for column, values in columns.items():
        yield f"<SimpleField type={quoteattr(_type(values))} name={_attribute(column)}></SimpleField>\n"
    yield "</Schema>\n"


def _type(values: pd.Series) -> str:
    if is_bool_dtype(values):
        return "bool"
    if is_integer_dtype(values):
        # readers cut what has more than 32 bits
        return "int" if values.between(*_INTS).all() else "string"
    return "double" if is_float_dtype(values) else "string"


def _placemarks(shapes: Sequence[BaseGeometry], columns: Mapping[str, pd.Series]) -> Iterator[str]:
    for row, (shape, *values) in enumerate(zip(shapes, *columns.values(), strict=True)):
        data = dict(zip(columns, values, strict=True))
        yield f"<Placemark>\n<name>{_title(data, row)}</name>\n{_style_url(data)}"
        yield '<ExtendedData><SchemaData schemaUrl="#columns">\n'
        for column, value in data.items():
            if not pd.isna(value):
                yield f"<SimpleData name={_attribute(column)}>{_value(value)}</SimpleData>\n"
        yield f"</SchemaData></ExtendedData>\n{_geometry(shape)}\n</Placemark>\n"


def _title(data: Mapping[str, Any], row: int) -> str:
    score = data.get("score")
    return str(row + 1) if pd.isna(score) else f"score {score:.2f}"


def _style_url(data: Mapping[str, Any]) -> str:
    score = data.get("score")
    if score is None or pd.isna(score):
        return ""
    limits = list(pairwise(SCORE_LIMITS))
    number = next((i for i, (_, upper) in enumerate(limits) if score < upper), len(limits) - 1)
    return f"<styleUrl>#score{number}</styleUrl>\n"


def _geometry(shape: BaseGeometry) -> str:
    parts = [_polygon(orient(part)) for part in shapely.get_parts(shape)]
    return parts[0] if len(parts) == 1 else f"<MultiGeometry>{''.join(parts)}</MultiGeometry>"


def _polygon(polygon: Any) -> str:
    holes = "".join(f"<innerBoundaryIs>{_ring(hole)}</innerBoundaryIs>" for hole in polygon.interiors)
    outer = f"<outerBoundaryIs>{_ring(polygon.exterior)}</outerBoundaryIs>"
    return f"<Polygon>{outer}{holes}</Polygon>"


def _ring(ring: BaseGeometry) -> str:
    places = " ".join(f"{lon:.9f},{lat:.9f}" for lon, lat in shapely.get_coordinates(ring))
    return f"<LinearRing><coordinates>{places}</coordinates></LinearRing>"


def _value(value: Any) -> str:
    # GDAL takes the words true and false for 0
    return str(int(value)) if isinstance(value, bool | np.bool_) else _text(str(value))


def _text(value: str) -> str:
    return escape(_NOT_IN_XML.sub(" ", value))


def _attribute(value: str) -> str:
    return quoteattr(_NOT_IN_XML.sub(" ", value))

"""How a map looks when QGIS opens it: QML for the layers, and the rows of `layer_styles`.

The table is QGIS' own convention (QgsOgrUtils::saveStyle): it finds a style by table and geometry
column with an empty schema, and only if the table is registered in gpkg_contents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise
from xml.etree import ElementTree as ET

from rtsmap.instances.coverage import FAILED, LEFT_OUT, MAPPED, NO_DATA

SCORE_LIMITS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
SCORE_COLOURS = ("250,225,100", "254,200,60", "253,174,80", "246,114,60", "222,45,38", "140,0,45")
"""Pale yellow for weak, dark red for sure: in order without colour vision too, and rare in tundra."""


@dataclass(frozen=True, slots=True)
class Fill:
    """A fill of a polygon: colours as "r,g,b,alpha" in 0..255, outline in millimetres."""

    colour: str
    outline: str
    pattern: str = "solid"
    outline_mm: float = 0.4


COVERAGE_FILLS: Mapping[str, Fill] = {
    MAPPED: Fill("0,0,0,0", "90,120,150,255", "no"),
    NO_DATA: Fill("120,120,120,255", "120,120,120,255", "f_diagonal"),
    FAILED: Fill("215,25,28,255", "215,25,28,255", "diagonal_x"),
    LEFT_OUT: Fill("170,170,170,255", "170,170,170,255", "dense7"),
}


def footprint_qml() -> str:
    """Footprints coloured by score, in classes."""
    classes = list(pairwise(SCORE_LIMITS))
    renderer = _renderer("graduatedSymbol", "score", {"graduatedMethod": "GraduatedColor"})
    ranges = ET.SubElement(renderer, "ranges")
    for number, (lower, upper) in enumerate(classes):
        label = f"{lower:.1f} - {upper:.1f}"
        # QGIS gives a value on a limit to the first class that has it; a score of 0.5 is no weak one.
        below = upper if upper == SCORE_LIMITS[-1] else math.nextafter(upper, 0)
        limits = {"lower": repr(lower), "upper": repr(below)}
        ET.SubElement(ranges, "range", limits, symbol=str(number), label=label, render="true")
    _symbols(renderer, [Fill(f"{colour},110", f"{colour},255", outline_mm=0.5) for colour in SCORE_COLOURS])
    return _document(renderer)


def coverage_qml() -> str:
    """Coverage as an outline where mapped, hatched where not."""
    renderer = _renderer("categorizedSymbol", "status")
    categories = ET.SubElement(renderer, "categories")
    for number, status in enumerate(COVERAGE_FILLS):
        ET.SubElement(
            categories,
            "category",
            value=status,
            symbol=str(number),
            label=status,
            type="string",
            render="true",
        )
    _symbols(renderer, list(COVERAGE_FILLS.values()))
    return _document(renderer)


def style_rows(qml_of_layer: Mapping[str, str], geometry_column: str) -> dict[str, list[object]]:
    """Columns of `layer_styles` (its id aside), one row a layer, each the default of its layer."""
    layers = list(qml_of_layer)
    empty: list[object] = [""] * len(layers)
    return {
        "f_table_catalog": empty,
        "f_table_schema": empty,
        "f_table_name": list(layers),
        "f_geometry_column": [geometry_column] * len(layers),
        "styleName": list(layers),
        "styleQML": list(qml_of_layer.values()),
        "styleSLD": empty,
        "useAsDefault": [True] * len(layers),
        "description": ["Default style of rtsmap"] * len(layers),
        "owner": empty,
        "ui": empty,
        # Any style that a user saves later is younger, and QGIS takes the youngest.
        "update_time": [datetime(2000, 1, 1, tzinfo=timezone.utc)] * len(layers),
    }


def _renderer(kind: str, column: str, more: Mapping[str, str] | None = None) -> ET.Element:
    fixed = {"type": kind, "attr": column, "symbollevels": "0", "enableorderby": "0"}
    return ET.Element("renderer-v2", {**fixed, **(more or {})})


def _symbols(renderer: ET.Element, fills: Sequence[Fill]) -> None:
    symbols = ET.SubElement(renderer, "symbols")
    for number, fill in enumerate(fills):
        symbol = ET.SubElement(
            symbols, "symbol", name=str(number), type="fill", alpha="1", clip_to_extent="1"
        )
        layer = ET.SubElement(symbol, "layer", attrib={"class": "SimpleFill"}, enabled="1")
        properties = {
            "color": fill.colour,
            "style": fill.pattern,
            "outline_color": fill.outline,
            "outline_style": "solid",
            "outline_width": str(fill.outline_mm),
            "outline_width_unit": "MM",
            "joinstyle": "bevel",
        }
        options = ET.SubElement(layer, "Option", type="Map")
        for name, value in properties.items():
            ET.SubElement(options, "Option", name=name, value=value, type="QString")
        for name, value in properties.items():  # what QGIS before 3.22 reads
            ET.SubElement(layer, "prop", k=name, v=value)


def _document(renderer: ET.Element) -> str:
    root = ET.Element("qgis", version="3.22.0", styleCategories="Symbology")
    root.append(renderer)
    for name in ("blendMode", "featureBlendMode"):
        ET.SubElement(root, name).text = "0"
    ET.SubElement(root, "layerGeometryType").text = "2"
    ET.indent(root)
    return "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + ET.tostring(root, "unicode")

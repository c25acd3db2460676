"""Many scenes, named by files, folders, patterns or tables, each with the DEM tiles that it overlaps."""

from __future__ import annotations

import csv
import glob
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import shapely
from pyproj import Transformer

from rtsmap.errors import InputError, OptionsError, RtsmapError, why
from rtsmap.rasters.acquisition import iso_date
from rtsmap.rasters.mosaic import find_files
from rtsmap.rasters.opening import local_path, with_path
from rtsmap.rasters.sources import probe

RASTERS = {".tif", ".tiff", ".vrt", ".jp2", ".img"}
_TABLES = {".csv", ".parquet", ".geoparquet", ".json", ".geojson"}
_SCENE = ("scene", "path", "file", "image", "href")
_DEM = ("dem", "elevation")
_DATE = ("date", "acquired", "datetime")
_ID = ("id", "scene_id", "name")
_BANDS = ("bands",)
_FEW_TILES = 16
_MARGIN_DEG = 0.05


@dataclass(frozen=True, slots=True)
class SceneItem:
    """One scene to map: `name` is that of its folder, unlike all others; None is what nobody said.

    `bands` are numbers of its bands as users write them, red=3,green=2,blue=1. `dem_may_miss`: its DEM files
    are those of all scenes, and need not reach this one. `is_namesake`: its file is called as another's is.
    """

    name: str
    scene: str
    dem: tuple[str, ...] = ()
    date: str | None = None
    scene_id: str | None = None
    bands: str | None = None
    dem_may_miss: bool = False
    is_namesake: bool = False


def is_one_file(given: Sequence[Path | str]) -> bool:
    """True for one raster, False for all that may be several scenes."""
    path = Path(given[0])
    is_list = path.is_dir() or _is_pattern(str(given[0])) or path.suffix.lower() in _TABLES
    return len(given) == 1 and not is_list


def read_scenes(given: Sequence[Path | str], dem: Sequence[str] | None = None) -> list[SceneItem]:
    """Scenes that are named by rasters, folders, patterns, or tables; a table may bring DEMs of its own.

    A table is CSV, (Geo)Parquet or a STAC item collection with a column or asset `scene`, and if wanted
    `dem`, `date`, `id` and `bands`. Paths in it are relative to it. Raises InputError for what names nothing.
    """
    items = [item for one in given for item in _items(str(one))]
    if not items:
        raise InputError(f"no scenes are named by {', '.join(map(str, given))}")
    unique = list({(item.scene, item.dem): item for item in items}.values())
    named: dict[str, SceneItem] = {}
    numbers: dict[str, Iterator[int]] = {}
    for item in unique:
        name = plain = re.sub(r"[^\w.-]+", "_", item.name).strip("._") or "scene"
        # folders that differ by capitals only are one on some disks
        while name.lower() in named:
            name = f"{plain}-{next(numbers.setdefault(plain, count(2)))}"
        named[name.lower()] = replace(item, name=name, is_namesake=name != plain)
    return with_dems(list(named.values()), dem or ())


def with_dems(items: Sequence[SceneItem], dem: Sequence[str]) -> list[SceneItem]:
    """Scenes without an own DEM get those of the files that lie near them; few files all scenes get."""
    if not dem:
        return list(items)
    files = find_files(list(dem))
    if len(files) <= _FEW_TILES:
        near = {item: tuple(files) for item in items}
    else:
        tree = shapely.STRtree([_place(name) for name in files])
        near = {item: _near(item, tree, files) for item in items}
    return [item if item.dem else replace(item, dem=near[item], dem_may_miss=True) for item in items]


def _near(item: SceneItem, tree: shapely.STRtree, files: Sequence[str]) -> tuple[str, ...]:
    try:
        place = _place(item.scene)
    except RtsmapError:
        # planning tells what is wrong with it
        return ()
    return tuple(files[i] for i in sorted(tree.query(place.buffer(_MARGIN_DEG))))


def _place(path: str) -> Any:
    """Where a raster lies, in degrees; a box around it, all around the Earth across the antimeridian."""
    geobox = probe(path).geobox
    box = geobox.boundingbox
    outline = shapely.segmentize(shapely.box(*box.bbox), max(box.span_x, box.span_y) / 16)
    to_degrees = Transformer.from_crs(geobox.crs.proj, "EPSG:4326", always_xy=True).transform
    degrees = shapely.transform(outline, lambda xy: np.column_stack(to_degrees(*xy.T)))
    west, south, east, north = degrees.bounds
    if west < -180 or east > 180:
        west, east = -180.0, 180.0
    return shapely.box(west, south, east, north)


def _items(name: str) -> Iterator[SceneItem]:
    if not name:
        raise InputError("the name of a scene is empty; is a variable of your shell not set?")
    path = Path(name)
    if path.is_dir():
        rasters = sorted(p for p in path.iterdir() if p.suffix.lower() in RASTERS)
        if not rasters:
            raise InputError(
                f"{name}: a folder without rasters ({', '.join(sorted(RASTERS))}); those in folders below it "
                f"are named by a pattern in quotes: '{path / '*' / 'scene.tif'}'"
            )
        yield from (_item_of_file(str(p)) for p in rasters)
    elif _is_pattern(name):
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - a pattern may be absolute
        if not matches:
            raise InputError(f"no file matches the pattern {name}")
        for match in matches:
            yield from _items(match)
    elif path.suffix.lower() in _TABLES:
        yield from _items_of_table(path)
    else:
        yield _item_of_file(name)


def _is_pattern(name: str) -> bool:
    # in an address a ? begins a signature and no pattern
    path = local_path(name)
    return path is not None and not path.exists() and glob.has_magic(name)


def _item_of_file(name: str) -> SceneItem:
    return SceneItem(Path(name).stem, name)


def _items_of_table(path: Path) -> Iterator[SceneItem]:
    try:
        rows = list(_rows(path))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error, pa.ArrowException) as exc:
        raise InputError(
            f"{path}: cannot be read as a table of scenes ({why(exc)}); wanted CSV, GeoParquet or STAC items "
            "with assets"
        ) from exc
    for number, row in enumerate(rows, 1):
        scene = _first(row, _SCENE)
        if not scene:
            raise InputError(
                f"{path}: row {number} names no scene; wanted a column 'scene', there are: "
                f"{', '.join(map(str, row)) or 'none'}"
            )
        when = _first(row, _DATE)
        try:
            date = None if when is None else iso_date(when)
        except OptionsError as exc:
            raise InputError(f"{path}: row {number}: {exc}") from exc
        wanted_id, own_dem = _first(row, _ID), _first(row, _DEM) or ""
        yield SceneItem(
            name=wanted_id or Path(scene).stem,
            scene=_beside(path, scene),
            dem=tuple(_beside(path, part.strip()) for part in own_dem.split(";") if part.strip()),
            date=date,
            scene_id=wanted_id,
            bands=_first(row, _BANDS),
        )


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as stream:
            header = stream.readline()
            stream.seek(0)
            # where a comma marks decimals, spreadsheets part columns by semicolons
            return list(csv.DictReader(stream, delimiter=max(",;\t", key=header.count)))
    if suffix in {".parquet", ".geoparquet"}:
        table = pyarrow.parquet.read_table(path)
        plain = [field.name for field in table.schema if not pa.types.is_binary(field.type)]
        rows: list[dict[str, Any]] = table.select(plain).to_pylist()
        return rows
    features = json.loads(path.read_text(encoding="utf-8"))["features"]
    return [_row_of_item(feature) for feature in features]


def _row_of_item(feature: Mapping[str, Any]) -> dict[str, Any]:
    """A STAC item as a row: assets by their keys, then the first that is an image."""
    assets: Mapping[str, Any] = feature.get("assets") or {}
    hrefs = {key.lower(): str(asset["href"]) for key, asset in assets.items()}
    dem = next((hrefs[key] for key in _DEM if key in hrefs), None)
    wanted = ("scene", "visual", "image", "data")
    scene = next((hrefs[key] for key in wanted if key in hrefs), None)
    others = [href for href in hrefs.values() if Path(href).suffix.lower() in RASTERS and href != dem]
    properties = feature.get("properties") or {}
    return {
        "scene": scene or (others[0] if others else properties.get("scene")),
        "dem": dem or properties.get("dem"),
        "date": properties.get("datetime") or properties.get("start_datetime") or properties.get("date"),
        "id": feature.get("id") or properties.get("id"),
        "bands": properties.get("bands"),
    }


def _first(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of the columns that is there and holds something."""
    known = {str(key).strip().lower(): value for key, value in row.items() if key is not None}
    values = (known.get(name) for name in names)
    found = next((value for value in values if value is not None and str(value).strip()), None)
    return None if found is None else str(found).strip()


def _beside(table: Path, name: str) -> str:
    return with_path(name, table.parent.joinpath)

"""Inputs looked at before work starts: what stands in the way, and what is to be doubted.

Files are first opened in a child process (`rtsmap.sandbox`), which also takes a sample of their values.
What is certain is a problem; what is only likely is a note, for the user to judge.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odc.geo.geobox import GeoBox

from rtsmap import sandbox
from rtsmap.errors import GridMismatchError, InputError
from rtsmap.rasters import sources
from rtsmap.rasters.bands import InputSpec
from rtsmap.rasters.elevation import HIGHEST_M, LOWEST_M, metres_per_unit
from rtsmap.rasters.grids import covering_window
from rtsmap.rasters.mosaic import DemFiles, find_files, open_elevation
from rtsmap.rasters.opening import REMOTE_PAUSES_S, is_remote
from rtsmap.rasters.sources import RasterInfo
from rtsmap.rasters.spectral import BandFiles, scene_bands

_NO_ELEVATION = re.compile(
    r"slope|aspect|hill.?shad|shaded|ndvi|ndwi|sigma0|gamma0|beta0|backscatter|curvature|rough|"
    r"\btp?ri\b|\btpi\b|\bred\b|\bgreen\b|\bblue\b|\bnir\b|^class",
    re.IGNORECASE,
)
_FOOT_M = 0.3048
_ABSURD = 1e7
_MARKS_OF_NO_DATA = {-9999.0, -32768.0, -32767.0, -99999.0}
_MARKS_IN_HEIGHTS = {-999.0, *_MARKS_OF_NO_DATA}
_MOST_HALF_TRANSPARENT, _MOST_ALPHAS = 0.5, 16
_FEWEST_WHITE_CORNERS = 2
_MANY_FILES = 32
_FIRST_LOOK = "rtsmap.rasters.first_look"
_LOOK, _OPEN = f"{_FIRST_LOOK}:look", f"{_FIRST_LOOK}:open_each"


def get_ready() -> None:
    """Have the child process that looks at files get ready while the caller does something else."""
    sandbox.start(_FIRST_LOOK)


class Problems:
    """Collects what is wrong with several inputs, so that the user hears of all of it at once."""

    def __init__(self) -> None:
        self.found: list[InputError] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep an InputError of the block for later."""
        try:
            yield
        except InputError as exc:
            self.found.append(exc)

    def add(self, sentence: str) -> None:
        """Keep a problem that was found otherwise."""
        self.found.append(InputError(sentence))

    def raise_any(self) -> None:
        """Raise the one problem as it is, or several as one InputError."""
        distinct = list({str(exc): exc for exc in self.found}.values())
        if len(distinct) == 1:
            raise distinct[0]
        if distinct:
            listed = "".join(f"\n  {number}. {exc}" for number, exc in enumerate(distinct, 1))
            raise InputError(f"{len(distinct)} things stand in the way:{listed}")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a first look found: sentences that forbid to go on, and sentences to be told.

    `safe` is False for a file that must not be opened in this process.
    """

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    safe: bool = True


def check_inputs(
    scene: Path | str,
    dem: DemFiles | None,
    spec: InputSpec,
    bands: Mapping[str, int] | None = None,
    *,
    problems: Problems,
    dem_may_miss: bool = False,
    band_files: BandFiles | None = None,
) -> tuple[str, ...]:
    """Collect what forbids to map a scene with a DEM; gives the doubts about them, in sentences.

    A DEM that does not meet the scene is a mistake, unless `dem_may_miss`: one DEM for many scenes.
    """
    looked = inspect_scene(str(scene))
    for sentence in looked.problems:
        problems.add(sentence)
    notes = list(looked.notes)
    grid = None
    if looked.safe:
        with problems.collected():
            info = sources.probe(scene)
            wanted = [band for m in spec.modalities if not m.is_terrain for band in m.band_names]
            with problems.collected():
                scene_bands(info, wanted, bands, band_files or {})
            grid = sources.run_grid(info, spec.resolution_m).geobox
    if dem is not None:
        notes += _check_elevation(dem, grid, problems, may_miss=dem_may_miss)
    return tuple(notes)


def _check_elevation(
    dem: DemFiles, grid: GeoBox | None, problems: Problems, *, may_miss: bool
) -> tuple[str, ...]:
    with problems.collected():
        names = find_files(dem)
        looked = inspect_elevation(names)
        for sentence in looked.problems:
            problems.add(sentence)
        if looked.safe and grid is None:
            for name in names[:_MANY_FILES]:
                with problems.collected():
                    sources.probe(name)
        elif looked.safe and grid is not None:
            model = open_elevation(dem, grid)
            if not any(meets(grid, tile.geobox) for tile in model.tiles):
                sentence = f"{model.info.path}: the elevation model does not overlap the scene"
                if not may_miss:
                    raise GridMismatchError(
                        f"{sentence}; give one that does, or none to map by imagery alone"
                    )
                return (*looked.notes, f"{sentence}, which is mapped by imagery alone")
        return looked.notes
    return ()


def meets(grid: GeoBox, raster: GeoBox) -> bool:
    """Whether any of a raster lies under the grid."""
    return not covering_window(grid, raster, 0).empty


def inspect_scene(path: str) -> Inspection:
    """Look at an optical scene."""
    return _inspect(path, _judge_scene)


def inspect_elevation(paths: Sequence[str]) -> Inspection:
    """Look at the files of an elevation model; of very many, only whether they can be opened."""
    if len(paths) > _MANY_FILES:
        try:
            sandbox.call(_OPEN, list(paths), limit_s=sandbox.LIMIT_S + 0.2 * len(paths))
        except sandbox.CrashedError as exc:
            return Inspection((f"one of the {len(paths)} files of the elevation model: {exc}",), safe=False)
        return Inspection()
    each = [_inspect(path, _judge_elevation) for path in paths]
    return Inspection(
        tuple(sentence for one in each for sentence in one.problems),
        tuple(sentence for one in each for sentence in one.notes),
        all(one.safe for one in each),
    )


def _look(path: str) -> dict[str, Any]:
    """The first look at a file; of one on a server that delivers nothing, the last of a few."""
    look: dict[str, Any] = sandbox.call(_LOOK, path)
    for pause_s in REMOTE_PAUSES_S if is_remote(path) else ():
        if look["sampled"] or not look["unread"]:
            break
        time.sleep(pause_s)
        look = sandbox.call(_LOOK, path)
    return look


def _inspect(path: str, judge: Any) -> Inspection:
    try:
        look = _look(path)
    except sandbox.CrashedError as exc:
        return Inspection((f"{path}: {exc}; the file is damaged, or not what its name says",), safe=False)
    if look["problems"]:
        return Inspection(tuple(f"{path}: {sentence}" for sentence in look["problems"]), safe=False)
    if look["unread"] and not look["sampled"]:
        why = "its server does not deliver it, try again later" if is_remote(path) else "it is damaged"
        return Inspection((f"{path}: no pixel of it can be read ({look['unread'][0]}); {why}",))
    with suppress(InputError):  # who needs the file says why it cannot be used
        info = sources.probe(path)
        problems, notes = judge(info, look)
        notes += [
            f"a part cannot be read ({sentence}); tiles there will be recorded as failed"
            for sentence in look["unread"][:1]
        ]
        return Inspection(tuple(f"{path}: {s}" for s in problems), tuple(f"{path}: {s}" for s in notes))
    return Inspection()


_Verdict = tuple[list[str], list[str]]


def _judge_scene(info: RasterInfo, look: Mapping[str, Any]) -> _Verdict:
    if look["half_transparent"] > _MOST_HALF_TRANSPARENT and look["alphas"] > _MOST_ALPHAS:
        sentence = (
            f"its band {info.count} is marked as alpha, but {look['half_transparent']:.0%} of the pixels "
            "would be half transparent: GDAL marks the last of four 8-bit bands so, near infrared too. If it "
            f"is no alpha, say so: gdal_edit.py -colorinterp_{info.count} undefined FILE. Then check the "
            "others, for their colours are a guess as well: --bands red=3,green=2,blue=1 where the order "
            "is blue, green, red, near infrared"
        )
        return [sentence], []
    bands = [band for band in look["bands"] if band["low"] is not None]
    zeros = info.fill_is_zero and all(band["low"] == band["high"] == 0 for band in bands)
    if not bands or zeros:
        return _no_data(look)
    absurd = next((b for b in bands if max(abs(b["low"]), abs(b["high"])) > _ABSURD), None)
    if absurd:
        value = max(absurd["low"], absurd["high"], key=abs)
        sentence = (
            f"holds the value {value:g}, which no imagery has; if it stands for no data, declare it: "
            f"gdal_edit.py -a_nodata {value:g} FILE"
        )
        return [sentence], []
    mark = next((band["low"] for band in bands if band["low"] in _MARKS_OF_NO_DATA), None)
    if mark is not None:
        sentence = (
            f"holds the value {mark:g}, which stands for no data in many files and for ground in none, but "
            f"does not say so; declare it: gdal_edit.py -a_nodata {mark:g} FILE"
        )
        return [sentence], []
    return [], list(_doubts_about_imagery(bands, look["white_corners"]))


def _doubts_about_imagery(bands: Sequence[Mapping[str, Any]], white_corners: int) -> Iterator[str]:
    if all(band["low"] == band["high"] for band in bands):
        yield f"has the value {bands[0]['low']:g} wherever it was sampled; is it the right file?"
    elif white_corners >= _FEWEST_WHITE_CORNERS:
        white = max(band["high"] for band in bands)
        yield (
            f"is {white:g} in every band at {white_corners} of its corners and does not say that this is no "
            "data, so that it is mapped as ground. If it is a border, declare it: "
            f"gdal_edit.py -a_nodata {white:g} FILE"
        )


def _no_data(look: Mapping[str, Any]) -> _Verdict:
    if look["whole"]:
        return ["no pixel has data: all are nodata, masked, not a number, or zero in every band"], []
    if look["sampled"]:
        return [], [f"no pixel has data in the {look['sampled']} places that were sampled"]
    return [], []


def _judge_elevation(info: RasterInfo, look: Mapping[str, Any]) -> _Verdict:
    name = info.band_names[0]
    if "palette" in info.colors:
        return ["its values are classes with a colour table, not elevation"], []
    if _NO_ELEVATION.search(name):
        return [f"its band is called '{name}', which is not elevation; wanted heights in metres"], []
    if info.count - info.has_alpha != 1 or not look["bands"]:
        return [], []  # refused elsewhere
    band = look["bands"][0]
    if band["low"] is None:
        return _no_data(look)
    ends = [(band[end] * info.scale + info.offset) * metres_per_unit(info) for end in ("low", "high")]
    low, high = min(ends), max(ends)
    if high < LOWEST_M or low > HIGHEST_M:
        sentence = (
            f"holds values from {low:g} to {high:g}, where heights on land lie between {LOWEST_M:g} and "
            f"{HIGHEST_M:g} m: it is not elevation, or its nodata value is not declared"
        )
        return [sentence], []
    return list(_undeclared_voids(band["low"], ends[0])), list(_doubts_about_heights(info, low, high))


def _undeclared_voids(stored: float, height_m: float) -> Iterator[str]:
    """Of marks for no data; those beyond what heights can be are voids in any case."""
    if stored in _MARKS_IN_HEIGHTS and LOWEST_M <= height_m <= HIGHEST_M:
        yield (
            f"its lowest value is {stored:g}, which stands for no data in many files, but is not declared, "
            f"and would be ground at {height_m:g} m here; declare it: gdal_edit.py -a_nodata {stored:g} FILE"
        )


def _doubts_about_heights(info: RasterInfo, low: float, high: float) -> Iterator[str]:
    crs_unit = info.crs.proj.axis_info[0].unit_conversion_factor if info.crs.projected else 1.0
    in_feet = 0.3 < crs_unit < 0.31
    if not info.unit and (in_feet or HIGHEST_M < high < HIGHEST_M / _FOOT_M):
        why = "its CRS is in feet" if in_feet else f"it holds heights up to {high:,.0f}"
        yield (
            f"{why}, and the unit of heights is not said: they are taken as metres; if they are feet, "
            "say so: gdal_edit.py -units ft FILE"
        )
    if low < LOWEST_M or high > HIGHEST_M:
        yield (
            f"holds values from {low:g} to {high:g}; those beyond {LOWEST_M:g} and {HIGHEST_M:g} m are taken "
            "as voids"
        )
    if info.dtype in {"uint8", "int8"}:
        yield "has 8-bit values, as pictures and shaded reliefs have; is it elevation in metres?"
    elif low >= 0 and high <= 1:
        yield f"all its sampled values lie within {low:g} and {high:g}; is it elevation in metres?"
    elif low == high:
        yield f"has the value {low:g} wherever it was sampled; is it the right file?"

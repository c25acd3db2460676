"""A map held against outlines of slumps: both brought to one plane, ground that was not mapped left out."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.crs import CRS
from shapely.geometry.base import BaseGeometry

from rtsmap.atomic import whole_file
from rtsmap.errors import InputError, OptionsError
from rtsmap.instances.coverage import MAPPED
from rtsmap.instances.map_scores import IOUS, SIZE_CLASS_NAMES, Figure, JudgedMap, score_maps, size_class
from rtsmap.instances.outcomes import Curve, outcomes_of, threshold_curve
from rtsmap.rasters.inspection import Problems
from rtsmap.vectors.formats import with_short_edges
from rtsmap.vectors.geopackage import COVERAGE_LAYER, read_map
from rtsmap.vectors.repair import Shapes, make_polygons_valid
from rtsmap.vectors.united import read_slumps, standing
from rtsmap.wording import count_of


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures by name; `notes` say what was left out; the counts are of what was judged.

    `sizes` counts true slumps and footprints by size class; `curves` are precision and recall by IoU.
    """

    figures: Mapping[str, Figure]
    footprints: int
    slumps: int
    ground_km2: float
    notes: tuple[str, ...]
    sizes: Mapping[str, tuple[int, int]]
    curves: Mapping[float, Curve]


def evaluate_maps(
    pairs: Sequence[tuple[Path, Path]],
    *,
    min_score: float = 0.0,
    block_km: float = 5.0,
    outline_tolerance_m: float = 8.0,
) -> Evaluation:
    """Score maps of `predict` against files of true outlines, in any CRS: pairs of (map, labels).

    Only ground that the map says was mapped counts; labels mostly beyond it are left out. Intervals come
    from drawing blocks of `block_km` a side. Raises InputError or LabelError for files
    that cannot be used.
    """
    check_block(block_km)
    if not 0 <= min_score <= 1:
        raise OptionsError(f"min_score={min_score}: wanted 0..1")
    judged, notes, problems = list[JudgedMap](), list[str](), Problems()
    for number, (map_path, labels_path) in enumerate(pairs):
        with problems.collected():
            one, remarks = judged_map(map_path, labels_path, min_score, block_km, name=f"{number}")
            judged.append(one)
            notes += remarks
    problems.raise_any()
    return Evaluation(
        score_maps(judged, outline_tolerance_m=outline_tolerance_m),
        sum(len(one.predicted) for one in judged),
        sum(len(one.truth) for one in judged),
        sum(ground.area for one in judged for ground in one.ground_by_group.values()) / 1e6,
        tuple(notes),
        _sizes(judged),
        {iou: _curve(judged, iou) for iou in IOUS},
    )


def check_block(block_km: float) -> None:
    """Raise OptionsError for blocks of ground that cannot be."""
    if not 0 < block_km < math.inf:
        raise OptionsError(f"block_km={block_km}: wanted kilometres, more than 0")


def write_curves(path: Path, curves: Mapping[float, Curve], *, overwrite: bool = False) -> None:
    """Write precision-recall curves as CSV: what is left at each score."""
    with whole_file(path, overwrite=overwrite) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("iou", "score", "footprints", "true", "precision", "recall"))
        for iou, curve in curves.items():
            columns = (curve.thresholds, curve.kept, curve.true, curve.precision, curve.recall)
            writer.writerows((iou, *row) for row in zip(*(c.tolist() for c in columns), strict=True))


def _sizes(judged: Sequence[JudgedMap]) -> dict[str, tuple[int, int]]:
    true = Counter(size_class(polygon.area) for one in judged for polygon in one.truth)
    mapped = Counter(size_class(polygon.area) for one in judged for polygon in one.predicted)
    return {name: (true[name], mapped[name]) for name in SIZE_CLASS_NAMES}


def _curve(judged: Sequence[JudgedMap], iou: float) -> Curve:
    outcomes = outcomes_of(judged, iou)
    return threshold_curve(outcomes.scores, outcomes.right, outcomes.slumps)


def judged_map(
    map_path: Path, labels_path: Path, min_score: float, block_km: float, *, name: str = ""
) -> tuple[JudgedMap, list[str]]:
    """A map and its truth on an equal-area plane around the mapped ground, and what was left out."""
    problems = Problems()
    with problems.collected():
        coverage = read_map(map_path, COVERAGE_LAYER)
    with problems.collected():
        labels = read_slumps(labels_path)
    problems.raise_any()
    mapped = coverage[coverage["status"] == MAPPED]
    if not len(mapped):
        raise InputError(f"{map_path}: its coverage holds no mapped ground, so there is nothing to judge")
    plane = _plane_around(mapped.to_crs("EPSG:4326").total_bounds)
    flat = with_short_edges(mapped).to_crs(plane.proj)
    ground = shapely.union_all(make_polygons_valid(flat.geometry.to_numpy()))
    found = standing(read_map(map_path))
    notes = [f"{labels_path}: {note}" for note in labels.notes]
    if by_hand := int(found["score"].isna().sum()):
        notes.append(
            f"{map_path}: not judged: {count_of(by_hand, 'footprint')} without a score, added by hand"
        )
    found = found[found["score"] >= min_score].to_crs(plane.proj)
    outlines = np.array(labels.to_crs(plane).geometries, dtype=object)
    visible = _cut_to(ground, outlines)
    judged = shapely.area(visible) >= shapely.area(outlines) / 2
    if beyond := int((~judged).sum()):
        notes.append(f"{labels_path}: {beyond} of {len(labels)} lie beyond the mapped ground")

    def group_of(polygon: BaseGeometry) -> str:
        point = polygon.representative_point()
        return f"{name} {math.floor(point.x / block_km / 1e3)} {math.floor(point.y / block_km / 1e3)}"

    blocks = {group_of(part): part for part in _cut_into_blocks(ground, block_km * 1e3)}
    predicted = make_polygons_valid(found.geometry.to_numpy())
    if lost := int(shapely.is_missing(predicted).sum()):
        raise InputError(f"{map_path}: {lost} footprints have impossible coordinates; the file is damaged")
    predicted = _cut_to(ground, predicted)
    told = ~_mostly_within(predicted, visible[~judged]) & (shapely.area(predicted) > 0)
    if left_out := int((~told).sum()):
        notes.append(
            f"{map_path}: not judged: {count_of(left_out, 'footprint')} beyond the mapped ground, "
            "or on slumps mostly beyond it"
        )
    scores = found["score"].to_numpy()[told]
    return JudgedMap(list(predicted[told]), list(scores), list(visible[judged]), blocks, group_of), notes


def _plane_around(bounds: Sequence[float]) -> CRS:
    """An equal-area plane; ground whose longitudes go all around lies at 180 degrees, or around the pole."""
    west, south, east, north = bounds
    lon = 180.0 if east - west > 180 else (west + east) / 2
    return CRS(f"+proj=laea +lat_0={(south + north) / 2} +lon_0={lon} +datum=WGS84 +units=m")


def _cut_to(ground: BaseGeometry, polygons: Shapes) -> Shapes:
    """What lies on the ground of each polygon, empty where nothing does."""
    shapely.prepare(ground)
    meets = shapely.intersects(ground, polygons)
    edge = meets & ~shapely.covers(ground, polygons)
    cut = np.where(meets, polygons, shapely.Polygon())
    cut[edge] = make_polygons_valid(shapely.intersection(polygons[edge], ground))
    return cut


def _mostly_within(polygons: Shapes, others: Shapes) -> npt.NDArray[np.bool_]:
    """Whether at least half of each polygon lies within all others together."""
    shared = shapely.area(shapely.intersection(polygons, shapely.union_all(others)))
    result: npt.NDArray[np.bool_] = shared >= shapely.area(polygons) / 2
    return result


def _cut_into_blocks(ground: BaseGeometry, side_m: float) -> list[BaseGeometry]:
    """The ground by square blocks of the plane."""
    blocks: dict[tuple[int, int], list[BaseGeometry]] = {}
    for part in shapely.get_parts(ground):
        x0, y0, x1, y1 = (math.floor(v / side_m) for v in part.bounds)
        for x, y in product(range(x0, x1 + 1), range(y0, y1 + 1)):
            box = shapely.box(x * side_m, y * side_m, (x + 1) * side_m, (y + 1) * side_m)
            blocks.setdefault((x, y), []).append(shapely.intersection(part, box))
    united = [
        shapely.union_all(make_polygons_valid(np.array(parts, dtype=object))) for parts in blocks.values()
    ]
    return [block for block in united if block.area > 0]

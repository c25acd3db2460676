"""Label polygons cut to chips, as COCO annotations in the chip's own pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.geobox import GeoBox
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

from rtsmap.errors import LabelError

CATEGORY = {"id": 1, "name": "rts", "supercategory": "thermokarst"}

SMALLEST_PART_PX = 0.01
SMALLEST_HOLE_PX = 1.0
"""Parts and holes of less area (square pixels) cannot be seen in a mask and are not written."""


def cut_labels(
    labels: shapely.STRtree,
    geobox: GeoBox,
    *,
    image_id: int,
    first_id: int = 1,
    min_area_px: float = 1.0,
) -> list[dict[str, Any]]:
    """COCO annotations of the labels that a chip sees, in the order of the labels.

    `labels` is a tree over valid polygons in the CRS of `geobox`, the chip's grid. Coordinates are
    (x, y) in pixels from the chip's upper left corner. A slump cut into pieces by the border stays
    one annotation; pieces of a slump that sum to less than `min_area_px` are left out. Slumps with
    holes are run lengths, as COCO's polygons have no holes.

    Besides the keys of COCO an annotation has `label` (position in `labels`), `truncated` (True when
    the border cuts the slump) and `visible_share` (share of the slump's area that the chip shows).
    """
    height, width = geobox.shape
    frame = shapely.box(0, 0, width, height)
    frame_with_rounding = shapely.box(-1e-6, -1e-6, width + 1e-6, height + 1e-6)
    to_pixels = (~geobox.affine).to_shapely()
    annotations: list[dict[str, Any]] = []
    for position in sorted(labels.query(geobox.extent.geom, predicate="intersects").tolist()):
        whole = affine_transform(labels.geometries[position], to_pixels)
        visible = _visible_part(whole, frame)
        if visible.area < min_area_px:
            continue
        shape = _shape_keys(visible, height, width)
        if not shape["area"]:
            continue
        annotations.append(
            {
                "id": first_id + len(annotations),
                "image_id": image_id,
                "category_id": CATEGORY["id"],
                "iscrowd": 0,
                **shape,
                "label": position,
                "truncated": not bool(shapely.covers(frame_with_rounding, whole)),
                "visible_share": round(min(1.0, visible.area / whole.area), 6),
            }
        )
    return annotations


def ignored_ground(mask: npt.NDArray[np.bool_], *, image_id: int, annotation_id: int) -> list[dict[str, Any]]:
    """Pixels of a chip (True) on which nothing is judged, as a crowd of COCO; none where there are none."""
    if not mask.any():
        return []
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (cols[0], rows[0], cols[-1] + 1 - cols[0], rows[-1] + 1 - rows[0])
    return [
        {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": CATEGORY["id"],
            "iscrowd": 1,
            "segmentation": _run_lengths(mask),
            "area": int(mask.sum()),
            "bbox": [int(side) for side in box],
        }
    ]


def coco_document(
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A COCO document with the one category of rtsmap.

    `images` need id, file_name, height and width. Raises LabelError for ids that are used twice and
    annotations of images that are not there.
    """
    for what, rows in (("image", images), ("annotation", annotations)):
        doubled = [key for key, count in Counter(row["id"] for row in rows).items() if count > 1]
        if doubled:
            raise LabelError(f"{what} ids must be unique, these are not: {doubled[:5]}")
    orphans = {row["image_id"] for row in annotations} - {row["id"] for row in images}
    if orphans:
        raise LabelError(f"annotations of images that are not listed: {sorted(orphans)[:5]}")
    return {
        "info": dict(info or {}),
        "licenses": [],
        "images": [dict(row) for row in images],
        "annotations": [dict(row) for row in annotations],
        "categories": [dict(CATEGORY)],
    }


def _visible_part(whole: BaseGeometry, frame: BaseGeometry) -> BaseGeometry:
    """What the frame shows, as a multipolygon without parts and holes that no pixel can show."""
    # A label that also touches the border in a line or a point comes back as a collection.
    parts = shapely.get_parts(shapely.intersection(whole, frame))
    parts = parts[shapely.area(parts) > SMALLEST_PART_PX]
    return shapely.MultiPolygon([_without_small_holes(part) for part in parts])


def _without_small_holes(polygon: BaseGeometry) -> BaseGeometry:
    rings = shapely.get_rings(polygon)
    large = shapely.area(shapely.polygons(rings[1:])) >= SMALLEST_HOLE_PX
    return shapely.polygons(rings[0], holes=rings[1:][large])


def _shape_keys(visible: BaseGeometry, height: int, width: int) -> dict[str, Any]:
    x0, y0, x1, y1 = visible.bounds
    box = [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)]
    if not shapely.get_num_interior_rings(shapely.get_parts(visible)).any():
        rings = [_ring(part.exterior) for part in visible.geoms]
        return {"segmentation": rings, "area": round(visible.area, 3), "bbox": box}
    mask = _pixels_inside(visible, height, width)
    return {"segmentation": _run_lengths(mask), "area": int(mask.sum()), "bbox": box}


def _pixels_inside(visible: BaseGeometry, height: int, width: int) -> npt.NDArray[np.bool_]:
    """True for pixels whose centre lies in the polygon."""
    rows, cols = np.mgrid[:height, :width]
    shapely.prepare(visible)
    inside: npt.NDArray[np.bool_] = shapely.contains_xy(visible, cols + 0.5, rows + 0.5)
    return inside


def _ring(ring: BaseGeometry) -> list[float]:
    """x, y, x, y, ... of an open ring; a thousandth of a pixel is far below any label's accuracy."""
    flat: list[float] = shapely.get_coordinates(ring)[:-1].round(3).ravel().tolist()
    return flat


def _run_lengths(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed run lengths: down the columns, beginning with the count of zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]]))
    if flat[0]:
        counts = np.concatenate([[0], counts])
    return {"size": list(mask.shape), "counts": counts.tolist()}

"""Places where a model saw slumps and a reviewer saw none: what it has to learn from most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.geobox import GeoBox
from shapely.affinity import affine_transform

from rtsmap.errors import LabelError
from rtsmap.rasters.tiling import Window
from rtsmap.vectors.labels import Polygons, read_polygons
from rtsmap.vectors.verdicts import ACCEPTED, REJECTED, REVIEW_COLUMN, column_of, plain_verdicts


@dataclass(frozen=True, slots=True)
class RejectedPlaces:
    """The rejected footprints of a reviewed map."""

    polygons: Polygons

    @classmethod
    def read(cls, path: Path) -> RejectedPlaces:
        """Read them; LabelError for a map that was not reviewed or of which nothing was rejected."""
        every = read_polygons(path)
        column = column_of(every.columns, REVIEW_COLUMN)
        if column is None:
            raise LabelError(
                f"{path}: no column '{REVIEW_COLUMN}'; wanted a reviewed map, whose footprints are "
                f"'{ACCEPTED}' or '{REJECTED}' there"
            )
        verdicts = plain_verdicts(every.columns[column])
        strange = sorted({verdict for verdict in verdicts if verdict is not None} - {ACCEPTED, REJECTED})
        if strange:
            raise LabelError(
                f"{path}: '{REVIEW_COLUMN}' has {strange[:3]}, wanted '{ACCEPTED}' or '{REJECTED}'"
            )
        pairs = zip(every.geometries, verdicts, strict=True)
        rejected = tuple(polygon for polygon, verdict in pairs if verdict == REJECTED)
        if not rejected:
            raise LabelError(f"{path}: none of {len(every)} footprints is '{REJECTED}'")
        return cls(Polygons(rejected, every.crs))

    def windows(self, grid: GeoBox, labels: npt.NDArray[np.int16]) -> tuple[Window, ...]:
        """Where they lie on an image; those mostly on labelled slumps are left out, as labels count more."""
        frame = shapely.box(0, 0, grid.shape[1], grid.shape[0])
        to_pixels = (~grid.affine).to_shapely()
        found = []
        for polygon in self.polygons.to_crs(grid.crs).geometries:
            seen = affine_transform(polygon, to_pixels).intersection(frame)
            if seen.area < 1:
                continue
            x0, y0, x1, y1 = seen.bounds
            window = Window(math.floor(y0), math.floor(x0), math.ceil(y1), math.ceil(x1))
            if (labels[window.slices()] > 0).sum() < seen.area / 2:
                found.append(window)
        return tuple(found)

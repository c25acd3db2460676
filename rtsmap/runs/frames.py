"""Mapping in one call from Python."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtsmap.models import ModelCard
from rtsmap.rasters.mosaic import DemFiles
from rtsmap.runs import mapping
from rtsmap.runs.engine import Engine
from rtsmap.runs.mapping import PredictOptions
from rtsmap.vectors.geopackage import read_map

if TYPE_CHECKING:
    from geopandas import GeoDataFrame


def predict(
    scene: Path | str,
    dem: DemFiles | None = None,
    model: Engine | ModelCard | str | Path | None = None,
    out: Path | str | None = None,
    *,
    overwrite: bool = False,
    **options: Any,
) -> GeoDataFrame:
    """Map the slumps of a scene; one row a slump, in the CRS of the run's grid.

    `dem` is an elevation model in any CRS and resolution: a file, a list of files, or a pattern. `model`
    is the name or folder of a bundle. With `out` (a .gpkg) the map is kept, with its coverage and record,
    and an interrupted call can be repeated to go on; without it nothing stays on disk. `options` are those
    of `PredictOptions`.

    Example:
        slumps = rtsmap.predict("scene.tif", dem="dem.tif", min_score=0.6)
    """
    chosen = PredictOptions.of(**options)
    if out is not None:
        mapping.predict(scene, dem, out=out, model=model, options=chosen, overwrite=overwrite)
        return read_map(out)
    with tempfile.TemporaryDirectory(prefix="rtsmap-") as folder:
        report = mapping.predict(scene, dem, out=Path(folder) / "map.gpkg", model=model, options=chosen)
        return read_map(report.out)

"""Mapping in one call from Python."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtsmap.models import ModelCard
from rtsmap.rasters.mosaic import DemFiles
from rtsmap.rasters.spectral import BandFiles
from rtsmap.runs import mapping
from rtsmap.runs.engine import Engine
from rtsmap.runs.mapping import PredictOptions
from rtsmap.vectors.areas import AreaFiles
from rtsmap.vectors.geopackage import read_map

if TYPE_CHECKING:
    from geopandas import GeoDataFrame


def predict(
    scene: Path | str,
    dem: DemFiles | None = None,
    model: Engine | ModelCard | str | Path | None = None,
    out: Path | str | None = None,
    *,
    aoi: AreaFiles | None = None,
    exclude: AreaFiles | None = None,
    band_files: BandFiles | None = None,
    probability: Path | str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> GeoDataFrame:
    """Map the slumps of a scene; one row a slump, in the CRS of the run's grid.

    `dem` is an elevation model in any CRS and resolution: a file, a list of files, or a pattern. `model`
    is the name or folder of a bundle. `aoi` and `exclude` are files of polygons in any CRS,
    `band_files` rasters of bands that the scene lacks, by name. With `out` (a
    .gpkg) the map is kept, with its coverage and record, and an interrupted call can be repeated to go on
    (what people have put into a map that is replaced is kept, too: see `rtsmap.vectors.handiwork`);
    without it nothing stays on disk but the raster `probability` (.tif), if one is named. `options` are those
    of `PredictOptions`.

    Example:
        slumps = rtsmap.predict("scene.tif", dem="dem.tif", min_score=0.6)
    """
    chosen = PredictOptions.of(**options)
    map_to = partial(
        mapping.predict,
        scene,
        dem,
        model=model,
        options=chosen,
        aoi=aoi,
        exclude=exclude,
        band_files=band_files,
        probability=probability,
    )
    if out is not None:
        map_to(out=out, overwrite=overwrite)
        return read_map(out)
    with tempfile.TemporaryDirectory(prefix="rtsmap-") as folder:
        return read_map(map_to(out=Path(folder) / "map.gpkg").out)

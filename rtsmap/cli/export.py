"""`rtsmap export`: a map in other formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    *,
    gpkg: Annotated[Path, typer.Argument(help="Map made by rtsmap predict (.gpkg).")],
    out: Annotated[Path, typer.Argument(help="Output: .shp, .geojson, .kml, .csv, .fgb, .parquet or .gpkg.")],
    layer: Annotated[str, typer.Option(help="rts_footprints or coverage.")] = "rts_footprints",
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out footprints with a lower score.")
    ] = 0.0,
    min_area: Annotated[
        float, typer.Option(min=0, help="Leave out footprints smaller than this, in square metres.")
    ] = 0.0,
    without_rejected: Annotated[
        bool, typer.Option("--without-rejected", help="Leave out what a review has rejected.")
    ] = False,
    crs: Annotated[
        str | None, typer.Option(help="Turn outlines into this CRS, such as EPSG:3413; default: the map's.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Write a map as Shapefile, GeoJSON, KML, CSV, FlatGeobuf or GeoParquet, or a part of it as GeoPackage.

    The suffix of the output chooses the format. GeoJSON and KML are in longitude and latitude, and so is
    the WKT of a CSV without --crs; a shapefile's columns have names of ten characters, which are told.
    Nothing is written half.

    Examples:
      rtsmap export map.gpkg slumps.shp
      rtsmap export map.gpkg sure.geojson --min-score 0.8
      rtsmap export map.gpkg table.csv --min-area 1000
      rtsmap export map.gpkg polar.shp --crs EPSG:3413
      rtsmap export map.gpkg coverage.parquet --layer coverage
    """
    from rtsmap.cli.console import tell
    from rtsmap.vectors.export import Selection, export_map

    select = Selection(min_score, min_area, without_rejected)
    for note in export_map(gpkg, out, layer=layer, select=select, crs=crs, overwrite=overwrite):
        tell(f"Note: {note}")
    typer.echo(out)

"""`rtsmap export`: a map in other formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    *,
    gpkg: Annotated[Path, typer.Argument(help="Map made by rtsmap predict (.gpkg).")],
    out: Annotated[Path, typer.Argument(help="Output: .shp, .geojson, .fgb, .parquet or .gpkg.")],
    layer: Annotated[str, typer.Option(help="rts_footprints or coverage.")] = "rts_footprints",
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out footprints with a lower score.")
    ] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Write a map as Shapefile, GeoJSON, FlatGeobuf or GeoParquet, or a part of it as GeoPackage.

    The suffix of the output chooses the format. GeoJSON is in longitude and latitude; a shapefile's
    columns have names of ten characters, which are told. Nothing is written half.

    Examples:
      rtsmap export map.gpkg slumps.shp
      rtsmap export map.gpkg sure.geojson --min-score 0.8
      rtsmap export map.gpkg coverage.parquet --layer coverage
    """
    from rtsmap.cli.console import tell
    from rtsmap.vectors.export import export_map

    for note in export_map(gpkg, out, layer=layer, min_score=min_score, overwrite=overwrite):
        tell(f"Note: {note}")
    typer.echo(out)

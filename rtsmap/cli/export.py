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
    profile: Annotated[
        str | None, typer.Option(help="A form that others ask for: arts, pdg, challenge or stac.")
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(help="For arts: what the map does not know, once for each.", metavar="NAME=VALUE"),
    ] = None,
    chips: Annotated[
        Path | None, typer.Option(help="For challenge: folder of rtsmap tile; default: the map as one image.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    r"""Write a map as Shapefile, GeoJSON, KML, CSV, FlatGeobuf or GeoParquet, or a part of it as GeoPackage.

    The suffix of the output chooses the format. GeoJSON and KML are in longitude and latitude, and so is
    the WKT of a CSV without --crs; a shapefile's columns have names of ten characters, which are told.
    Nothing is written half. Profiles: arts is GeoJSON for the ARTS data set, pdg a GeoPackage for the
    staging of the Permafrost Discovery Gateway, challenge a JSON file of COCO results,
    stac the run record as a STAC item with the MLM extension for the model.

    Examples:
      rtsmap export map.gpkg slumps.shp
      rtsmap export map.gpkg sure.geojson --min-score 0.8
      rtsmap export map.gpkg table.csv --min-area 1000
      rtsmap export map.gpkg polar.shp --crs EPSG:3413
      rtsmap export map.gpkg coverage.parquet --layer coverage
      rtsmap export map.gpkg arts.geojson --profile arts --field RegionName="Banks Island" \
          --field CreatorLab="A. Name, B University" --field BaseMapDate=2024-08-01 \
          --field BaseMapSource=WorldView-2
    """
    from rtsmap.cli.console import tell
    from rtsmap.errors import OptionsError
    from rtsmap.vectors.export import Selection, export_map
    from rtsmap.vectors.profiles import ProfileOptions, export_profile

    select = Selection(min_score, min_area, without_rejected)
    options = ProfileOptions(_named(field or []), chips)
    if profile is None:
        if field or chips:
            raise OptionsError("--field and --chips belong to a --profile")
        notes = export_map(gpkg, out, layer=layer, select=select, crs=crs, overwrite=overwrite)
    elif crs is not None:
        raise OptionsError(f"the profile {profile} says which CRS; leave --crs out")
    else:
        notes = export_profile(
            gpkg, out, profile, layer=layer, select=select, options=options, overwrite=overwrite
        )
    for note in notes:
        tell(f"Note: {note}")
    typer.echo(out)


def _named(texts: list[str]) -> dict[str, str]:
    """NAME=VALUE as a mapping."""
    from rtsmap.errors import OptionsError

    fields: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or name in fields:
            raise OptionsError(f"--field {text}: wanted NAME=VALUE, each name once")
        fields[name] = value
    return fields

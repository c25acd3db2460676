"""Options that say what is read, the same in every command that reads scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DemOption = Annotated[
    list[str] | None,
    typer.Option(help="Elevation model, in any CRS; several times, or a 'quoted*.tif' pattern, for tiles."),
]
AoiOption = Annotated[
    list[Path] | None,
    typer.Option(help="Polygons in any CRS: only ground inside them; several times for several files."),
]
ExcludeOption = Annotated[
    list[Path] | None,
    typer.Option(help="Polygons in any CRS, of water or glaciers, say: ground to leave out."),
]
BandFilesOption = Annotated[
    list[str] | None,
    typer.Option("--band", help="A raster of a band that the model wants and the scene lacks: ndvi=FILE."),
]
BandsOption = Annotated[
    str | None,
    typer.Option(help="Which bands are which, from 1, if the file does not tell: red=5,green=3,blue=2."),
]

"""Options that say what is read, the same in every command that reads scenes."""

from __future__ import annotations

from typing import Annotated

import typer

DemOption = Annotated[
    list[str] | None,
    typer.Option(help="Elevation model, in any CRS; several times, or a 'quoted*.tif' pattern, for tiles."),
]
BandsOption = Annotated[
    str | None,
    typer.Option(help="Which bands are which, from 1, if the file does not tell: red=5,green=3,blue=2."),
]

"""`rtsmap evaluate`: how good maps are, held against outlines of slumps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rtsmap.instances.map_scores import Figure


def app_with(guarded: Callable[[Callable[..., None]], Callable[..., None]]) -> typer.Typer:
    """The commands, each behind the error handler."""
    app = typer.Typer(help="Measure maps against outlines of slumps.", no_args_is_help=True)
    app.command("map")(guarded(evaluate_map))
    return app


def evaluate_map(
    *,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Map and labels, in turn: MAP.gpkg LABELS [MAP2.gpkg LABELS2 ...].", metavar="FILES"
        ),
    ],
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out footprints with a lower score.")
    ] = 0.0,
    block_km: Annotated[
        float, typer.Option(help="Side of the blocks of ground that intervals are drawn from.")
    ] = 5.0,
    outline_tolerance_m: Annotated[
        float, typer.Option(help="How far two outlines may lie apart and still agree.")
    ] = 8.0,
    out: Annotated[Path | None, typer.Option(help="Also write the figures: .json or .csv.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Score maps of rtsmap predict against true outlines, in any format and CRS.

    Slumps are matched one to one by IoU. Only ground that the map says was mapped counts. The intervals
    (95 %) come from drawing blocks of ground, since slumps of one valley are alike.

    Examples:
      rtsmap evaluate map slumps.gpkg labels.shp
      rtsmap evaluate map a.gpkg a_labels.gpkg b.gpkg b_labels.gpkg --min-score 0.6 --out figures.json
    """
    from rtsmap.cli.console import tell
    from rtsmap.errors import OptionsError
    from rtsmap.runs.evaluating import evaluate_maps, write_figures
    from rtsmap.vectors.atomic import refuse_existing

    if len(files) % 2:
        raise OptionsError(f"wanted maps and labels in turn, got {len(files)} files")
    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    evaluation = evaluate_maps(
        list(zip(files[::2], files[1::2], strict=True)),
        min_score=min_score,
        block_km=block_km,
        outline_tolerance_m=outline_tolerance_m,
    )
    for note in evaluation.notes:
        tell(f"Note: {note}")
    typer.echo(
        f"{evaluation.footprints} footprints, {evaluation.slumps} true slumps on "
        f"{evaluation.ground_km2:.1f} km2 of mapped ground"
    )
    for name, figure in evaluation.figures.items():
        typer.echo(f"{name:28} {_shown(figure)}")
    if out is not None:
        write_figures(out, evaluation, overwrite=overwrite)


def _shown(figure: Figure) -> str:
    value = f"{figure.value:8.3f}"
    return (
        value
        if figure.interval is None
        else f"{value}  ({figure.interval[0]:.3f} to {figure.interval[1]:.3f})"
    )

"""`rtsmap merge`: make the map of a run again, without the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rtsmap.cli.inputs import (
    MinAreaOption,
    MinScoreOption,
    OverlapsOption,
    OverwriteOption,
    ProbabilityOption,
    RunArgument,
    SimplifyOption,
)


def command(
    *,
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="GeoPackage to write.")],
    overlaps: OverlapsOption = "best",
    overwrite: OverwriteOption = False,
    probability: ProbabilityOption = None,
    min_score: MinScoreOption = None,
    min_area_m2: MinAreaOption = None,
    simplify_m: SimplifyOption = None,
    min_speck_px: Annotated[
        int | None, typer.Option(min=1, help="Leave out pieces and holes of a slump below this many pixels.")
    ] = None,
    second_look: Annotated[
        bool | None, typer.Option(help="Believe second looks, or the tiles alone; default: as planned.")
    ] = None,
) -> None:
    """Make the map of a run in seconds, with the options it was planned with or others.

    Scores below half of the model's threshold need second looks that were not made: the command says so.
    Exit code 3: the map is written, but some tiles failed.

    Examples:
      rtsmap merge map.rtsrun --out strict.gpkg --min-score 0.8
      rtsmap merge map.rtsrun --out again.gpkg --probability slumps.tif
      rtsmap merge shared/run --out smooth.gpkg --simplify 8
    """
    from rtsmap.cli.console import progress_bars
    from rtsmap.cli.reports import PROBABILITY_OF_MANY, refuse_options, tell_many, tell_report
    from rtsmap.runs.many import check_rule, merge_scenes
    from rtsmap.runs.run_folders import is_of_many
    from rtsmap.runs.spreading import merge_run

    given: dict[str, Any] = {
        "min_score": min_score,
        "min_area_m2": min_area_m2,
        "simplify_m": simplify_m,
        "min_speck_px": min_speck_px,
        "second_look": second_look,
    }
    check_rule(overlaps)
    changes = {name: value for name, value in given.items() if value is not None}
    if is_of_many(run):
        refuse_options(PROBABILITY_OF_MANY, probability=probability)
        with progress_bars() as progress:
            many = merge_scenes(
                run, out, overlaps=overlaps, changes=changes, overwrite=overwrite, progress=progress
            )
        tell_many(many)
        return
    with progress_bars() as progress:
        report = merge_run(
            run, out, changes=changes, overwrite=overwrite, probability=probability, progress=progress
        )
    tell_report(report, again=f"run `rtsmap work {run}`, then merge with --overwrite,")

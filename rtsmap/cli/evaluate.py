"""`rtsmap evaluate`: how good maps and models are, held against outlines of slumps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rtsmap.instances.map_scores import Figure


def app_with(guarded: Callable[[Callable[..., None]], Callable[..., None]]) -> typer.Typer:
    """The commands, each behind the error handler."""
    app = typer.Typer(help="Measure maps and models against outlines of slumps.", no_args_is_help=True)
    app.command("map")(guarded(evaluate_map))
    app.command("chips")(guarded(evaluate_chips))
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
    from rtsmap.runs.evaluating import evaluate_maps
    from rtsmap.runs.figures import write_figures
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
    _print(evaluation.figures)
    if out is not None:
        facts = {key: getattr(evaluation, key) for key in ("footprints", "slumps", "ground_km2", "notes")}
        write_figures(out, evaluation.figures, facts, overwrite=overwrite)


def evaluate_chips(
    *,
    labels: Annotated[Path, typer.Argument(help="COCO file with outlines of slumps on chips.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures; default: images/ beside it.")
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(help="JSON lists of file names that show common ground, for the intervals.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A shipped model or the folder of a bundle.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Score this file of COCO results instead of a model.")
    ] = None,
    settings: Annotated[
        str, typer.Option(help="stock (COCO's own) or challenge (GeoAI Arctic 2026).")
    ] = "stock",
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="For objects; default: the model's own threshold.")
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(help="Also write what was found as COCO results.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the figures: .json or .csv.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
) -> None:
    """Score a model, or a file of results, on labelled chips: average precision and F1 of objects.

    Average precision is computed by pycocotools. The intervals (95 %) come from drawing groups of chips.

    Examples:
      rtsmap evaluate chips coco_val.json --groups overlap_groups.json
      rtsmap evaluate chips coco_val.json --settings challenge --submission results.json
      rtsmap evaluate chips coco_val.json --results other.json
    """
    from rtsmap.cli.console import progress_bars
    from rtsmap.runs.chip_scores import LabelledChips, find_on_chips, read_results, score_chips, write_results
    from rtsmap.runs.engine import engine_of
    from rtsmap.runs.figures import write_figures
    from rtsmap.vectors.atomic import refuse_existing

    for path in (submission, out):
        if path is not None:
            refuse_existing(path, overwrite=overwrite)
    chips = LabelledChips.read(labels, images, groups)
    if results is None:
        engine = engine_of(model)
        threshold = engine.min_score if min_score is None else min_score
        with progress_bars() as progress:
            found = find_on_chips(chips, engine, progress)
    else:
        found = read_results(results)
        threshold = 0.5 if min_score is None else min_score
    if submission is not None:
        write_results(submission, found, overwrite=overwrite)
    figures = score_chips(chips, found, min_score=threshold, settings=settings)
    typer.echo(f"{len(chips.group_of)} chips, {len(found)} detections, objects with score >= {threshold:g}")
    _print(figures)
    if out is not None:
        facts = {"chips": len(chips.group_of), "settings": settings, "min_score": threshold}
        write_figures(out, figures, facts, overwrite=overwrite)


def _print(figures: Mapping[str, Figure]) -> None:
    for name, figure in figures.items():
        typer.echo(f"{name:28} {_shown(figure)}")


def _shown(figure: Figure) -> str:
    value = f"{figure.value:8.3f}"
    return (
        value
        if figure.interval is None
        else f"{value}  ({figure.interval[0]:.3f} to {figure.interval[1]:.3f})"
    )

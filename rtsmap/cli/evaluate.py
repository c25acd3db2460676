"""`rtsmap evaluate`: how good maps and models are, held against outlines of slumps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rtsmap.cli.inputs import ViewsOption

if TYPE_CHECKING:
    from rtsmap.instances.calibration import PrecisionClaim
    from rtsmap.instances.map_scores import Figure
    from rtsmap.runs.calibrating import Calibration


def app_with(guarded: Callable[[Callable[..., None]], Callable[..., None]]) -> typer.Typer:
    """The commands, each behind the error handler."""
    app = typer.Typer(help="Measure maps and models against outlines of slumps.", no_args_is_help=True)
    app.command("map")(guarded(evaluate_map))
    app.command("chips")(guarded(evaluate_chips))
    app.command("calibration")(guarded(evaluate_calibration))
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
    out: Annotated[
        Path | None, typer.Option(help="Also write the figures: .csv, or .json with a .csv beside it.")
    ] = None,
    curve: Annotated[
        Path | None,
        typer.Option(help="Also draw precision over recall: .png, its points as .curve.csv beside it."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Score maps of rtsmap predict against true outlines, in any format and CRS.

    Slumps are matched one to one by IoU, the area in common over the area of both together. Only ground that
    the map says was mapped counts. The intervals (95 %) come from drawing blocks of ground, since slumps of
    one valley are alike.

    Figures: precision_30 is the share of footprints that are a slump at an IoU of 0.3 or more, recall_30 the
    share of slumps that were found so, f1_30 their harmonic mean; _10 and _50 at 0.1 and 0.5. pixel_iou and
    area_ratio compare ground, outline_f1 outlines; panoptic_quality is found and well outlined in one. By
    size recall goes by true area, precision by mapped area. false_per_100_km2 are false footprints, _empty on
    blocks and _empty_maps on maps without a slump. A dash: there was nothing to measure it on.

    Examples:
      rtsmap evaluate map slumps.gpkg labels.shp
      rtsmap evaluate map a.gpkg a_labels.gpkg b.gpkg b_labels.gpkg --min-score 0.6 --out figures.json
      rtsmap evaluate map slumps.gpkg labels.shp --curve precision_recall.png
    """
    from rtsmap.cli.console import tell
    from rtsmap.errors import OptionsError
    from rtsmap.runs.diagrams import draw_precision_recall
    from rtsmap.runs.evaluating import evaluate_maps, write_curves
    from rtsmap.runs.figures import check_outputs, write_figures
    from rtsmap.wording import count_of

    if len(files) % 2:
        raise OptionsError(
            f"wanted each map with its labels after it, MAP.gpkg LABELS, got {count_of(len(files), 'file')}"
        )
    points = None if curve is None else curve.with_suffix(".curve.csv")
    check_outputs(figures=out, picture=curve, others=(points,), inputs=files, overwrite=overwrite)
    evaluation = evaluate_maps(
        list(zip(files[::2], files[1::2], strict=True)),
        min_score=min_score,
        block_km=block_km,
        outline_tolerance_m=outline_tolerance_m,
    )
    for note in evaluation.notes:
        tell(f"Note: {note}")
    typer.echo(
        f"{count_of(evaluation.footprints, 'footprint')}, {count_of(evaluation.slumps, 'true slump')} on "
        f"{evaluation.ground_km2:.1f} km2 of mapped ground"
    )
    for name, (true, mapped) in evaluation.sizes.items():
        typer.echo(f"  {name:26} slumps {true:5}, footprints {mapped:5}")
    _print(evaluation.figures)
    if out is not None:
        told = ("footprints", "slumps", "ground_km2", "notes", "sizes")
        facts = {key: getattr(evaluation, key) for key in told}
        write_figures(out, evaluation.figures, facts, overwrite=overwrite)
    if curve is not None and points is not None:
        title = f"{count_of(evaluation.slumps, 'slump')}, {count_of(evaluation.footprints, 'footprint')}"
        draw_precision_recall(curve, evaluation.curves, title=title, overwrite=overwrite)
        write_curves(points, evaluation.curves, overwrite=overwrite)


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
    views: ViewsOption = None,
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
    out: Annotated[
        Path | None, typer.Option(help="Also write the figures: .csv, or .json with a .csv beside it.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Also draw the worst and the best chips: .png. It shows the pictures.")
    ] = None,
    sheet_chips: Annotated[int, typer.Option(min=1, max=60, help="How many of each on the sheet.")] = 12,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
) -> None:
    """Score a model, or a file of results, on labelled chips: average precision and F1 of objects.

    Average precision is computed by pycocotools. The intervals (95 %) come from drawing groups of chips.

    Examples:
      rtsmap evaluate chips coco_val.json --groups overlap_groups.json
      rtsmap evaluate chips coco_val.json --settings challenge --submission results.json
      rtsmap evaluate chips coco_val.json --results other.json
      rtsmap evaluate chips coco_val.json --sheet sheet.png
    """
    from rtsmap.cli.console import progress_bars
    from rtsmap.runs.chip_scores import (
        LabelledChips,
        find_on_chips,
        read_results,
        score_chips,
        settings_named,
        write_results,
    )
    from rtsmap.runs.chip_sheet import draw_sheet
    from rtsmap.runs.engine import engine_of
    from rtsmap.runs.figures import check_outputs, write_figures
    from rtsmap.wording import count_of

    settings_named(settings)
    read = (labels, groups, results)
    check_outputs(figures=out, picture=sheet, others=(submission,), inputs=read, overwrite=overwrite)
    chips = LabelledChips.read(labels, images, groups)
    if results is None:
        engine = engine_of(model, views=views)
        threshold = engine.min_score if min_score is None else min_score
        with progress_bars() as progress:
            found: Sequence[Mapping[str, Any]] = find_on_chips(chips, engine, progress)
    else:
        found = read_results(results, chips)
        threshold = 0.5 if min_score is None else min_score
    if submission is not None:
        write_results(submission, found, overwrite=overwrite)
    figures = score_chips(chips, found, min_score=threshold, settings=settings)
    counts = f"{count_of(len(chips.group_of), 'chip')}, {count_of(len(found), 'detection')}"
    typer.echo(f"{counts}, objects with score >= {threshold:g}")
    _print(figures)
    if out is not None:
        facts = {"chips": len(chips.group_of), "settings": settings, "min_score": threshold}
        write_figures(out, figures, facts, overwrite=overwrite)
    if sheet is not None:
        draw_sheet(sheet, chips, found, min_score=threshold, count=sheet_chips, overwrite=overwrite)


def evaluate_calibration(
    *,
    maps: Annotated[list[Path], typer.Argument(help="Maps of rtsmap predict, best with low scores, too.")],
    truth: Annotated[
        list[Path],
        typer.Option(help="True outlines: --truth once for each map, in their order, or once for all."),
    ],
    precision: Annotated[float, typer.Option(help="The share of footprints that shall be true.")] = 0.8,
    iou: Annotated[float, typer.Option(help="A footprint is true when it has a slump at this IoU.")] = 0.3,
    bins: Annotated[int, typer.Option(min=2, max=100, help="Score bins of the reliability table.")] = 10,
    block_km: Annotated[
        float, typer.Option(help="Side of the blocks of ground that intervals are drawn from.")
    ] = 5.0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write all of it: .json, with figures as .csv and the table as .reliability.csv."
        ),
    ] = None,
    diagram: Annotated[Path | None, typer.Option(help="Also draw the reliability diagram: .png.")] = None,
    write_card: Annotated[
        str | None,
        typer.Option(help="Write temperature and threshold into this model's card.", metavar="BUNDLE"),
    ] = None,
    card_out: Annotated[
        Path | None,
        typer.Option(help="New folder for that model; default: its own, NAME-calibrated for a shipped one."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
) -> None:
    """Tell how often footprints of a score are true, and mend the scores of a model.

    Temperature scaling fits one number to the maps: with it, a score is the chance that a footprint is a
    slump, as far as one number can do that. Choose thresholds on other maps than you test on.

    Examples:
      rtsmap predict scene.tif -o slumps.gpkg --min-score 0.05
      rtsmap evaluate calibration slumps.gpkg --truth labels.shp --out scores.json --diagram scores.png
      rtsmap evaluate calibration a.gpkg b.gpkg --truth a.shp --truth b.shp --write-card path/to/model
    """
    from rtsmap.cli.console import tell
    from rtsmap.models import load_bundle
    from rtsmap.runs.calibrating import (
        MENDED,
        calibrate_maps,
        check_card,
        facts_of,
        write_calibrated_card,
        write_reliability,
    )
    from rtsmap.runs.diagrams import draw_reliability
    from rtsmap.runs.figures import check_outputs, write_figures

    table = None if out is None else out.with_suffix(".reliability.csv")
    read = (*maps, *truth)
    check_outputs(figures=out, picture=diagram, others=(table,), inputs=read, overwrite=overwrite)
    card = None if write_card is None else load_bundle(write_card)
    target = None if card is None else check_card(card, maps, card_out)
    calibration = calibrate_maps(maps, truth, precision=precision, iou=iou, bins=bins, block_km=block_km)
    for note in calibration.notes:
        tell(f"Note: {note}")
    _print_calibration(calibration)
    if out is not None and table is not None:
        write_figures(out, calibration.figures, facts_of(calibration), overwrite=overwrite)
        write_reliability(table, calibration, overwrite=overwrite)
    if diagram is not None:
        claim = calibration.claims[MENDED]
        title = f"{len(calibration.outcomes.scores)} footprints, temperature {calibration.temperature:.3g}"
        threshold = claim.threshold if claim.reached else None
        draw_reliability(diagram, calibration.tables, title=title, threshold=threshold, overwrite=overwrite)
    if card is not None and target is not None:
        names = " ".join(path.name for path in maps)
        truths = " ".join(f"--truth {path.name}" for path in truth)
        command = f"rtsmap evaluate calibration {names} {truths} --precision {precision:g} --iou {iou:g}"
        changed = write_calibrated_card(card, calibration, target, command)
        tell(f"Threshold {changed.score_threshold:g} and temperature {changed.temperature:.4g} written into:")
        typer.echo(changed.folder)


def _print_calibration(calibration: Calibration) -> None:
    outcomes = calibration.outcomes
    typer.echo(
        f"{len(outcomes.scores)} footprints, {int(outcomes.right.sum())} of them true at IoU "
        f"{outcomes.iou_threshold:g}; {outcomes.slumps} true slumps"
    )
    for name, table in calibration.tables.items():
        typer.echo(f"Scores {name}:")
        typer.echo("  from   to   count   mean score   share true (95 %)")
        for one in table:
            low, high = one.interval
            typer.echo(
                f"  {one.low:.2f}  {one.high:.2f}  {one.count:5}  {one.mean_score:11.3f}   "
                f"{one.true_share:.3f}  ({low:.3f} to {high:.3f})"
            )
    _print(calibration.figures)
    for name, claim in calibration.claims.items():
        typer.echo(f"Scores {name}: {_claimed(claim)}")


def _claimed(claim: PrecisionClaim) -> str:
    if claim.threshold is None:
        return (
            f"precision {claim.wanted:g} CANNOT BE CLAIMED: {claim.footprints} footprints are too few, "
            "whatever they show"
        )
    low, high = claim.interval
    measured = (
        f"precision {claim.precision:.3f} ({low:.3f} to {high:.3f}), on {claim.footprints} footprints, "
        f"{claim.true} of them true"
    )
    if claim.reached:
        return f"score >= {claim.threshold:g} gives {measured}"
    return f"precision {claim.wanted:g} CANNOT BE REACHED; closest: score >= {claim.threshold:g}, {measured}"


def _print(figures: Mapping[str, Figure]) -> None:
    for name, figure in figures.items():
        typer.echo(f"{name:28} {_shown(figure)}")


def _shown(figure: Figure) -> str:
    if isnan(figure.value):
        return "       -"
    value = f"{figure.value:8.3f}"
    return (
        value
        if figure.interval is None
        else f"{value}  ({figure.interval[0]:.3f} to {figure.interval[1]:.3f})"
    )

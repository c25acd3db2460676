"""What commands that make maps have in common: who computes, and what is said at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from rtsmap.cli.console import tell
from rtsmap.cli.exits import PARTIAL
from rtsmap.errors import OptionsError
from rtsmap.wording import count_of

if TYPE_CHECKING:
    from rtsmap.runs.executors import Executor
    from rtsmap.runs.many import ManyReport
    from rtsmap.runs.mapping import RunReport
    from rtsmap.runs.npz_chips import NpzReport
    from rtsmap.timing import Ledger

_LISTED = 20
PROBABILITY_OF_MANY = (
    "the probability is one raster a scene, which comes from its folder in the run directory: "
    "rtsmap merge RUN/SCENE --out SCENE.gpkg --probability SCENE.tif"
)


def executor_of(workers: int | None, scheduler: str | None) -> Executor | None:
    """Who computes; None for this process."""
    if workers is not None and scheduler is not None:
        raise OptionsError("--workers are processes of this machine, --scheduler a cluster: give one of them")
    if scheduler is not None:
        from rtsmap.runs.on_dask import OnDask

        return OnDask(scheduler)
    if workers is not None and workers > 1:
        from rtsmap.runs.processes import Processes

        return Processes(workers)
    return None


def refuse_options(reason: str, **given: Any) -> None:
    """Refuse options that were given although the inputs have no use for them."""
    useless = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if useless:
        raise OptionsError(f"{reason}; leave {', '.join(useless)} out")


def tell_chips(report: NpzReport) -> None:
    """Say what was found on chips of eight bands."""
    for note in report.notes:
        tell(f"Note: {note}")
    more = "; --min-score 0 keeps all, as average precision wants" if report.min_score else ""
    tell(
        f"{count_of(report.slumps, 'slump')} with a score of at least {report.min_score:g} on "
        f"{count_of(report.chips, 'chip')}{more}"
    )
    if report.images:
        tell(f"Image ids: {report.images}")
    typer.echo(report.out)


def tell_timings(ledger: Ledger | None) -> None:
    """Say where the time went, if it was measured."""
    for line in ledger.lines() if ledger else ():
        tell(line)


def tell_report(
    report: RunReport, *, of_area: bool = False, ledger: Ledger | None = None, again: str | None = None
) -> None:
    """Say what a run did and where its time went, name what failed, and exit with the code for that.

    `again` tries failed tiles once more, where that is not the same command.
    """
    for note in (*report.notes, *report.kept):
        tell(f"Note: {note}")
    left_out = f", {report.left_out} outside the area" if of_area or report.left_out else ""
    tell(
        f"{count_of(report.footprints, 'slump')} from {count_of(report.tiles, 'tile')} "
        f"({report.no_data} without data, {len(report.failed)} failed{left_out}) "
        f"and {count_of(report.second_looks, 'second look')} in {report.seconds:.0f} s"
    )
    tell_timings(ledger)
    typer.echo(report.out)
    if report.failed:
        tell(f"These tiles failed; {again or 'run the same command with --overwrite'} to try them again:")
        for index, reason in report.failed[:_LISTED]:
            tell(f"  tile {index}: {reason}")
        if len(report.failed) > _LISTED:
            tell(f"  and {len(report.failed) - _LISTED} more; all stand in the coverage layer")
        raise typer.Exit(PARTIAL)


def tell_many(report: ManyReport, ledger: Ledger | None = None) -> None:
    """Say what a run over many scenes did and where its time went, and name what failed."""
    for note in report.notes:
        tell(f"Note: {note}")
    tell(
        f"{count_of(report.footprints, 'slump')} from {count_of(len(report.scenes), 'scene')}, "
        f"{report.superseded:,} more gave way to them, in {report.seconds:.0f} s"
    )
    tell_timings(ledger)
    typer.echo(report.out)
    failed = [(name, len(scene.failed)) for name, scene in report.scenes if scene.failed]
    for name, count in failed:
        tell(f"  {name}: {count_of(count, 'tile')} failed; they stand in the coverage layer")
    for name, problem in report.problems:
        tell(f"  {name} is not on the map: {problem}")
    if failed or report.problems:
        raise typer.Exit(PARTIAL)

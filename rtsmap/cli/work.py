"""`rtsmap work`: compute what is free of a run, beside any number of other workers."""

from __future__ import annotations

from typing import Annotated

import typer

from rtsmap.cli.exits import PARTIAL
from rtsmap.cli.inputs import MinScoreOption, RunArgument, SchedulerOption, WorkersOption


def command(
    *,
    run: RunArgument,
    shard: Annotated[
        str | None,
        typer.Option("--shard", help="Only one of equal shares of the tiles, without waiting: 2/4."),
    ] = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    min_score: MinScoreOption = None,
) -> None:
    """Compute the tiles of a run that no other worker has or holds, then the second looks.

    Start it as often as you like, on all machines that see the run directory: each shard is computed once.
    It ends when nothing is left. What a worker held that was killed is free for others at once on the
    same machine, after two minutes elsewhere.

    With --shard 2/4, for job arrays, it does the second of four shares of the tiles and waits for nobody;
    the job that finishes the last tile goes on to the second looks.

    Exit code 3: something of the run could not be done, or tiles failed.

    Examples:
      rtsmap work shared/run
      rtsmap work shared/run --workers 4
      rtsmap work shared/run --shard $SLURM_ARRAY_TASK_ID/64
    """
    from rtsmap.cli.console import progress_bars, tell
    from rtsmap.cli.reports import executor_of
    from rtsmap.errors import OptionsError
    from rtsmap.runs.in_process import InProcess
    from rtsmap.runs.progress import over_scenes
    from rtsmap.runs.run_folders import scene_directories
    from rtsmap.runs.workers import Job, Share
    from rtsmap.wording import count_of

    share = None if shard is None else Share.parse(shard)
    executor = executor_of(workers, scheduler)
    if share and executor:
        raise OptionsError("--shard is for job arrays: each job is one worker; leave out the others")
    changes = () if min_score is None else (("min_score", min_score),)
    job = Job(scene_directories(run), changes=changes, share=share)
    with progress_bars() as progress:
        done = (executor or InProcess(wait=share is None)).run(job, over_scenes(progress))
    complete = not (done.unfinished or done.problems)
    next_step = f"; `rtsmap merge {run} --out MAP.gpkg` makes the map" if complete else ""
    tell(f"{count_of(done.computed, 'shard')} computed{next_step}")
    if done.unfinished:
        tell(f"{count_of(len(done.unfinished), 'scene')} not finished: other shares are missing")
    for directory, problem in done.problems:
        tell(f"{directory.name}: {problem}")
    for directory, count in done.failed:
        tell(f"{directory.name}: tiles or second looks that failed: {count:,}")
    if done.failed:
        tell(f"`rtsmap work {run}` tries them again")
    if done.problems or done.failed:
        raise typer.Exit(PARTIAL)

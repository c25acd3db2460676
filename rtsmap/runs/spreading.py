"""One scene mapped by workers, wherever they are: planned, worked on, and its map made of what they left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rtsmap.errors import RunError
from rtsmap.models import ModelCard
from rtsmap.rasters import inspection
from rtsmap.rasters.inspection import Problems
from rtsmap.rasters.mosaic import DemFiles
from rtsmap.runs.engine import Engine, engine_at_rest, engine_to_plan, name_of
from rtsmap.runs.executors import Executor
from rtsmap.runs.mapping import PredictOptions, RunReport, SceneRun, check_out, make_map, open_scene
from rtsmap.runs.probability import check_probability
from rtsmap.runs.progress import Progress, silent
from rtsmap.runs.reopening import Asked, reopen
from rtsmap.runs.workers import Job, doubt_done
from rtsmap.timing import Ledger, measuring, stage

Model = Engine | ModelCard | str | Path | None


def plan_run(
    scene: Path | str,
    dem: DemFiles | None,
    directory: Path,
    *,
    model: Model = None,
    options: PredictOptions | None = None,
    inputs: Mapping[str, Any] | None = None,
    problems: Problems | None = None,
    outputs: Sequence[Path | str | None] = (),
) -> SceneRun:
    """Make the run directory of a scene, or find the one that is there the same; computes nothing.

    `inputs`, `problems` and `outputs` are those of `open_scene`.
    """
    options = options or PredictOptions()
    inspection.get_ready()
    with stage("loading"):
        engine = engine_to_plan(model, **options.of_network)
    with stage("planning"):
        return open_scene(
            scene,
            dem,
            engine,
            options,
            directory,
            inputs=inputs,
            model=name_of(model),
            problems=problems,
            outputs=outputs,
        )


def merge_run(
    directory: Path,
    out: Path | str,
    *,
    model: Engine | None = None,
    changes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    probability: Path | str | None = None,
    progress: Progress = silent,
) -> RunReport:
    """Make the map of a run whose shards are there, in seconds, with other thresholds if wanted.

    `probability` is a raster to write as well; see `rtsmap.runs.probability`.

    Raises RunError where shards, or looks that lower thresholds ask for, were not computed.
    """
    started, out = time.time(), Path(out)
    check_out(out, overwrite=overwrite)
    if probability is not None:
        check_probability(Path(probability), overwrite=overwrite)
    scene_run = reopen(directory, lambda asked: model or at_rest(asked), changes, outputs=(out, probability))
    return _merge(
        scene_run, out, overwrite=overwrite, probability=probability, started=started, progress=progress
    )


def _merge(
    scene_run: SceneRun,
    out: Path,
    *,
    overwrite: bool,
    probability: Path | str | None,
    started: float,
    progress: Progress,
) -> RunReport:
    work = scene_run.work(as_it_is=True)
    if not work.is_finished(progress):
        doubt_done(scene_run.run.directory)
        if work.tiles.is_complete:
            raise RunError(
                f"{scene_run.run.directory}: second looks that the map wants are not computed yet; `rtsmap "
                "work` on this folder computes them, with the same --min-score if one was given here"
            )
        work.stage.receipts  # noqa: B018 - raises, saying what is missing
    return make_map(
        scene_run, work, out, overwrite=overwrite, probability=probability, started=started, progress=progress
    )


def at_rest(asked: Asked) -> Engine:
    """The engine that a run was planned with, without its network."""
    return engine_at_rest(asked.model, asked.plan.model)


def predict_with(
    executor: Executor,
    scene: Path | str,
    dem: DemFiles | None = None,
    *,
    out: Path | str,
    model: Model = None,
    options: PredictOptions | None = None,
    inputs: Mapping[str, Any] | None = None,
    run_dir: Path | str | None = None,
    overwrite: bool = False,
    discard_run: bool = False,
    probability: Path | str | None = None,
    progress: Progress = silent,
    timings: Ledger | None = None,
) -> RunReport:
    """Like `mapping.predict`, with the network run by the workers of an executor.

    `inputs` may hold `aoi`, `exclude` and `band_files`. `timings` is told of this process, not of workers.
    """
    started, out, problems = time.time(), Path(out), Problems()
    with problems.collected():
        check_out(out, overwrite=overwrite)
        if probability is not None:
            check_probability(Path(probability), overwrite=overwrite)
    directory = (Path(run_dir) if run_dir else out.parent / f"{out.stem}.rtsrun").resolve()
    own = model if isinstance(model, Engine) else None
    with measuring(timings):
        scene_run = plan_run(
            scene,
            dem,
            directory,
            model=model,
            options=options,
            inputs=inputs,
            problems=problems,
            outputs=(out, probability),
        )
        with stage("workers"):
            done = executor.run(Job((directory,), own), lambda _, *told: progress(*told))
        for _, problem in done.problems:
            raise RunError(problem)
        report = _merge(
            scene_run, out, overwrite=overwrite, probability=probability, started=started, progress=progress
        )
    if discard_run:
        scene_run.run.discard()
        return replace(report, run_dir=None)
    return report

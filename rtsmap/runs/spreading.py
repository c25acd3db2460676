"""One scene mapped by workers, wherever they are: planned, worked on, and its map made of what they left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtsmap.errors import RunError
from rtsmap.models import ModelCard
from rtsmap.rasters.mosaic import DemFiles
from rtsmap.runs.engine import Engine, engine_at_rest, engine_of, name_of
from rtsmap.runs.executors import Executor
from rtsmap.runs.mapping import PredictOptions, RunReport, SceneRun, check_out, make_map, open_scene
from rtsmap.runs.progress import Progress, silent
from rtsmap.runs.reopening import Asked, reopen
from rtsmap.runs.workers import Job
from rtsmap.vectors.areas import AreaFiles

Model = Engine | ModelCard | str | Path | None


def plan_run(
    scene: Path | str,
    dem: DemFiles | None,
    directory: Path,
    *,
    model: Model = None,
    options: PredictOptions | None = None,
    areas: Mapping[str, AreaFiles | None] | None = None,
) -> SceneRun:
    """Make the run directory of a scene, or find the one that is there the same; computes nothing."""
    options = options or PredictOptions()
    engine = engine_of(model, options.device, options.precision, options.batch_size)
    return open_scene(scene, dem, engine, options, directory, areas=areas, model=name_of(model))


def merge_run(
    directory: Path,
    out: Path | str,
    *,
    model: Engine | None = None,
    changes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> RunReport:
    """Make the map of a run whose shards are there, in seconds, with other thresholds if wanted.

    Raises RunError where shards, or looks that lower thresholds ask for, were not computed.
    """
    started, out = time.time(), Path(out)
    check_out(out, overwrite=overwrite)
    scene_run = reopen(directory, lambda asked: model or at_rest(asked), changes)
    work = scene_run.work(as_it_is=True)
    if not work.is_finished(progress):
        work.stage.receipts  # noqa: B018 - raises, saying what is missing
    return make_map(scene_run, work, out, overwrite=overwrite, started=started, progress=progress)


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
    areas: Mapping[str, AreaFiles | None] | None = None,
    run_dir: Path | str | None = None,
    overwrite: bool = False,
    discard_run: bool = False,
    progress: Progress = silent,
) -> RunReport:
    """Like `mapping.predict`, with the network run by the workers of an executor."""
    out = Path(out)
    check_out(out, overwrite=overwrite)
    directory = (Path(run_dir) if run_dir else out.with_suffix(".rtsrun")).resolve()
    scene_run = plan_run(scene, dem, directory, model=model, options=options, areas=areas)
    own = model if isinstance(model, Engine) else None
    done = executor.run(Job((directory,), own), lambda _, *told: progress(*told))
    for _, problem in done.problems:
        raise RunError(problem)
    report = merge_run(directory, out, model=own, overwrite=overwrite, progress=progress)
    if discard_run:
        scene_run.run.discard()
    return report

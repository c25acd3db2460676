"""Many scenes in one run: planned together, worked on by whoever is there, and made one map.

The run directory holds scenes.json and a folder for each scene, which is a run directory like that of one
scene, with that scene's map in it once it was merged.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

from rtsmap import __version__
from rtsmap.atomic import parts_of, refuse_inputs, remove_parts, whole_file
from rtsmap.errors import ModelError, OptionsError, RtsmapError, RunError
from rtsmap.instances.overlaps import RULES
from rtsmap.rasters import inspection
from rtsmap.rasters.acquisition import FILE_NAME, acquisition_of
from rtsmap.rasters.bands import parse_bands
from rtsmap.rasters.opening import GDAL_ERRORS
from rtsmap.rasters.sources import read_tags
from rtsmap.runs.ahead import ahead
from rtsmap.runs.engine import Engine, engine_to_plan, name_of
from rtsmap.runs.executors import Executor
from rtsmap.runs.mapping import PredictOptions, RunReport, check_out, open_scene
from rtsmap.runs.progress import Progress, over_scenes, silent
from rtsmap.runs.reopening import AREAS, read_asked
from rtsmap.runs.run_folders import SCENES, SceneEntry, read_entries
from rtsmap.runs.scene_lists import SceneItem
from rtsmap.runs.spreading import Model, merge_run
from rtsmap.runs.workers import Job
from rtsmap.timing import Ledger, measuring, stage
from rtsmap.vectors.areas import area_files
from rtsmap.vectors.united import SceneMap, unite_maps

MAP = "map.gpkg"
_PLANNERS = 4
_MERGERS = 2


@dataclass(frozen=True, slots=True)
class ManyReport:
    """What a run over many scenes did. `problems` are (scene, sentence) of scenes that are not in the map.

    `footprints` stand, `superseded` give way to them. `scenes` are the reports of those that are in the map.
    `notes` are sentences for the user.
    """

    out: Path
    footprints: int
    superseded: int
    scenes: tuple[tuple[str, RunReport], ...]
    problems: tuple[tuple[str, str], ...]
    seconds: float
    notes: tuple[str, ...] = ()


def plan_scenes(
    items: Sequence[SceneItem],
    directory: Path,
    *,
    model: Model = None,
    options: PredictOptions | None = None,
    inputs: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> list[SceneEntry]:
    """Plan every scene into a folder of its own; what cannot be planned is noted and stops no other.

    `inputs` are those of `open_scene`, for all scenes. Raises RunError when there is none that can.
    """
    options = options or PredictOptions()
    inspection.get_ready()
    with stage("loading"):
        engine = engine_to_plan(model, **options.of_network)
    directory.mkdir(parents=True, exist_ok=True)

    @stage("planning")
    def plan(item: SceneItem) -> SceneEntry:
        scene_id = item.scene_id or options.scene_id or _told_apart(item)
        own = replace(options, date=item.date or options.date, scene_id=scene_id)
        entry = SceneEntry(item.name, item.scene, own.scene_id or item.name, own.date, None)
        try:
            if item.bands:
                own = replace(own, bands=parse_bands(item.bands))
            opened = open_scene(
                item.scene,
                list(item.dem) or None,
                engine,
                own,
                directory / item.name,
                inputs={**(inputs or {}), "dem_may_miss": item.dem_may_miss},
                model=name_of(model),
            )
        except ModelError:
            raise
        except RtsmapError as exc:
            return replace(entry, problem=str(exc))
        taken = opened.prepared.acquisition
        return replace(entry, scene_id=taken.scene_id, acquired=taken.acquired)

    entries: list[SceneEntry] = []
    with ThreadPoolExecutor(_PLANNERS, "plan") as pool:
        for entry in ahead(pool, plan, items, depth=2 * _PLANNERS):
            entries.append(entry)
            progress("planning", len(entries), len(items))
    if all(entry.problem for entry in entries):
        problems = [(entry.name, str(entry.problem)) for entry in entries]
        raise RunError(f"none of the scenes can be mapped: {_listed(problems)}")
    with whole_file(directory / SCENES, overwrite=True) as temporary:
        text = json.dumps({"scenes": [entry.to_dict() for entry in entries]}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
    return entries


def predict_scenes(
    executor: Executor,
    items: Sequence[SceneItem],
    *,
    out: Path | str,
    overlaps: str = "best",
    model: Model = None,
    options: PredictOptions | None = None,
    inputs: Mapping[str, Any] | None = None,
    run_dir: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    timings: Ledger | None = None,
) -> ManyReport:
    """Map many scenes into one GeoPackage; `overlaps` is a rule of `rtsmap.instances.overlaps`.

    One bad scene does not stop the others: the report names it. `inputs` may hold `aoi`, `exclude` and
    `band_files`. `timings` is told of this process, not of workers in others.
    """
    started, out = time.time(), Path(out)
    check_out(out, overwrite=overwrite)
    areas = (area_files((inputs or {}).get(name)) for name in AREAS)
    refuse_inputs(out, [*chain.from_iterable(areas), *(item.scene for item in items)])
    check_rule(overlaps)
    directory = (Path(run_dir) if run_dir else out.with_suffix(".rtsrun")).resolve()
    own = model if isinstance(model, Engine) else None
    with measuring(timings):
        entries = plan_scenes(
            items, directory, model=model, options=options, inputs=inputs, progress=progress
        )
        _refuse_undated(entries, overlaps)
        good = tuple(directory / entry.name for entry in entries if not entry.problem)
        with stage("workers"):
            done = executor.run(Job(good, own), over_scenes(progress))
        report = merge_scenes(
            directory,
            out,
            overlaps=overlaps,
            model=own,
            overwrite=overwrite,
            progress=progress,
            problems={path.name: problem for path, problem in done.problems},
        )
    return replace(report, seconds=time.time() - started)


def merge_scenes(
    directory: Path,
    out: Path | str,
    *,
    overlaps: str = "best",
    model: Engine | None = None,
    changes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    problems: Mapping[str, str] | None = None,
) -> ManyReport:
    """Make each scene's map of what the network has seen, and one of all. `problems` are known already."""
    started, out = time.time(), Path(out)
    check_out(out, overwrite=overwrite)
    check_rule(overlaps)
    entries = read_entries(directory)
    _refuse_undated(entries, overlaps)
    _refuse_inputs(out, directory, entries)
    remove_parts([*parts_of(out), *parts_of(directory / SCENES)], started)
    bad = {entry.name: entry.problem for entry in entries if entry.problem} | dict(problems or {})
    reports: list[tuple[SceneEntry, RunReport]] = []
    wanted = [entry for entry in entries if entry.name not in bad]
    make = _scene_merger(directory, model, changes)
    with ThreadPoolExecutor(_MERGERS, "merge") as pool:
        for count, (entry, made) in enumerate(ahead(pool, make, wanted, depth=2 * _MERGERS), 1):
            progress("merging scenes", count, len(wanted))
            if isinstance(made, str):
                bad[entry.name] = made
            else:
                reports.append((entry, made))
    if not reports:
        raise RunError("no scene can be put on the map: " + _listed(list(bad.items())))
    maps = [SceneMap(report.out, entry.name, entry.acquired) for entry, report in reports]
    record = _record(entries, bad, overlaps)
    united = unite_maps(maps, out, rule=overlaps, record=record, overwrite=overwrite)
    by_name = tuple((entry.name, report) for entry, report in reports)
    return ManyReport(
        out,
        united.standing,
        united.superseded,
        by_name,
        tuple(sorted(bad.items())),
        time.time() - started,
        (
            *((_cut_note(united.cut),) if united.cut else ()),
            *chain.from_iterable(report.kept for _, report in reports),
            *united.notes,
        ),
    )


def discard(report: ManyReport) -> None:
    """Remove the run directory of a map that was made."""
    for _, scene in report.scenes:
        shutil.rmtree(scene.out.parent, ignore_errors=True)
    directory = report.scenes[0][1].out.parent.parent
    (directory / SCENES).unlink(missing_ok=True)
    with suppress(OSError):
        directory.rmdir()


def _scene_merger(
    directory: Path, model: Engine | None, changes: Mapping[str, Any] | None
) -> Callable[[SceneEntry], tuple[SceneEntry, RunReport | str]]:
    """Makes the map of a scene, or says why that cannot be."""

    def make(entry: SceneEntry) -> tuple[SceneEntry, RunReport | str]:
        folder = directory / entry.name
        try:
            return entry, merge_run(folder, folder / MAP, model=model, changes=changes, overwrite=True)
        except RtsmapError as exc:
            return entry, str(exc)

    return make


def _told_apart(item: SceneItem) -> str | None:
    """What to call a scene of which nothing but the name of its file tells, when another file has it, too."""
    if not item.is_namesake:
        return None
    # what is wrong with the file is told where it is opened
    with suppress(*GDAL_ERRORS):
        if acquisition_of(item.scene, read_tags(item.scene)).scene_id_from == FILE_NAME:
            return item.name
    return None


def check_rule(overlaps: str) -> None:
    """Refuse a rule that is none."""
    if overlaps not in RULES:
        raise OptionsError(f"overlaps '{overlaps}': wanted one of {', '.join(RULES)}")


def _refuse_inputs(out: Path, directory: Path, entries: Sequence[SceneEntry]) -> None:
    for entry in entries:
        # a plan that cannot be read is told where its scene is worked on
        with suppress(RunError):
            refuse_inputs(out, read_asked(directory / entry.name).plan.files)


def _refuse_undated(entries: Sequence[SceneEntry], overlaps: str) -> None:
    undated = [entry.name for entry in entries if entry.acquired is None and not entry.problem]
    if overlaps == "newest" and undated:
        raise OptionsError(
            f"--overlaps newest needs to know when scenes were taken, and nothing tells of {len(undated)} of "
            f"them: {', '.join(undated[:5])}. Name the dates in a table of scenes (columns scene, date), or "
            "choose another rule"
        )


def _cut_note(pairs: int) -> str:
    return (
        f"pairs of footprints that meet at a joint of scenes, where one slump may count as two: {pairs:,}. "
        "Parts of one picture are seen whole as one scene: gdalbuildvrt SCENE.vrt PART PART ..."
    )


def _record(entries: Sequence[SceneEntry], bad: Mapping[str, str], overlaps: str) -> dict[str, Any]:
    return {
        "rtsmap_version": __version__,
        "finished_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "overlaps": overlaps,
        "scenes": [{**entry.to_dict(), "problem": bad.get(entry.name)} for entry in entries],
    }


def _listed(problems: Sequence[tuple[str, str]], limit: int = 5) -> str:
    more = f"; and {len(problems) - limit} more" if len(problems) > limit else ""
    return "; ".join(f"{name}: {problem}" for name, problem in problems[:limit]) + more

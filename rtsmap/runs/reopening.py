"""Runs opened from their directories alone: by workers that come later, and to make the map again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affine import Affine
from odc.geo.geobox import GeoBox

from rtsmap.errors import RunError
from rtsmap.rasters.tiling import TileOptions
from rtsmap.runs.engine import Engine
from rtsmap.runs.mapping import PredictOptions, SceneRun, open_scene
from rtsmap.runs.plan import PLAN, Plan

AREAS = ("aoi", "exclude")
_BAND = "band_"
FindEngine = Callable[["Asked"], Engine]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a plan.json says beside the plan: the inputs' places, the model's name, and the options.

    `inputs` are further ones, as `open_scene` takes them.
    """

    scene: str
    dem: str | list[str] | None
    inputs: Mapping[str, Any]
    model: str | None
    options: PredictOptions
    plan: Plan


def read_asked(directory: Path, changes: Mapping[str, Any] | None = None) -> Asked:
    """What a run was asked for, with `changes` to the options. Raises RunError for what is no run."""
    path = directory / PLAN
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        given = {**data["asked"]["options"], **(changes or {})}
        return Asked(
            scene=data["paths"]["scene"],
            dem=data["paths"]["dem"],
            inputs=_given(data["paths"]) | _allowed(data["asked"]),
            model=data["asked"]["model"],
            options=PredictOptions.of(**given),
            plan=_plan(data),
        )
    except FileNotFoundError as exc:
        raise RunError(
            f"{directory} is no run directory: it has no {PLAN}. `rtsmap plan` or `predict` makes one"
        ) from exc
    except (OSError, ValueError, LookupError, TypeError) as exc:
        raise RunError(
            f"{path} cannot be read ({type(exc).__name__}: {exc}). It was made by another version, or is "
            "damaged: remove the directory and plan again"
        ) from exc


def _given(paths: Mapping[str, Any]) -> dict[str, Any]:
    """Files of areas, and those of bands, which stand in a plan as `band_NAME`."""
    areas = {name: files for name, files in paths.items() if name in AREAS}
    bands = {name[len(_BAND) :]: file for name, file in paths.items() if name.startswith(_BAND)}
    return {**areas, "band_files": bands} if bands else areas


def _allowed(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {"dem_may_miss": True} if asked.get("dem_may_miss") is True else {}


def _plan(data: Mapping[str, Any]) -> Plan:
    grid, tiles = data["grid"], data["tiles"]
    return Plan(
        inputs=data["inputs"],
        model=data["model"],
        options=data["options"],
        geobox=GeoBox(tuple(grid["shape"]), Affine(*grid["affine"]), grid["crs"]),
        tiles=TileOptions(tiles["chip_px"], tiles["overlap_px"], tiles["origin_px"]),
        shard_tiles=tiles["shard_tiles"],
        versions=data["versions"],
        paths=data["paths"],
        asked=data["asked"],
    )


def reopen(
    directory: Path,
    find_engine: FindEngine,
    changes: Mapping[str, Any] | None = None,
    *,
    outputs: Sequence[Path | str | None] = (),
) -> SceneRun:
    """Open a run where its inputs are, or were found when it was planned; they are checked anew.

    Raises InputError for `outputs` that are inputs.
    """
    asked = read_asked(directory, changes)
    engine = find_engine(asked)
    return open_scene(
        asked.scene,
        asked.dem,
        engine,
        asked.options,
        directory,
        inputs=asked.inputs,
        model=asked.model,
        renew=False,
        outputs=outputs,
    )

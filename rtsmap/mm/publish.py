"""A finished training becomes a model bundle."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtsmap.errors import OptionsError, RunError
from rtsmap.mm.checkpoints import fill, save_weights
from rtsmap.mm.held_out import best_threshold
from rtsmap.mm.recipe import Recipe
from rtsmap.mm.register import SlumpNetwork, build_network
from rtsmap.mm.stages import CONFIG, RECORD, averaged_weights, steps_done
from rtsmap.mm.train import read_rows
from rtsmap.models import ModelCard, Score, write_bundle


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """What the card says and a run does not know.

    None means: the last stage; chips as in training with a quarter of overlap; the score threshold
    of the best F1 on held-out chips, else 0.5; texts made from the run's record.
    """

    licence: str
    version: str = "0.1.0"
    stage: str | None = None
    description: str | None = None
    training_data: str | None = None
    score_threshold: float | None = None
    mask_threshold: int = 128
    chip_px: int | None = None
    overlap_px: int | None = None
    views: int = 1


def publish(
    run: Path,
    name: str,
    out: Path,
    options: PublishOptions,
    *,
    scores: tuple[Score, ...] = (),
    overwrite: bool = False,
) -> ModelCard:
    """Write the averaged weights of a run's stage as a bundle, in half precision; read back and verified.

    Raises RunError for a folder that holds no training, a stage that is not finished, or one whose
    held-out chips were never looked at where no threshold is given.
    """
    if not (run / CONFIG).is_file() or not (run / RECORD).is_file():
        raise RunError(
            f"{run} holds no training: {CONFIG} or {RECORD} is missing; name the --out of rtsmap train"
        )
    recipe = Recipe.read(run / CONFIG)
    stage = _finished_stage(recipe, run, options.stage)
    network, numbers = _trained(recipe, stage, run, options.views)
    chip_px = options.chip_px or recipe.chips.chip_px
    watched = _watched(recipe, stage, run)
    threshold = options.score_threshold
    if threshold is None and recipe.data.held_out and not watched:
        raise RunError(
            f"{run}: nothing was measured on held-out chips of stage '{stage}', so no score threshold is "
            "known; run rtsmap train again to finish its last look, or give one with --score-threshold"
        )
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        save_weights(network, weights)
        return write_bundle(
            out,
            weights=weights,
            network=numbers,
            spec=recipe.spec(stage),
            name=name,
            version=options.version,
            description=options.description or _description(recipe, stage),
            licence=options.licence,
            training_data=options.training_data or _training_data(run),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            chip_px=chip_px,
            overlap_px=chip_px // 4 if options.overlap_px is None else options.overlap_px,
            score_threshold=best_threshold(watched) if threshold is None else threshold,
            mask_threshold=options.mask_threshold,
            scores=scores or _watched_scores(watched, run, stage),
            overwrite=overwrite,
        )


def _finished_stage(recipe: Recipe, run: Path, wanted: str | None) -> str:
    stage = wanted or list(recipe.stages)[-1]
    if stage not in recipe.stages:
        raise OptionsError(f"{run}: no stage '{stage}'; it has {', '.join(recipe.stages)}")
    done, steps = steps_done(run / stage), recipe.stages[stage].options.steps
    if done < steps:
        raise RunError(
            f"{run}: stage '{stage}' has done {done} of {steps} steps; run rtsmap train again to finish it"
        )
    if not recipe.stages[stage].detects:
        raise RunError(
            f"{run}: stage '{stage}' has learnt per-pixel labels only, its heads know nothing; "
            "publish a stage with loss = 'full'"
        )
    return stage


def _watched(recipe: Recipe, stage: str, run: Path) -> list[dict[str, float]]:
    """What was measured on held-out chips, up to the last step."""
    rows, steps = read_rows(run / stage / "validation.jsonl"), recipe.stages[stage].options.steps
    if rows and rows[-1]["step"] != steps:
        raise RunError(
            f"{run}: stage '{stage}' was stopped in its last look at held-out chips, after step {steps}; "
            "run rtsmap train again to finish it"
        )
    return rows


def _trained(recipe: Recipe, stage: str, run: Path, views: int) -> tuple[SlumpNetwork, dict[str, Any]]:
    numbers = recipe.network_of(stage) | ({"views": views} if views > 1 else {})
    network = build_network(numbers, recipe.spec(stage))
    fill(network, averaged_weights(run / stage), str(run / stage))
    return network, numbers


def _description(recipe: Recipe, stage: str) -> str:
    names = " and ".join(recipe.spec(stage).names)
    fusion = recipe.network_of(stage).get("fusion", "residual_cross_attention")
    how = f"fused by {fusion.replace('_', ' ')}" if len(recipe.spec(stage).names) > 1 else "alone"
    stages = " -> ".join(f"{key} ({value.options.steps} steps)" for key, value in recipe.stages.items())
    return f"Cascade Mask R-CNN on MViTv2 for {names} bands, {how}. Trained in stages: {stages}."


def _training_data(run: Path) -> str:
    packs = json.loads((run / RECORD).read_text(encoding="utf-8"))["packs"]
    listed = "; ".join(f"{Path(p['path']).name}: {p['images']} images, {p['slumps']} slumps" for p in packs)
    return f"Packs, held-out ones included: {listed}."


def _watched_scores(watched: list[dict[str, float]], run: Path, stage: str) -> tuple[Score, ...]:
    """What the training itself measured, on chips that it did not learn from."""
    last = watched[-1] if watched else {}
    titles = {"f1_30": "best F1 at IoU 0.3", "ap50": "mask AP50"}
    return tuple(
        Score(
            f"{title}, {key.removesuffix('_' + part)}",
            round(last[key], 4),
            f"held-out chips watched in training, stage {stage}, threshold chosen on them",
            f"rtsmap train {run.name}/{CONFIG} --out {run.name}",
        )
        for key in last
        for part, title in titles.items()
        if key.endswith(f"_{part}")
    )

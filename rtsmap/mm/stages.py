"""From a recipe to trained weights: one stage after another, each going on where it was stopped.

RUN/config.toml         the recipe, every number written out
RUN/record.json         versions, packs and starts
RUN/<stage>/last.pt     weights, averaged weights and optimizer, after the last checkpoint
RUN/<stage>/log.jsonl   losses, also as log.csv; validation.jsonl: scores on held-out chips
RUN/<stage>/predictions.png   held-out chips with true outlines and those found at the end
RUN/curves.png          both logs, drawn
RUN/tensorboard/<stage> both, for TensorBoard, where asked for
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

import torch

from rtsmap import __version__
from rtsmap.errors import (
    CardError,
    InputError,
    OptionsError,
    PlanMismatchError,
    RunError,
    WeightsError,
)
from rtsmap.mm.backbones import branches_of, freeze_backbones, planes_of, take_branch
from rtsmap.mm.checkpoints import (
    Weights,
    fill,
    first_line,
    is_of_mobilenet,
    load_imagenet_guide,
    load_official_backbone,
    load_weights,
    take_pyramid,
)
from rtsmap.mm.curves import draw_curves
from rtsmap.mm.detector import resolve_device
from rtsmap.mm.held_out import HeldOut, best_threshold
from rtsmap.mm.packs import PackedImage, read_index
from rtsmap.mm.recipe import AUTO, FROZEN, PARTLY, SCRATCH, DataConfig, Recipe, StageConfig
from rtsmap.mm.register import SlumpNetwork, build_network
from rtsmap.mm.samples import SampleSource
from rtsmap.mm.sheet import draw_predictions
from rtsmap.mm.tables import differences
from rtsmap.mm.tensorboard import Events, check_tensorboard, open_events
from rtsmap.mm.train import Ranks, append_row, drop_rows_after, read_rows, seed_everything, train
from rtsmap.rasters.bands import OPTICAL_RGB, InputSpec

CONFIG, RECORD, CHECKPOINT = "config.toml", "record.json", "last.pt"
CURVES, SHEET = "curves.png", "predictions.png"
_BEGINNINGS = {RECORD, f"{RECORD}.part", f"{CONFIG}.part"}
"""What a start that was stopped before the first stage may leave."""
_SAMPLED_BYTES = 1 << 20
_SAME_RESOLUTION = 0.01


@dataclass(frozen=True, slots=True)
class Teller:
    """Who is told how a training goes on: (stage, steps done, of) and (stage, row of the log)."""

    progress: Callable[[str, int, int], None] = lambda *_: None
    row: Callable[[str, Mapping[str, float]], None] = lambda *_: None
    note: Callable[[str], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Packs:
    """The images of a recipe: by group to learn from, and by set to watch."""

    groups: Mapping[str, tuple[PackedImage, ...]]
    held_out: Mapping[str, tuple[PackedImage, ...]]

    @classmethod
    def find(cls, recipe: Recipe) -> Packs:
        """Open all packs.

        Raises InputError for a pattern without files, for ground on both sides and for another resolution.
        """
        groups = {name: _images(group.packs) for name, group in recipe.data.groups.items()}
        held_out = {name: _images(patterns) for name, patterns in recipe.data.held_out.items()}
        for images in (*groups.values(), *held_out.values()):
            _check_resolution(images, recipe.data.resolution_m)
            _check_bands(images, recipe.data)
        learnt = {image.group: image.path for images in groups.values() for image in images}
        for name, images in held_out.items():
            both = sorted({image.group for image in images} & set(learnt))
            if both:
                raise InputError(
                    f"held_out.{name}: the group '{both[0]}' is also learnt from, in {learnt[both[0]]}; "
                    "one ground must be on one side only. Pack it apart, or give other ground another --group"
                )
        return cls(groups, held_out)

    def files(self) -> list[Path]:
        """All packs, each once."""
        sides = (self.groups, self.held_out)
        return sorted({i.path for side in sides for images in side.values() for i in images})


def _check_resolution(images: Sequence[PackedImage], wanted_m: float) -> None:
    for image in images:
        told_m = image.resolution_m
        if told_m is not None and not math.isclose(told_m, wanted_m, rel_tol=_SAME_RESOLUTION):
            raise InputError(
                f"{image.path}: a pixel of '{image.name}' shows {told_m:g} m, but data.resolution_m = "
                f"{wanted_m:g}; pack the sources at {wanted_m:g} m, or change data.resolution_m"
            )


def _check_bands(images: Sequence[PackedImage], data: DataConfig) -> None:
    """Every image must show the optical modality; all others may be missing."""
    if "optical" not in data.modalities:
        return
    optical = data.modality("optical")
    blind = next((image for image in images if not image.shows(optical)), None)
    if blind is not None:
        missing = sorted(set(optical.band_names) - {*OPTICAL_RGB.band_names, *blind.spectral})
        raise InputError(
            f"{blind.path}: '{blind.name}' has no {', '.join(missing)}, which data.bands.optical wants. "
            "Leave the pack or the band out, or put the band into 'spectral', which may be missing"
        )


def _images(patterns: Sequence[str]) -> tuple[PackedImage, ...]:
    paths: list[Path] = []
    for pattern in patterns:
        literal = Path(pattern).exists() or not any(c in pattern for c in "*?[")
        found = [pattern] if literal else sorted(glob(pattern))  # noqa: PTH207
        if not found:
            raise InputError(f"no pack fits '{pattern}'; paths are relative to where rtsmap is started")
        paths += [Path(path) for path in found if Path(path) not in paths]
    return tuple(image for path in paths for image in read_index(path))


def run_recipe(
    recipe: Recipe,
    directory: Path,
    *,
    ranks: Ranks | None = None,
    tell: Teller | None = None,
    tensorboard: bool = False,
) -> Path:
    """Train all stages of a recipe in `directory`; gives the folder of the last one.

    Started again after a kill it ends with the same weights. Raises PlanMismatchError when the
    directory belongs to another recipe or to other packs, naming what differs, OptionsError for
    `tensorboard` without the package and, before anything is trained, for a network that cannot be built,
    and WeightsError for a file of weights that a stage cannot start from.
    """
    ranks, tell = ranks or Ranks(), tell or Teller()
    if tensorboard:
        check_tensorboard()
    packs = Packs.find(recipe)
    device = _device(recipe.device, ranks)
    _check_stages(recipe, directory)
    if not ranks.rank:
        _open_run(directory, recipe, packs, {"device": device, "processes": ranks.count})
    ranks.wait()
    training = _Training(recipe, packs, directory, device, ranks, tell, tensorboard and not ranks.rank)
    worked = False
    for name in recipe.stages:
        worked |= training.run_stage(name)
        training.draw_stage(name)
        # the next stage reads what the first process has written
        ranks.wait()
    if not ranks.rank and (worked or not (directory / CURVES).exists()):
        draw_curves(directory, recipe.stages, directory / CURVES)
    return directory / list(recipe.stages)[-1]


def _device(wanted: str, ranks: Ranks) -> str:
    if ranks.count > 1 and wanted.startswith("cuda:"):
        raise OptionsError(
            f"device '{wanted}' is one GPU, for {ranks.count} processes; wanted cuda: one for each"
        )
    device = resolve_device(wanted)
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        # there may be fewer GPUs than processes
        device = resolve_device(f"cuda:{os.environ['LOCAL_RANK']}")
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    return device


def _check_stages(recipe: Recipe, directory: Path) -> None:
    """Try networks of stages yet to begin with the files that they name; others have their own checkpoint."""
    for name, stage in recipe.stages.items():
        if steps_done(directory / name):
            continue
        try:
            network = build_network(recipe.network_of(name), recipe.spec(name))
        except CardError as exc:
            raise OptionsError(f"stage '{name}': {str(exc).replace('model.json', '[network]')}") from exc
        take_files(network, stage)


# The run directory


def _open_run(directory: Path, recipe: Recipe, packs: Packs, machine: Mapping[str, Any]) -> None:
    """Make the directory, or see that it is this recipe's; note the start."""
    directory.mkdir(parents=True, exist_ok=True)
    config, record = directory / CONFIG, directory / RECORD
    facts = {"packs": [_pack_facts(path) for path in packs.files()], "starts": list[Any]()}
    if config.exists() and record.exists():
        # read as a recipe, so that numbers which an older rtsmap did not know have their defaults
        then = Recipe.read(config)
        stored = json.loads(record.read_text(encoding="utf-8"))
        # a training may go on elsewhere
        changed = differences({**recipe.to_dict(), "device": 0}, {**then.to_dict(), "device": 0})
        changed += _other_order("data.groups", recipe.data.groups, then.data.groups)
        changed += _other_order("stages", recipe.stages, then.stages)
        changed += _changed_packs(facts["packs"], stored["packs"])
        if changed:
            raise PlanMismatchError(
                f"{directory} belongs to another training: {'; '.join(changed[:5])}. "
                "Name another --out, or take the old configuration"
            )
        _check_processes(directory, recipe, stored["starts"], machine["processes"])
        facts = stored
    elif any(path.name not in _BEGINNINGS for path in directory.iterdir()):
        raise RunError(f"{directory} is not empty and holds no training; name a new folder with --out")
    facts["starts"].append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "rtsmap": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            **machine,
        }
    )
    _write(record, json.dumps(facts, indent=1) + "\n")
    _write(config, recipe.to_toml())


def _other_order(what: str, now: Iterable[str], then: Iterable[str]) -> list[str]:
    """Samples are drawn from groups, and stages trained, as they stand in the recipe."""
    here, there = list(now), list(then)
    if here == there or set(here) != set(there):
        return []
    return [f"{what}: in the order {', '.join(here)} now, {', '.join(there)} then"]


def _check_processes(
    directory: Path, recipe: Recipe, starts: Sequence[Mapping[str, Any]], processes: int
) -> None:
    """Another number of processes draws other samples, so it may only start what has not begun."""
    then = starts[-1]["processes"] if starts else processes
    done = [steps_done(directory / name) for name in recipe.stages]
    finished = done == [stage.options.steps for stage in recipe.stages.values()]
    if then != processes and any(done) and not finished:
        raise PlanMismatchError(
            f"{directory} was trained by {then} process{'es' * (then > 1)}, now there "
            f"{'are' if processes > 1 else 'is'} {processes}: a step would see other samples. Go on with "
            f"{f'torchrun --nproc-per-node {then}' if then > 1 else 'one process'}, or name another --out"
        )


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _pack_facts(path: Path) -> dict[str, Any]:
    """Size and a digest of the two ends, of which the first holds the names and places of the images."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLED_BYTES))
        file.seek(max(0, size - _SAMPLED_BYTES))
        digest.update(file.read())
    images = list(read_index(path))
    slumps = sum(len(image.slumps) for image in images)
    facts = {"path": str(path), "bytes": size, "sha256_of_ends": digest.hexdigest()}
    return {**facts, "images": len(images), "slumps": slumps}


def _changed_packs(now: Sequence[Mapping[str, Any]], then: Sequence[Mapping[str, Any]]) -> list[str]:
    old, new = ({fact["path"]: fact for fact in facts} for facts in (then, now))
    told = [f"pack {path} was not there" for path in new if path not in old]
    told += [f"pack {path} is gone" for path in old if path not in new]
    return told + [
        f"pack {path} has another content" for path in new if old.get(path, new[path]) != new[path]
    ]


# One stage


@dataclass(frozen=True, slots=True)
class _Training:
    """All that the stages of a run share."""

    recipe: Recipe
    packs: Packs
    directory: Path
    device: str
    ranks: Ranks
    tell: Teller
    tensorboard: bool

    def run_stage(self, name: str) -> bool:
        """Train one stage to its end, with its last look at held-out chips; False when all was there."""
        options, folder = self.recipe.stages[name].options, self.directory / name
        done = steps_done(folder)
        self.tell.progress(name, done, options.steps)
        if done == options.steps:
            return self._looked_again(name)

        with self._events(name, done) as events:

            def on_step(_step: int, row: Mapping[str, float]) -> None:
                write_csv(folder)
                if events:
                    events.add("train", row)
                self.tell.row(name, row)

            seed_everything(options.seed)
            train(
                self._network(name, resumed=done > 0),
                self._source(name),
                options,
                folder,
                device=self.device,
                ranks=self.ranks,
                validate=self._validation(name, events),
                on_step=on_step,
                tick=lambda step: self.tell.progress(name, step, options.steps),
            )
        return True

    def _looked_again(self, name: str) -> bool:
        """Look at held-out chips where a stop came between a stage's last step and its last look."""
        stage, path = self.recipe.stages[name], self.directory / name / "validation.jsonl"
        steps = stage.options.steps
        if not (self.recipe.data.held_out and stage.detects) or _last_step(path) == steps:
            return False
        with self._events(name, steps) as events:
            validate = self._validation(name, events)
            scores = validate(self._trained(name), steps) if validate else {}
        if scores:
            drop_rows_after(path, steps)
            append_row(path, {"step": steps, **scores})
        return bool(scores)

    def _trained(self, name: str) -> SlumpNetwork:
        """The averaged network of a finished stage."""
        network = build_network(self.recipe.network_of(name), self.recipe.spec(name))
        fill(network, averaged_weights(self.directory / name), str(self.directory / name))
        return network

    def draw_stage(self, name: str) -> None:
        """Draw what a finished stage finds on held-out chips, unless that was done before."""
        sheet = self.directory / name / SHEET
        held_out = self._held_out(name)
        if held_out is None or not held_out.sets or sheet.exists():
            return
        network = self._trained(name)
        watched = read_rows(self.directory / name / "validation.jsonl")
        found = held_out.detections(network, self.device)
        draw_predictions(sheet, held_out, found, network.spec, best_threshold(watched))

    def _events(self, name: str, done: int) -> AbstractContextManager[Events | None]:
        return closing(open_events(self.directory, name, done)) if self.tensorboard else nullcontext()

    def _network(self, name: str, *, resumed: bool) -> SlumpNetwork:
        """A resumed stage finds its weights in its own checkpoint; what is frozen it must know."""
        stage = self.recipe.stages[name]
        network = build_network(self.recipe.network_of(name), self.recipe.spec(name))
        for note in [] if resumed else start_network(network, name, self.recipe, self.directory):
            self.tell.note(f"{name}: {note}")
        if stage.backbones == FROZEN:
            freeze_backbones(network)
        elif stage.backbones == PARTLY:
            freeze_backbones(network, stage.frozen_stages)
        return network

    def _source(self, name: str) -> SampleSource:
        spec, groups = self.recipe.spec(name), self.recipe.data.groups
        usable = {group: _usable(images, spec) for group, images in self.packs.groups.items()}
        shares = [(groups[group].share, images) for group, images in usable.items() if images]
        if not shares:
            raise InputError(f"stage '{name}': no pack holds an image with {' or '.join(spec.names)}")
        self._note_missing(name, usable)
        chips = self.recipe.chips
        chips = replace(chips, augment=replace(chips.augment, **dict.fromkeys(_indispensable(spec), 0.0)))
        return SampleSource(shares, spec, chips, self.recipe.stages[name].options.seed)

    def _note_missing(self, name: str, usable: Mapping[str, Sequence[PackedImage]]) -> None:
        """Say what lies in the packs and cannot be used as it is."""
        terrain = next((m for m in self.recipe.spec(name).modalities if m.is_terrain), None)
        images = [image for group in usable.values() for image in group]
        flat = [i for i in images if terrain is not None and i.has_terrain and not i.shows(terrain)]
        if flat:
            self.tell.note(
                f"{name}: {len(flat)} of {len(images)} images hold heights without gradients, so that slope "
                "and shading cannot be made; their terrain counts as missing. "
                "data.bands.terrain = ['relative_elevation'] uses it"
            )

    def _validation(
        self, name: str, events: Events | None
    ) -> Callable[[SlumpNetwork, int], dict[str, float]] | None:
        stage, held_out = self.recipe.stages[name], self._held_out(name)
        if held_out is None:
            return None

        def validate(average: SlumpNetwork, step: int) -> dict[str, float]:
            due = step == stage.options.steps or step % stage.validate_every < stage.options.keep_every
            scores = held_out.scores(average, self.device) if due else {}
            if events:
                events.add("held_out", {"step": step, **scores})
            return scores

        return validate

    def _held_out(self, name: str) -> HeldOut | None:
        stage, spec = self.recipe.stages[name], self.recipe.spec(name)
        # heads that do not learn are not worth a look, and one process looks for all
        if not stage.detects or self.ranks.rank:
            return None
        images = {key: _usable(images, spec) for key, images in self.packs.held_out.items()}
        return HeldOut.cut(images, spec, self.recipe.chips, self.recipe.data.held_out_chips)


def _last_step(path: Path) -> float:
    """Step of the last row of a log, 0 without one."""
    rows = read_rows(path)
    return rows[-1]["step"] if rows else 0


def _usable(images: Sequence[PackedImage], spec: InputSpec) -> list[PackedImage]:
    """Images that show something to the network."""
    return [image for image in images if any(image.shows(modality) for modality in spec.modalities)]


def _indispensable(spec: InputSpec) -> list[str]:
    """Shares of missing bands that must be none, or some chips would show nothing where slumps are.

    Such a chip teaches nothing, and its gradients are wild.
    """
    if "optical" not in spec.names:
        return ["dem_missing_share", "dem_older_share", "spectral_missing_share"]
    shares = [] if any(modality.is_terrain for modality in spec.modalities) else ["optical_missing_share"]
    optical = next(modality for modality in spec.modalities if modality.name == "optical")
    if not set(optical.band_names) <= set(OPTICAL_RGB.band_names):
        shares.append("spectral_missing_share")
    return shares


def start_network(network: SlumpNetwork, name: str, recipe: Recipe, directory: Path) -> list[str]:
    """Give a network the weights that its stage starts from; says in sentences what was taken."""
    notes = take_files(network, recipe.stages[name])
    for other, modality in recipe.earlier(name).items():
        weights = averaged_weights(directory / other)
        if modality:
            heads = recipe.stages[other].detects
            count = take_branch(network, weights, modality, str(directory / other), heads=heads)
            notes.append(f"{count} tensors of '{modality}' from stage {other}")
        else:
            fill(network, weights, str(directory / other))
            notes.append(f"goes on from stage {other}")
    return notes


def take_files(network: SlumpNetwork, stage: StageConfig) -> list[str]:
    """Give a network the weights of the files that its stage names; says in sentences what was taken."""
    notes = []
    modalities = dict(zip(network.spec.names, network.spec.modalities, strict=True))
    if stage.start not in {AUTO, SCRATCH}:
        load_weights(network, Path(stage.start))
        notes.append(f"starts from {stage.start}")
    for modality, file in stage.backbone_weights.items():
        if is_of_mobilenet(Path(file)):
            load_imagenet_guide(branches_of(network)[modality], Path(file), modalities[modality])
            notes.append(f"guide of '{modality}' from {file}")
            continue
        planes = planes_of(network)[modality]
        kept = load_official_backbone(
            branches_of(network)[modality], Path(file), planes, modalities[modality]
        )
        taken = take_pyramid(network, Path(file)) if modality == network.spec.names[0] else []
        notes.append(
            ", ".join([f"backbone '{modality}'", *taken])
            + f" from {file}"
            + (f", {len(kept)} norms new" if kept else "")
        )
    return notes


def _checkpoint(folder: Path) -> dict[str, Any]:
    path = folder / CHECKPOINT
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as exc:  # a broken pickle can raise anything
        raise WeightsError(
            f"{path}: not a checkpoint of rtsmap ({first_line(exc)}); remove it to train anew"
        ) from exc
    kinds = {"step": int, "average": dict}
    if not isinstance(state, dict) or not all(isinstance(state.get(key), kinds[key]) for key in kinds):
        raise WeightsError(f"{path}: not a checkpoint of rtsmap; remove it to train anew")
    return state


def averaged_weights(folder: Path) -> Weights:
    """The averaged weights of a stage's last checkpoint. Raises WeightsError."""
    weights: Weights = _checkpoint(folder)["average"]
    return weights


def steps_done(folder: Path) -> int:
    """Steps of a stage that its last checkpoint has behind it, 0 without one."""
    return int(_checkpoint(folder)["step"]) if (folder / CHECKPOINT).exists() else 0


def write_csv(folder: Path) -> None:
    """The log of a stage once more, as a table; losses that a step did not have are empty."""
    rows = read_rows(folder / "log.jsonl")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    temporary = folder / "log.csv.part"
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(folder / "log.csv")

"""A recipe: all that a training is told, as a TOML file that is checked at the door.

    seed = 0
    device = "auto"

    [data]                          # which packs, seen how
    modalities = ["optical", "terrain"]
    resolution_m = 4.0
    [data.groups.simulated]
    packs = ["packs/*.pack"]
    share = 0.5
    [data.held_out]                 # watched, never learnt from
    simulated = ["held_out.pack"]

    [chips]                         # SampleOptions
    [network]                       # the keys of model.json
    [training]                      # TrainOptions of every stage, unless the stage says otherwise

    [stages.optical]                # one after another, in this order
    kind = "unimodal"
    modality = "optical"
    loss = "pixels"
    [stages.fused]
    kind = "multimodal"
    backbones = "frozen"

Paths are relative to where the training is started. `--set stages.fused.steps=500` changes one key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rtsmap.errors import CardError, OptionsError
from rtsmap.mm.register import BRANCH_KEYS, DEFAULT_FUSION, NetworkConfig
from rtsmap.mm.samples import SampleOptions
from rtsmap.mm.tables import built, override, parse, read_table, refuse_unknown, to_toml
from rtsmap.mm.train import TrainOptions
from rtsmap.nets.fusion import FUSIONS, fusion_options
from rtsmap.nets.mvit import GUIDES
from rtsmap.rasters.bands import OPTICAL_RGB, SPECTRAL, TERRAIN, InputSpec, Modality

MODALITIES = {modality.name: modality for modality in (OPTICAL_RGB, SPECTRAL, TERRAIN)}
_IMAGERY = {band.name: band for band in (*OPTICAL_RGB.bands, *SPECTRAL.bands)}
_CHOICES = {
    "optical": _IMAGERY,
    "spectral": _IMAGERY,
    "terrain": {band.name: band for band in TERRAIN.bands},
}
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
FREE, PARTLY, FROZEN = "free", "partly", "frozen"
AUTO, SCRATCH = "auto", "scratch"
NO_GUIDE = GUIDES[0]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}")


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """Packs (paths or patterns) of which `share` of the samples is drawn, relative to the other groups."""

    packs: tuple[str, ...]
    share: float = 1.0

    def __post_init__(self) -> None:
        if not self.packs or not 0 < self.share < math.inf:
            raise OptionsError(f"wanted at least one pack and share > 0, got {self.packs}, {self.share}")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What is learnt from and, in `held_out`, what is only watched; the first modality leads.

    `bands` names those of a modality where they are not the usual ones: red, green and blue of `optical`,
    nir, ndvi and ndwi of `spectral`, relative_elevation, slope and shaded_relief of `terrain`.
    `held_out_chips` is how many chips of each held-out set are looked at.
    """

    groups: Mapping[str, GroupConfig]
    modalities: tuple[str, ...] = ("optical", "terrain")
    bands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    resolution_m: float = 4.0
    held_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    held_out_chips: int = 64

    def __post_init__(self) -> None:
        if not self.groups:
            raise OptionsError("no group of packs; wanted one or more tables groups.NAME with packs")
        wrong = [name for name in self.modalities if name not in MODALITIES]
        if wrong or not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise OptionsError(
                f"modalities must be among {', '.join(MODALITIES)}, each once, got {list(self.modalities)}"
            )
        self._check_bands()
        if self.held_out_chips < 1:
            raise OptionsError(f"held_out_chips must be 1 or more, got {self.held_out_chips}")

    def _check_bands(self) -> None:
        for name, bands in self.bands.items():
            if name not in self.modalities:
                raise OptionsError(f"bands.{name}: not among modalities = {list(self.modalities)}")
            wrong = [band for band in bands if band not in _CHOICES[name]]
            if wrong or not bands or len(set(bands)) != len(bands):
                raise OptionsError(
                    f"bands.{name} must be among {', '.join(_CHOICES[name])}, each once, got {list(bands)}"
                )
        names = [band for modality in self.modalities for band in self.modality(modality).band_names]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise OptionsError(f"bands: {', '.join(twice)} in more than one modality")

    def modality(self, name: str) -> Modality:
        """A modality with the bands that it has here."""
        if name not in self.bands:
            return MODALITIES[name]
        return Modality(name, tuple(_CHOICES[name][band] for band in self.bands[name]))


@dataclass(frozen=True, slots=True)
class StageConfig:
    """One stage of a training.

    A `unimodal` stage trains the network of one `modality`, a `multimodal` one that of all. `loss` is
    'full', or 'pixels' for the per-pixel loss alone. A stage with `start` 'auto' goes on from the last
    earlier stage of its own network, and a multimodal one that has none takes the backbones of the
    unimodal stages; 'scratch' starts from nothing, a path from the weights of a bundle. `backbone_weights`
    are official checkpoints by modality. `backbones` are 'free', 'frozen', or 'partly' frozen, in their
    first `frozen_stages`. Held-out chips are looked at every `validate_every` steps (rounded up to the
    next checkpoint) and at the end.
    """

    kind: str
    modality: str = ""
    loss: str = "full"
    start: str = AUTO
    backbone_weights: Mapping[str, str] = field(default_factory=dict)
    backbones: str = FREE
    frozen_stages: int = 0
    validate_every: int = 1000
    options: TrainOptions = field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        choices = {
            "kind": ("unimodal", "multimodal"),
            "loss": ("full", "pixels"),
            "backbones": (FREE, PARTLY, FROZEN),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise OptionsError(f"{name} must be one of {', '.join(allowed)}, got '{getattr(self, name)}'")
        if (self.kind == "unimodal") != bool(self.modality):
            raise OptionsError("a unimodal stage names its modality, a multimodal one names none")
        if (self.backbones == PARTLY) != (self.frozen_stages in {1, 2, 3}) or self.frozen_stages < 0:
            raise OptionsError(
                "frozen_stages (1 to 3) belongs to backbones = 'partly', "
                f"got {self.frozen_stages} with '{self.backbones}'"
            )
        if self.loss == "pixels" and not self.options.dense_loss:
            raise OptionsError("loss = 'pixels' needs dense_loss > 0")
        if self.loss == "full" and not self.detects:
            raise OptionsError(
                f"dense_only_steps = {self.options.dense_only_steps} leaves none of the {self.options.steps} "
                "steps to the heads; lower it, or set loss = 'pixels'"
            )
        if self.validate_every < 1:
            raise OptionsError(f"validate_every must be 1 or more, got {self.validate_every}")

    @property
    def detects(self) -> bool:
        """Whether the heads learn: without them held-out detections mean nothing."""
        return self.options.dense_only_steps < self.options.steps


_STAGE_KEYS = [f.name for f in fields(StageConfig) if f.name != "options"]
_OPTION_KEYS = [f.name for f in fields(TrainOptions)]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole training; see the module's text. Raises OptionsError for what cannot hold together."""

    data: DataConfig
    stages: Mapping[str, StageConfig]
    network: Mapping[str, Any] = field(default_factory=dict)
    chips: SampleOptions = field(default_factory=SampleOptions)
    seed: int = 0
    device: str = AUTO

    def __post_init__(self) -> None:
        if not self.stages:
            raise OptionsError("no stage; wanted one or more tables stages.NAME with kind")
        for name, stage in self.stages.items():
            self._check_stage(name, stage)

    def _check_stage(self, name: str, stage: StageConfig) -> None:
        if not _NAME.fullmatch(name):
            raise OptionsError(f"stage name '{name}' may hold letters, digits, - and _ only")
        if stage.modality and stage.modality not in self.data.modalities:
            raise OptionsError(
                f"stage '{name}': modality '{stage.modality}' is not among "
                f"data.modalities = {list(self.data.modalities)}"
            )
        strange = sorted(set(stage.backbone_weights) - set(self.backbones_of(name)))
        if strange:
            raise OptionsError(f"stage '{name}': backbone_weights for {strange}, which it does not have")
        earlier = self.earlier(name)
        whole = "" in earlier.values() or stage.start not in {AUTO, SCRATCH}
        if stage.backbones != FREE and not whole:
            # beside a guide a file fills the guide alone
            filled = {modality for modality in stage.backbone_weights if not self._has_guide(modality)}
            missing = sorted(set(self.backbones_of(name)) - filled - set(earlier.values()))
            if missing:
                raise OptionsError(
                    f"stage '{name}': backbones = '{stage.backbones}', but those of {', '.join(missing)} "
                    "would be frozen at random; start them from an earlier stage"
                    f"{' or a file' * (not all(map(self._has_guide, missing)))}"
                )
        given = set(self.spec(name).names) if "" in earlier.values() else set(earlier.values())
        twice = sorted(given & set(stage.backbone_weights))
        if twice:
            raise OptionsError(
                f"stage '{name}': backbone_weights of {', '.join(twice)} would be overwritten by those of "
                f"{' and '.join(earlier)}; give them to the first stage, or set start = 'scratch'"
            )
        if self.network.get("fusion") == "data_level" and any(m for m in earlier.values()):
            raise OptionsError(
                f"stage '{name}': fusion 'data_level' has one backbone on all bands and cannot take those "
                "of the unimodal stages; set start = 'scratch', or leave those stages out"
            )

    def spec(self, stage: str) -> InputSpec:
        """What the network of a stage looks at."""
        only = self.stages[stage].modality
        names = (only,) if only else self.data.modalities
        return InputSpec(self.data.resolution_m, tuple(map(self.data.modality, names)))

    def network_of(self, stage: str) -> dict[str, Any]:
        """The keys of model.json for a stage; a modality alone keeps its numbers and has no fusion."""
        only = self.stages[stage].modality
        if not only:
            return dict(self.network)
        kept = {k: v for k, v in self.network.items() if "." not in k or k.startswith(f"{only}.")}
        return {**kept, "fusion": "data_level"}

    def backbones_of(self, stage: str) -> tuple[str, ...]:
        """The modalities by whose names the backbones of a stage go; one on all bands goes by the first."""
        names = self.spec(stage).names
        return names[:1] if self.network_of(stage).get("fusion") == "data_level" else names

    def _has_guide(self, modality: str) -> bool:
        return bool(self.network.get(f"{modality}.guide", self.network.get("guide", NO_GUIDE)) != NO_GUIDE)

    def earlier(self, name: str) -> dict[str, str]:
        """Stages from which this one takes weights: stage to the modality it gives, '' for all of it."""
        stage = self.stages[name]
        if stage.start != AUTO:
            return {}
        before = list(self.stages)[: list(self.stages).index(name)]
        same = [other for other in before if self.stages[other].modality == stage.modality]
        if same:
            return {same[-1]: ""}
        if stage.modality:
            return {}
        # the last one of each modality counts
        last = {self.stages[other].modality: other for other in before}
        return {other: modality for modality, other in last.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `from_dict` makes an equal recipe, every number written out."""
        stages = {}
        for name, stage in self.stages.items():
            words = asdict(stage)
            numbers = words.pop("options")
            stages[name] = {**words, **numbers}
        data: dict[str, Any] = {"seed": self.seed, "device": self.device, "data": asdict(self.data)}
        data |= {"chips": asdict(self.chips), "network": dict(self.network), "stages": stages}
        return {key: _plain(value) for key, value in data.items()}

    def to_toml(self) -> str:
        """The recipe as TOML."""
        return to_toml(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Check plain data; every OptionsError says where and what was wanted."""
        refuse_unknown(data, [*(f.name for f in fields(cls)), "training"], where)
        for key in ("data", "stages"):
            if key not in data:
                raise OptionsError(f"{where}: the table [{key}] is missing")
        values = {k: v for k, v in data.items() if k not in {"training", "stages", "network"}}
        head = read_table(_Head, values, where)
        network = flat(_table(data, "network", where))
        _check_network(network, head.data.modalities, where)
        shared = _table(data, "training", where)
        refuse_unknown(shared, _OPTION_KEYS, where, "training.")
        stages = {}
        for number, (name, table) in enumerate(_table(data, "stages", where).items()):
            stages[name] = _read_stage(
                table, {"seed": head.seed + number, **shared}, where, f"stages.{name}."
            )
        return built(lambda: cls(head.data, stages, network, head.chips, head.seed, head.device), where, "")

    @classmethod
    def read(cls, path: Path, settings: Sequence[str] = ()) -> Recipe:
        """Read a file, with `key=value` settings on top of it; raises OptionsError."""
        try:
            data = parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as exc:
            raise OptionsError(f"{path}: cannot be read ({exc})") from exc
        for setting in settings:
            _refuse_new_stage(data, setting)
            override(data, setting)
        for setting in settings:
            _refuse_without_effect(data, setting)
        return cls.from_dict(data, " ".join([str(path), *(f"--set {setting}" for setting in settings)]))


@dataclass(frozen=True, slots=True)
class _Head:
    """The tables of a recipe that are read as they are."""

    data: DataConfig
    chips: SampleOptions = field(default_factory=SampleOptions)
    seed: int = 0
    device: str = AUTO


def _read_stage(table: Any, shared: Mapping[str, Any], where: str, prefix: str) -> StageConfig:
    if not isinstance(table, Mapping):
        raise OptionsError(f"{where}: '{prefix.rstrip('.')}' must be a table, got {table!r}")
    refuse_unknown(table, [*_STAGE_KEYS, *_OPTION_KEYS], where, prefix)
    numbers = {**shared, **{key: value for key, value in table.items() if key in _OPTION_KEYS}}
    if table.get("loss") == "pixels":
        # before the options are made, which check their numbers against one another
        numbers["dense_only_steps"] = numbers.get("steps", TrainOptions().steps)
    options = read_table(TrainOptions, numbers, where, prefix)
    words = {key: value for key, value in table.items() if key in _STAGE_KEYS}
    return read_table(StageConfig, {**words, "options": options}, where, prefix)


def _table(data: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    table = data.get(key, {})
    if not isinstance(table, Mapping):
        raise OptionsError(f"{where}: '{key}' must be a table, got {table!r}")
    return table


def _refuse_new_stage(data: Mapping[str, Any], setting: str) -> None:
    """A misspelt stage in --set must not become a stage."""
    path = setting.partition("=")[0].strip().split(".")
    stages = data.get("stages")
    if path[0] == "stages" and len(path) > 2 and isinstance(stages, Mapping):
        refuse_unknown([path[1]], stages, f"--set {setting}", "stages.")


def _refuse_without_effect(data: Mapping[str, Any], setting: str) -> None:
    """What holds for all stages changes nothing where each says its own, as in a recipe that was shown."""
    *table, key = setting.partition("=")[0].strip().split(".")
    stages = data.get("stages")
    shared = table == ["training"] or (not table and key == "seed")
    if shared and isinstance(stages, Mapping) and stages:
        own = [name for name, stage in stages.items() if isinstance(stage, Mapping) and key in stage]
        if len(own) == len(stages):
            raise OptionsError(
                f"--set {setting}: changes nothing, since every stage says its own {key}; "
                f"set {', '.join(f'stages.{name}.{key}' for name in own)}"
            )


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys, as model.json has them."""
    keys: dict[str, Any] = {}
    for key, value in table.items():
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return keys


def _check_network(network: Mapping[str, Any], modalities: Sequence[str], where: str) -> None:
    fusion = network.get("fusion", DEFAULT_FUSION)
    known = [f.name for f in fields(NetworkConfig) if f.name not in {"branches", "fusion_options"}]
    known += [f"{modality}.{key}" for modality in modalities for key in BRANCH_KEYS]
    if isinstance(fusion, str) and fusion in FUSIONS:
        known += [f"fusion.{name}" for name in fusion_options(fusion)]
        refuse_unknown(network, known, where, "network.")
    try:
        NetworkConfig.from_mapping(network)
    except CardError as exc:
        raise OptionsError(str(exc).replace("model.json", f"{where} [network]")) from exc


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def find_recipe(name_or_path: str) -> Path:
    """A file, or a recipe that ships with rtsmap, by name."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = sorted(p.stem for p in RECIPES.glob("*.toml"))
    if name_or_path in shipped:
        return RECIPES / f"{name_or_path}.toml"
    raise OptionsError(
        f"{name_or_path}: no such file, and the recipes that ship are: {', '.join(shipped)}. "
        "`rtsmap train NAME --show` prints one to begin with"
    )

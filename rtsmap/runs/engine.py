"""What finds slumps in a run: a detector, and what it wants to see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from rtsmap.errors import EngineError, OptionsError
from rtsmap.instances.calibration import tempered
from rtsmap.instances.detections import Detector
from rtsmap.models import ModelCard, load_bundle
from rtsmap.rasters.bands import InputSpec


@dataclass(frozen=True, slots=True)
class Engine:
    """A detector that is loaded when it is first needed, with its input and its thresholds.

    `identity` is plain data that tells apart all that could change the detector's answers; it goes into
    the plan of a run. `load` makes the detector; it must pickle if the run is distributed. `min_score`
    and `mask_threshold` are those to use where the user gives none.

    Scores that users see and give, `min_score` among them, are the detector's with the model's `temperature`;
    while slumps are found, scores stay as the detector gives them, so that a temperature changes no outline.
    """

    spec: InputSpec
    chip_px: int
    overlap_px: int
    identity: Mapping[str, Any]
    load: Callable[[], Detector]
    min_score: float = 0.5
    mask_threshold: int = 128
    temperature: float = 1.0

    def loaded_once(self) -> Engine:
        """The engine with a detector that all who load it share; not to be sent to another process."""
        return replace(self, load=cache(self.load))

    def told_score(self, score: float) -> float:
        """What users are told when the detector says `score`."""
        return tempered(score, self.temperature)

    def own_score(self, told: float) -> float:
        """The detector's score of which users are told `told`."""
        return tempered(told, 1 / self.temperature)


def engine_of(
    model: Engine | ModelCard | str | Path | None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    *,
    compiled: bool = False,
    views: int | None = None,
) -> Engine:
    """The engine of a model bundle: shipped (by name), elsewhere (by path), or the default one.

    For `batch_size` and `compiled` see `rtsmap.mm.detector.MmDetector`. `views` (1, 2 or 4; None: the model's
    own number) is how many views of each chip are looked at (`rtsmap.mm.views`); OptionsError for a number
    that the model cannot be shown.
    """
    if isinstance(model, Engine):
        return model
    # torch takes seconds to import, so it waits until here
    from rtsmap.mm.detector import resolve_device, resolve_precision

    card = model if isinstance(model, ModelCard) else load_bundle(model)
    where = resolve_device(device)
    exactly = resolve_precision(precision, where)
    return _engine_on(card, where, exactly, batch_size, compiled=compiled, views=views)


def engine_to_plan(
    model: Engine | ModelCard | str | Path | None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    *,
    compiled: bool = False,
    views: int | None = None,
) -> Engine:
    """The engine of a run that other machines may compute: GPUs that they have and this one lacks will do.

    Raises OptionsError where the precision, which only a GPU of theirs could tell, is not said.
    """
    from rtsmap.mm.detector import count_gpus, resolve_precision

    if isinstance(model, Engine) or not device.startswith("cuda") or count_gpus():
        return engine_of(model, device, precision, batch_size, compiled=compiled, views=views)
    if precision == "auto":
        raise OptionsError(
            f"device '{device}': this machine has no GPU that could tell its precision; add --precision bf16 "
            "for the GPUs of the workers, or fp16 where they are older than NVIDIA's Ampere"
        )
    card = model if isinstance(model, ModelCard) else load_bundle(model)
    exactly = resolve_precision(precision, device)
    return _engine_on(card, device, exactly, batch_size, compiled=compiled, views=views)


def _engine_on(
    card: ModelCard, where: str, exactly: str, batch_size: int | None, *, compiled: bool, views: int | None
) -> Engine:
    from rtsmap.mm.detector import load_detector
    from rtsmap.mm.views import hindrance

    own_views = card.network.get("views", 1)
    if views is not None and (reason := hindrance(views, card.spec)):
        raise OptionsError(f"views {views}: {reason}")
    shown = card if views is None else replace(card, network={**card.network, "views": views})

    return Engine(
        spec=card.spec,
        chip_px=card.chip_px,
        overlap_px=card.overlap_px,
        identity={
            **card.identity,
            "device": where.partition(":")[0],
            "precision": exactly,
            **({"compiled": True} if compiled else {}),
            **({} if views in {None, own_views} else {"views": views}),
        },
        load=partial(load_detector, shown, where, exactly, batch_size, compiled=compiled),
        min_score=card.score_threshold,
        mask_threshold=card.mask_threshold,
        temperature=card.temperature,
    )


def device_of_slot(device: str, slot: int) -> str:
    """The device of worker `slot`, from 0: GPUs are given out in turn where the user says `auto`."""
    if device != "auto" or slot == 0:
        return device
    from rtsmap.mm.detector import count_gpus

    gpus = count_gpus()
    return f"cuda:{slot % gpus}" if gpus > 1 else device


def name_of(model: Engine | ModelCard | str | Path | None) -> str | None:
    """What a worker that knows only the run directory calls the model; None for the default one."""
    if isinstance(model, ModelCard):
        return str(model.folder)
    if isinstance(model, Path) or (isinstance(model, str) and Path(model).is_dir()):
        return str(Path(model).resolve())
    return model if isinstance(model, str) else None


def engine_at_rest(model: str | Path | None, identity: Mapping[str, Any]) -> Engine:
    """The engine of a bundle without its network: to make maps of what the network has seen.

    `identity` is that of the run, whose device and precision are taken over.
    """
    card = load_bundle(model)
    seen_on = {key: identity[key] for key in ("device", "precision", "compiled", "views") if key in identity}
    return Engine(
        spec=card.spec,
        chip_px=card.chip_px,
        overlap_px=card.overlap_px,
        identity={**card.identity, **seen_on},
        load=_no_network,
        min_score=card.score_threshold,
        mask_threshold=card.mask_threshold,
        temperature=card.temperature,
    )


def _no_network() -> Detector:
    raise EngineError("this command makes maps of what the network has seen; `rtsmap work` runs the network")

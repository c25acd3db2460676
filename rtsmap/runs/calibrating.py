"""What the scores of a model's maps are worth, and a card that says so."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rtsmap.atomic import whole_file
from rtsmap.errors import CardError, InputError, OptionsError
from rtsmap.instances.calibration import (
    TEMPERATURE_LIMITS,
    PrecisionClaim,
    ScoreBin,
    calibration_error,
    fit_temperature,
    log_loss,
    reliability,
    tempered,
    threshold_for_precision,
)
from rtsmap.instances.intervals import group_intervals
from rtsmap.instances.map_scores import Figure
from rtsmap.instances.outcomes import Outcomes, outcomes_of
from rtsmap.models import ModelCard, Score, is_shipped, write_calibrated
from rtsmap.runs.evaluating import check_block, judged_map
from rtsmap.vectors.geopackage import is_of_many, model_of, read_run_record

AS_MAPPED, MENDED = "as mapped", "with the temperature"

_COLUMNS = ("scores", "low", "high", "count", "mean_score", "true_share", "share_low", "share_high")


@dataclass(frozen=True, slots=True)
class MapOrigin:
    """What made a map: the sha256 of the weights, the temperature of its scores, the lowest of them.

    `weights_sha256` is empty for a map whose record does not name a model.
    """

    weights_sha256: str
    temperature: float
    min_score: float

    @classmethod
    def of(cls, path: Path) -> MapOrigin:
        """Read from the record of the run that made the map.

        Raises InputError for a map of many scenes whose scores or thresholds are of several kinds.
        """
        record = read_run_record(path)
        kinds = {"temperature": "temperature", "merging": "thresholds"}
        differing = [kind for name, kind in kinds.items() if name not in record]
        if is_of_many(record) and differing:
            raise InputError(
                f"{path}: its scenes have no {' and no '.join(differing)} in common, so its scores are not "
                "of one kind; calibrate on the maps of the scenes, RUN/SCENE/map.gpkg, or merge the run again"
            )
        temperature = float(record.get("temperature", 1.0))
        model = model_of(record)
        lowest = float(record.get("merging", {}).get("min_score", 0.0))
        return cls(str(model.get("weights_sha256", "")), temperature, tempered(lowest, temperature))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What scores are worth.

    `figures` by name; `tables` are reliability tables of the scores as mapped and with the temperature;
    `claims` likewise, the same footprints at a threshold on either scale. `temperature` is the one to apply
    to scores as mapped; at one of `TEMPERATURE_LIMITS` no temperature mends them. `origins` are those of
    the maps.
    """

    outcomes: Outcomes
    temperature: float
    figures: Mapping[str, Figure]
    tables: Mapping[str, Sequence[ScoreBin]]
    claims: Mapping[str, PrecisionClaim]
    origins: tuple[MapOrigin, ...]
    notes: tuple[str, ...]

    @property
    def is_mended(self) -> bool:
        """True when a temperature makes the scores meaningful."""
        return self.temperature not in TEMPERATURE_LIMITS


def calibrate_maps(
    maps: Sequence[Path],
    labels: Sequence[Path],
    *,
    precision: float = 0.8,
    iou: float = 0.3,
    bins: int = 10,
    block_km: float = 5.0,
    resamples: int = 1000,
) -> Calibration:
    """Calibrate the scores of maps of one model; one file of labels for each map, or one for all.

    A footprint is true when it has a slump of its own at `iou`. Intervals of figures come from drawing
    blocks of `block_km` a side. Maps should hold low scores, too: what they leave out cannot be told. Where
    they differ in their lowest score, the highest of these counts for all. A map made with a higher lowest
    score holds a few footprints less than is left of this one, because fewer candidates get a second look.
    """
    if len(labels) == 1:
        labels = [labels[0]] * len(maps)
    if len(maps) != len(labels) or not maps:
        raise OptionsError(
            f"{len(maps)} maps, but {len(labels)} files of labels: wanted one for each map, in the same "
            "order, or one for all"
        )
    check_block(block_km)
    origins = tuple(MapOrigin.of(path) for path in maps)
    lowest = max(origin.min_score for origin in origins)
    judged, notes = [], list[str]()
    for number, pair in enumerate(zip(maps, labels, strict=True)):
        one, remarks = judged_map(*pair, lowest, block_km, name=f"{number}")
        judged.append(one)
        notes += remarks
    outcomes = outcomes_of(judged, iou)
    if not len(outcomes.scores):
        raise InputError(
            f"the maps hold no footprint with a score of at least {lowest:g}, so there is nothing to "
            "calibrate; map with a lower --min-score"
        )
    scores, right = outcomes.scores, outcomes.right
    temperature = fit_temperature(scores, right)
    mended = tempered(scores, temperature)
    claims = {
        AS_MAPPED: threshold_for_precision(scores, right, precision, lowest=lowest),
        MENDED: threshold_for_precision(mended, right, precision, lowest=tempered(lowest, temperature)),
    }
    if lowest > 0.2:
        notes.append(
            f"the maps hold nothing below a score of {lowest:g}: calibrate on maps made with --min-score 0.05"
        )
    if temperature in TEMPERATURE_LIMITS:
        notes.append(
            f"no temperature mends these scores (the fit ends at its limit, {temperature:g}): they are far "
            "too sure or too unsure, or nearly all footprints are alike"
        )
    return Calibration(
        outcomes,
        temperature,
        _figures(outcomes, bins, resamples),
        {AS_MAPPED: reliability(scores, right, bins), MENDED: reliability(mended, right, bins)},
        claims,
        origins,
        tuple(notes),
    )


def _figures(outcomes: Outcomes, bins: int, resamples: int) -> dict[str, Figure]:
    """Figures of all footprints, with intervals from whole groups of them."""
    members = [np.flatnonzero(outcomes.groups == group) for group in range(outcomes.group_count)]

    def of_groups(drawn: npt.NDArray[np.int64]) -> dict[str, float]:
        chosen = np.concatenate([members[group] for group in drawn])
        return _figures_of(outcomes.scores[chosen], outcomes.right[chosen], bins)

    values = of_groups(np.arange(len(members)))
    intervals = group_intervals(len(members), of_groups, resamples=resamples)
    return {name: Figure(value, intervals.get(name)) for name, value in values.items()}


def _figures_of(scores: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], bins: int) -> dict[str, float]:
    temperature = fit_temperature(scores, right)
    mended = tempered(scores, temperature)
    return {
        "temperature": temperature,
        "calibration_error": calibration_error(reliability(scores, right, bins)),
        "calibration_error_mended": calibration_error(reliability(mended, right, bins)),
        "log_loss": log_loss(scores, right),
        "log_loss_mended": log_loss(mended, right),
        "true_share": float(right.mean()),
    }


def facts_of(calibration: Calibration) -> dict[str, Any]:
    """What stands beside the figures on disk: plain data."""
    outcomes = calibration.outcomes
    return {
        "footprints": len(outcomes.scores),
        "true": int(outcomes.right.sum()),
        "slumps": outcomes.slumps,
        "iou": outcomes.iou_threshold,
        "temperature": calibration.temperature,
        "is_mended": calibration.is_mended,
        "thresholds": {name: asdict(claim) for name, claim in calibration.claims.items()},
        "reliability": {name: [asdict(one) for one in table] for name, table in calibration.tables.items()},
        "maps": [asdict(origin) for origin in calibration.origins],
        "notes": list(calibration.notes),
    }


def write_reliability(path: Path, calibration: Calibration, *, overwrite: bool = False) -> None:
    """Write the reliability tables as one CSV, one row for each bin that holds footprints."""
    with whole_file(path, overwrite=overwrite) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for name, table in calibration.tables.items():
            writer.writerows(
                (name, one.low, one.high, one.count, one.mean_score, one.true_share, *one.interval)
                for one in table
            )


def check_card(card: ModelCard, maps: Sequence[Path], folder: Path | None = None) -> Path:
    """Where a calibrated card goes: the user's own bundle itself, or a copy of a shipped one, here.

    Raises CardError for a folder that exists already, for maps that other weights made, and for maps with
    scores of different temperatures.
    """
    target = folder or (Path(f"{card.name}-calibrated") if is_shipped(card) else card.folder)
    if target.exists() and target.resolve() != card.folder.resolve():
        raise CardError(f"{target} exists; choose another folder with --card-out")
    origins = [MapOrigin.of(path) for path in maps]
    for path, origin in zip(maps, origins, strict=True):
        if origin.weights_sha256 != card.sha256:
            made_by = (
                f"weights {origin.weights_sha256[:12]}..." if origin.weights_sha256 else "no model it names"
            )
            raise CardError(
                f"{path} was made by {made_by}, not by {card.name} ({card.sha256[:12]}...): calibrate a "
                "model on its own maps"
            )
    temperatures = sorted({origin.temperature for origin in origins})
    if len(temperatures) > 1:
        raise CardError(f"the maps were made with different temperatures, {temperatures}: make them anew")
    return target


def write_calibrated_card(card: ModelCard, calibration: Calibration, folder: Path, command: str) -> ModelCard:
    """Write temperature and threshold into a bundle's card, with what was measured by `command`.

    `folder` is what `check_card` gave. Raises CardError when there is nothing worth writing: no
    temperature mends the scores, or the wanted precision is not reached.
    """
    claim = calibration.claims[MENDED]
    if not calibration.is_mended or not claim.reached or claim.threshold is None:
        why = "the wanted precision is not reached" if calibration.is_mended else "no temperature fits"
        raise CardError(f"{card.name}: nothing is written into the card, because {why}")
    low, high = claim.interval
    iou, count = calibration.outcomes.iou_threshold, len(calibration.origins)
    maps = f"the map{'s' * (count > 1)} it was chosen on ({count}), at IoU {iou:g}"
    error = calibration.figures["calibration_error_mended"].value
    scores = (
        Score(
            f"precision at score {claim.threshold:g}",
            round(claim.precision, 3),
            f"{claim.footprints} footprints of {maps}; 95 % interval {low:.3f} to {high:.3f}",
            command,
        ),
        Score(
            "expected calibration error",
            round(error, 3),
            f"{len(calibration.outcomes.scores)} footprints of {maps}",
            command,
        ),
    )
    return write_calibrated(
        card,
        folder,
        score_threshold=claim.threshold,
        # the maps' scores may have had a temperature already
        temperature=calibration.temperature * calibration.origins[0].temperature,
        scores=scores,
    )

"""What the benchmark of fusions keeps of a training, and the figures that come of it.

A result with all its masks takes a megabyte, and trainings take hours on a machine that may be gone tomorrow.
What scores of any draw of chips need is small: of each detection its score and whether it is right at each
IoU, of each chip how many slumps it has. `KEPT` holds that of every training of the tables in
docs/measured.md that was made since it is kept, so that a table can be made, and go on, anywhere.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from rtsmap.instances.coco_scores import STOCK, DrawnScores, pixel_overlaps

KEPT = Path(__file__).with_name("kept")
SURE = 0.5
"""Detections with this score or more count for pixel figures."""
SETTINGS = replace(STOCK, size_classes={}, max_detections=(100,))
"""What AP and AP50 need of the stock settings; with the rest a draw would take twelve times as long."""


@dataclass(frozen=True)
class Looked:
    """What a network found on test chips, as far as scores need it.

    `groups` and `truths` of each chip: the ground that it shows, and its slumps; `counts` of each chip: its
    detections. Of all detections, chip by chip, best first: `scores`; `right` and `ignored`, each (IoU
    thresholds, detections), True where one found a slump, and where it is not judged. `pixels` are sums over
    chips: true and found, true or found, and all.
    """

    groups: tuple[str, ...]
    truths: np.ndarray
    counts: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    pixels: np.ndarray

    @classmethod
    def of(
        cls, truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], groups: Sequence[str]
    ) -> Looked:
        """Of truth and results as COCO has them; `groups` in the order of the images."""
        chips = DrawnScores.of(truth, results, str, SETTINGS)._by_image[0]
        found = [chip for chip in chips if chip]
        sure = [one for one in results if one["score"] >= SURE]
        shared, either = np.sum(list(pixel_overlaps(truth, sure).values()), axis=0)
        thresholds = len(COCOeval().params.iouThrs)
        nothing = np.zeros((thresholds, 0))
        return cls(
            tuple(groups),
            np.array([np.sum(chip["gtIgnore"] == 0) if chip else 0 for chip in chips], np.int32),
            np.array([len(chip["dtScores"]) if chip else 0 for chip in chips], np.int32),
            np.concatenate([np.zeros(0), *(chip["dtScores"] for chip in found)]).astype(np.float32),
            np.concatenate([nothing, *(chip["dtMatches"] for chip in found)], axis=1) > 0,
            np.concatenate([nothing, *(chip["dtIgnore"] for chip in found)], axis=1) > 0,
            np.array([shared, either, sum(one["height"] * one["width"] for one in truth["images"])]),
        )

    @classmethod
    def together(cls, parts: Sequence[Looked]) -> Looked:
        """Of several sets of chips as one."""
        return cls(
            tuple(group for part in parts for group in part.groups),
            np.concatenate([part.truths for part in parts]),
            np.concatenate([part.counts for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.right for part in parts], axis=1),
            np.concatenate([part.ignored for part in parts], axis=1),
            np.sum([part.pixels for part in parts], axis=0),
        )

    @cached_property
    def drawn(self) -> DrawnScores:
        """AP and AP50 of drawn groups, by pycocotools."""
        evaluation = COCOeval()
        evaluation.params.imgIds, evaluation.params.catIds = list(range(len(self.groups))), [1]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = list(SETTINGS.max_detections)
        evaluation._paramsEval = copy.deepcopy(evaluation.params)
        chips = np.empty((1, len(self.groups)), dtype=object)
        bounds = pairwise(accumulate(self.counts, initial=0))
        for number, (part, slumps) in enumerate(zip(bounds, self.truths, strict=True)):
            of_chip = slice(*part)
            chips[0, number] = {
                "dtScores": self.scores[of_chip],
                "dtMatches": self.right[:, of_chip],
                "dtIgnore": self.ignored[:, of_chip],
                "gtIgnore": np.zeros(slumps),
            }
        members: dict[str, list[int]] = {}
        for number, group in enumerate(self.groups):
            members.setdefault(group, []).append(number)
        return DrawnScores(tuple(members), tuple(map(tuple, members.values())), evaluation, chips, SETTINGS)

    @cached_property
    def figures(self) -> dict[str, float]:
        """AP and AP50 of all chips."""
        return self.drawn(range(len(self.drawn.groups)))

    @property
    def mean_iou(self) -> float:
        """Mean of the IoU of slump and of other ground over pixels, of sure detections."""
        shared, either, pixels = (int(count) for count in self.pixels)
        return (shared / max(either, 1) + (pixels - either) / max(pixels - shared, 1)) / 2


ARRAYS = ("truths", "counts", "scores", "right", "ignored", "pixels")
BITS = ("right", "ignored")


@dataclass(frozen=True)
class Record:
    """A finished training: its cost, and what it found in every look; a stage is not looked at."""

    steps: int
    parameters: int
    cpu_s_a_step: float
    peak_mib: float
    looks: Mapping[str, Looked]

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Record:
        """Of the result.json of a training."""
        cost = (result[name] for name in ("steps", "parameters", "cpu_s_a_step", "peak_mib"))
        looks = {
            name: Looked.of(result["truth"], found, result["groups"])
            for name, found in result.get("results", {}).items()
        }
        return cls(*cost, looks)

    def write(self, path: Path) -> None:
        """Keep it: plain arrays, no pickle."""
        arrays: dict[str, np.ndarray] = {}
        for name, look in self.looks.items():
            for array in ARRAYS:
                values = getattr(look, array)
                arrays[f"{name}.{array}"] = np.packbits(values, axis=1) if array in BITS else values
        text = {name: getattr(self, name) for name in ("steps", "parameters", "cpu_s_a_step", "peak_mib")}
        text["groups"] = next((look.groups for look in self.looks.values()), ())
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        with temporary.open("wb") as file:
            np.savez_compressed(file, about=np.array(json.dumps(text)), **arrays)
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> Record:
        """As it was written."""
        with np.load(path) as file:
            about = json.loads(str(file["about"]))
            groups = tuple(about.pop("groups"))
            names = dict.fromkeys(name.split(".")[0] for name in file.files if "." in name)
            looks = {}
            for name in names:
                parts = {array: file[f"{name}.{array}"] for array in ARRAYS}
                for array in BITS:
                    bits = np.unpackbits(parts[array], axis=1, count=len(parts["scores"]))
                    parts[array] = bits.astype(np.bool_)
                looks[name] = Looked(groups, **parts)
        return cls(**about, looks=looks)


def record_of(name: str, run: Path) -> Record | None:
    """What a training of this name left in `run`, or what is kept of it; None where it was never done."""
    result = run / name / "result.json"
    if result.exists():
        return Record.of(json.loads(result.read_text()))
    kept = kept_path(name)
    return Record.read(kept) if kept.exists() else None


def kept_path(name: str) -> Path:
    """Where a training of this name is kept."""
    return KEPT / f"{name.replace(',', '')}.npz"


def paired_difference(
    ours: Sequence[Looked], theirs: Sequence[Looked], figure: str = "AP50", draws: int = 400
) -> tuple[float, float, float]:
    """Mean over seeds of the difference in AP50 or AP, with its 95 % interval.

    Seeds and groups are drawn with replacement, the same for both, so that the interval holds what another
    training and other ground would change.
    """
    n_groups = len(ours[0].drawn.groups)
    rng = np.random.default_rng(0)

    def difference(seeds: Iterable[int], chosen: Iterable[int]) -> float:
        return float(
            np.mean([ours[i].drawn(chosen)[figure] - theirs[i].drawn(chosen)[figure] for i in seeds])
        )

    spread = [
        difference(rng.integers(len(ours), size=len(ours)), rng.integers(n_groups, size=n_groups))
        for _ in range(draws)
    ]
    low, high = np.percentile(spread, [2.5, 97.5])
    return difference(range(len(ours)), range(n_groups)), float(low), float(high)


def mean_of_known(values: Iterable[float], form: str) -> str:
    """The mean without trainings that were killed after their last step, whose time is not known."""
    known = [value for value in values if not math.isnan(value)]
    return f"{np.mean(known):{form}}" if known else ""


def mean_sd(values: Sequence[float]) -> str:
    """The mean, and the standard deviation of more than one."""
    spread = f" ({np.std(values, ddof=1):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"

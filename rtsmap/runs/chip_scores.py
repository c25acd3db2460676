"""A model held against labelled chips: pictures without a place on Earth, outlines as COCO polygons."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image

from rtsmap.atomic import whole_file
from rtsmap.errors import InputError, LabelError, OptionsError, why
from rtsmap.instances.coco_scores import (
    SETTINGS,
    CocoSettings,
    category_of,
    coco_intervals,
    coco_results,
    coco_scores,
    object_matches,
    usable_document,
    usable_results,
)
from rtsmap.instances.intervals import group_intervals
from rtsmap.instances.map_scores import Figure
from rtsmap.rasters.bands import InputSpec, Modality
from rtsmap.rasters.chips import Chip, Layer
from rtsmap.rasters.eight_bands import (
    EIGHT_BANDS,
    NPZ,
    EightBands,
    file_of_chip,
    infrared_scale,
    read_eight_bands,
)
from rtsmap.rasters.radiometry import Stretch
from rtsmap.rasters.tiling import Tile, Window
from rtsmap.runs.chip_journal import ChipJournal
from rtsmap.runs.engine import Engine
from rtsmap.runs.progress import Progress, silent

OBJECT_IOUS = (0.3, 0.5)
_BATCH = 16


@dataclass(frozen=True, slots=True)
class LabelledChips:
    """A COCO dataset and the folder of its pictures; `group_of` names the group of an image id."""

    document: Mapping[str, Any]
    images: Path
    group_of: Mapping[int, str]

    @classmethod
    def read(cls, labels: Path, images: Path | None = None, groups: Path | None = None) -> LabelledChips:
        """Read a COCO file; `images` is `images/` beside it where none is given.

        `groups` as for `read_groups`; a chip in none of them is a group of its own. Raises InputError or
        LabelError for files that cannot be used.
        """
        with _told_of(labels):
            document = usable_document(_json_of(labels))
        folder = images or labels.parent / "images"
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; name the folder of the pictures")
        group = read_groups(groups) if groups else {}
        return cls(
            document,
            folder,
            {image["id"]: group.get(image["file_name"], image["file_name"]) for image in document["images"]},
        )


def read_groups(path: Path) -> dict[str, str]:
    """The group of each name in a JSON list of lists of names that show common ground.

    A group is called after the first of its names in the order of the alphabet, so that files which list
    the same groups in another order call them alike. Raises InputError for other content and for a name in
    two groups.
    """
    listed = _json_of(path)
    lists = listed if isinstance(listed, list) else [listed]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise InputError(f'{path}: wanted lists of names that show common ground, as in [["a", "b"], ["c"]]')
    groups: dict[str, str] = {}
    for names in lists:
        twice = groups.keys() & set(names)
        if twice:
            raise InputError(f"{path}: '{min(twice)}' is in two groups; make one of them, or take it out")
        groups |= {name: min(names) for name in names}
    return groups


def find_on_chips(
    chips: LabelledChips, engine: Engine, progress: Progress = silent
) -> list[Mapping[str, Any]]:
    """What a model finds on every chip, as COCO results. Modalities that chips do not hold are missing.

    A chip is a picture or eight bands (.npz). Raises InputError for one that is not there, not RGB, or of
    another size than its labels, OptionsError where the first modality of the model has bands that pictures
    do not hold.
    """
    listed = chips.document["images"]
    images = [(image["id"], file_of_chip(chips.images / image["file_name"])) for image in listed]
    shapes = {image["id"]: (image["height"], image["width"]) for image in listed}
    category = category_of(chips.document)
    return find_on_files(images, engine, category_id=category, shapes=shapes, progress=progress)


def find_on_files(
    images: Sequence[tuple[int, Path]],
    engine: Engine,
    *,
    category_id: int = 1,
    shapes: Mapping[int, tuple[int, int]] | None = None,
    without: Collection[str] = (),
    journal: ChipJournal | None = None,
    progress: Progress = silent,
) -> list[Mapping[str, Any]]:
    """What a model finds on files of chips, given with their ids; modalities of `without` it is not shown.

    What stands in a `journal` is not sought again, and what is found is kept there. Raises InputError for a
    file that is not of the shape (rows, columns) of its id in `shapes`.
    """
    detector = engine.load()
    found = dict(journal.found) if journal else {}
    pending = [(image_id, file) for image_id, file in images if image_id not in found]
    scale = infrared_scale(read_eight_bands(file) for _, file in images if file.suffix == NPZ)
    for start in range(0, len(pending), _BATCH):
        batch = pending[start : start + _BATCH]
        chips = [_shown(chip_of_file(file, engine.spec, scale), without) for _, file in batch]
        for (image_id, file), chip in zip(batch, chips, strict=True):
            _check_shape(file, chip.tile.read.shape, shapes[image_id] if shapes else None)
        new = {
            image_id: coco_results(
                image_id,
                [replace(one, score=engine.told_score(one.score)) for one in slumps],
                chip.tile.read.shape,
                category_id=category_id,
                mask_threshold=engine.mask_threshold,
            )
            for (image_id, _), slumps, chip in zip(batch, detector.detect(chips), chips, strict=True)
        }
        found.update(new)
        if journal:
            journal.add(new)
        progress("chips", len(found), len(images))
    return [result for image_id, _ in images for result in found[image_id]]


def _check_shape(file: Path, shape: tuple[int, int], told: tuple[int, int] | None) -> None:
    if told not in (None, shape):
        raise InputError(
            f"{file}: {shape[0]} rows and {shape[1]} columns, but the labels say {told[0]} and {told[1]}; "
            "outlines in pixels would not fit"
        )


def _shown(chip: Chip, without: Collection[str]) -> Chip:
    """The chip, with modalities of `without` as missing ones."""
    if not without:
        return chip
    hidden = {
        name: Layer(np.zeros_like(layer.pixels), np.zeros_like(layer.valid)) if name in without else layer
        for name, layer in chip.layers.items()
    }
    return replace(chip, layers=hidden)


def read_results(path: Path, chips: LabelledChips) -> list[dict[str, Any]]:
    """COCO results on chips from a file, as compressed run lengths; raises InputError or LabelError."""
    with _told_of(path):
        return usable_results(chips.document, _json_of(path))


def write_results(path: Path, results: Sequence[Mapping[str, Any]], *, overwrite: bool = False) -> None:
    """Write COCO results, the form in which challenges take submissions."""
    with whole_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(list(results)), encoding="utf-8")


def score_chips(
    chips: LabelledChips,
    results: Sequence[Mapping[str, Any]],
    *,
    min_score: float,
    settings: str = "stock",
    resamples: int = 200,
) -> dict[str, Figure]:
    """COCO's scores, and precision, recall and F1 of objects with at least `min_score`, with intervals."""
    chosen = settings_named(settings)
    values = coco_scores(chips.document, results, chosen)
    intervals = coco_intervals(
        chips.document, results, chips.group_of.__getitem__, chosen, resamples=resamples
    )
    figures = {name: Figure(value, intervals.get(name)) for name, value in values.items()}
    sure = [result for result in results if result["score"] >= min_score]
    for iou in OBJECT_IOUS:
        figures |= _object_figures(chips, sure, iou)
    return figures


def settings_named(name: str) -> CocoSettings:
    """Settings of average precision; raises OptionsError for a name that there is not."""
    if name not in SETTINGS:
        raise OptionsError(f"settings '{name}': wanted one of {', '.join(SETTINGS)}")
    return SETTINGS[name]


def _object_figures(
    chips: LabelledChips, results: Sequence[Mapping[str, Any]], iou: float
) -> dict[str, Figure]:
    sums: dict[str, npt.NDArray[np.float64]] = {}
    for image, matches in object_matches(chips.document, results, iou).items():
        counts = np.array([matches.true_positives, matches.n_predicted, matches.n_truth], float)
        group = chips.group_of[image]
        sums[group] = sums.get(group, np.zeros(3)) + counts
    table = np.array(list(sums.values()))
    at = round(100 * iou)

    def of_groups(groups: npt.NDArray[np.int64]) -> dict[str, float]:
        right, predicted, true = table[groups].sum(axis=0)
        shares = {
            "precision": (right, predicted),
            "recall": (right, true),
            "f1": (2 * right, predicted + true),
        }
        return {
            f"{name}_{at}": part / whole if whole else float("nan") for name, (part, whole) in shares.items()
        }

    intervals = group_intervals(len(table), of_groups)
    values = of_groups(np.arange(len(table)))
    return {name: Figure(float(value), intervals.get(name)) for name, value in values.items()}


def chip_of_file(path: Path, spec: InputSpec, scale: Stretch | None = None) -> Chip:
    """A picture, or eight bands whose infrared comes onto the 8-bit scale by `scale`, as a chip."""
    if path.suffix != NPZ:
        return picture_chip(path, spec)
    chip = read_eight_bands(path)
    window = Window(0, 0, *chip.pixels.shape[1:])
    layers = {modality.name: _layer_of(chip, modality, scale) for modality in spec.modalities}
    return Chip(layers, GeoBox(window.shape, Affine.identity(), None), Tile(0, window, window))


def _layer_of(chip: EightBands, modality: Modality, scale: Stretch | None) -> Layer:
    """Missing where one of its bands is not among the eight."""
    names = modality.band_names
    if not set(names) <= set(EIGHT_BANDS):
        shape = chip.pixels.shape[1:]
        return Layer(np.zeros((len(names), *shape), np.float32), np.zeros(shape, np.bool_))
    pixels, valid = chip.bands(names)
    if scale and scale.band in names:
        at = names.index(scale.band)
        pixels[at] = np.where(valid, scale.apply(pixels[at]), np.float32(0))
    return Layer(pixels * valid, valid)


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Pixels (3, H, W) of a picture; raises InputError for one that is not RGB of 8 bits."""
    try:
        with Image.open(path) as picture:
            if picture.mode != "RGB":
                raise InputError(
                    f"{path}: wanted an RGB picture, got mode {picture.mode}; convert it to RGB of 8 bits"
                )
            return np.ascontiguousarray(np.asarray(picture, np.uint8).transpose(2, 0, 1))
    except OSError as exc:
        raise InputError(f"{path}: cannot be read as a picture: {why(exc)}") from exc


def picture_chip(path: Path, spec: InputSpec) -> Chip:
    """A picture as a chip of its own pixels; what later modalities want beyond RGB is missing."""
    pixels = read_rgb(path).astype(np.float32)
    window = Window(0, 0, *pixels.shape[1:])
    layers = {}
    for modality in spec.modalities:
        aside = modality is not spec.modalities[0] and not set(modality.band_names) <= {
            "red",
            "green",
            "blue",
        }
        if modality.is_terrain or aside:
            nothing = np.zeros((len(modality.bands), *window.shape), np.float32)
            layers[modality.name] = Layer(nothing, np.zeros(window.shape, np.bool_))
        else:
            layers[modality.name] = Layer(
                _bands(pixels, modality.band_names), np.ones(window.shape, np.bool_)
            )
    return Chip(layers, GeoBox(window.shape, Affine.identity(), None), Tile(0, window, window))


def _bands(pixels: npt.NDArray[np.float32], names: Sequence[str]) -> npt.NDArray[np.float32]:
    order = ("red", "green", "blue")
    strangers = [name for name in names if name not in order]
    if strangers:
        raise OptionsError(f"the model wants {', '.join(strangers)}, but pictures hold red, green and blue")
    return np.ascontiguousarray(pixels[[order.index(name) for name in names]])


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Begin what is wrong with labels with the name of their file."""
    try:
        yield
    except LabelError as exc:
        raise LabelError(f"{path}: {exc}") from exc


def _json_of(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise InputError(f"{path}: cannot be read as JSON: {why(exc)}") from exc

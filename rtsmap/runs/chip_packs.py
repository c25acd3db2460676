"""Labelled chips and scenes become packs, which training reads without rasterio or geopandas."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet
from pycocotools import mask as coco_mask

from rtsmap.atomic import refuse_inputs
from rtsmap.errors import InputError, LabelError, OptionsError
from rtsmap.mm.packs import Spectral, Terrain, TrainingImage, write_pack
from rtsmap.mm.splits import is_held_out
from rtsmap.rasters import reading, sources
from rtsmap.rasters.bands import GRADIENT_BANDS, OPTICAL_RGB, SPECTRAL
from rtsmap.rasters.eight_bands import NPZ, EightBands, file_of_chip, infrared_scale, read_eight_bands
from rtsmap.rasters.radiometry import Radiometry, Stretch
from rtsmap.runs.chip_scores import LabelledChips, read_groups, read_rgb
from rtsmap.runs.chipping import ANNOTATIONS, INDEX
from rtsmap.runs.packing import training_image
from rtsmap.runs.progress import Progress, silent
from rtsmap.runs.rejected import RejectedPlaces
from rtsmap.vectors.labels import read_polygons

SCENE_RESOLUTION_M = 4.0
_NPZ_NOTE = (
    "chips of eight bands; their shaded relief is left out, since it cannot be turned along with a chip, and "
    "there is no gradient to make it anew from"
)
SCENE, DEM, TRUTH, LOOKALIKES = "scene.tif", "dem.tif", "truth.gpkg", "lookalikes.gpkg"


@dataclass(frozen=True, slots=True)
class MadeScene:
    """A scene that is made to be packed and not kept: `write` gets the folder, as of `rtsmap simulate`."""

    name: str
    write: Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class PackOptions:
    """How sources become images of a pack.

    `group` puts all of them into one group; `groups` is a JSON list of lists of names (pictures of a COCO
    file, chips without a place, or folders) that show common ground. About `hold_out` of the groups goes
    into a second pack. `images` is the folder of a COCO file's pictures. Scenes are read at `resolution_m`
    (4 m where it is None), and pictures are said to have it; chips know theirs. `reviewed` is a map whose
    rejected footprints are remembered as places that look like slumps and are none.
    """

    group: str | None = None
    groups: Path | None = None
    images: Path | None = None
    hold_out: float = 0.0
    resolution_m: float | None = None
    reviewed: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.hold_out < 1:
            raise OptionsError(f"hold_out must be within 0..1, got {self.hold_out}")
        if self.group and self.groups:
            raise OptionsError("either one group for all, or a file of groups, not both")


@dataclass(frozen=True, slots=True)
class PackReport:
    """What one pack holds."""

    path: Path
    images: int
    slumps: int
    groups: int
    with_terrain: int
    notes: tuple[str, ...] = field(default=())


def pack(
    from_where: Sequence[Path],
    out: Path,
    options: PackOptions,
    *,
    made: Sequence[MadeScene] = (),
    overwrite: bool = False,
    progress: Progress = silent,
) -> list[PackReport]:
    """Write the pack `out`, and with `hold_out` the pack of the held-out groups beside it.

    A source is a folder of `rtsmap tile --labels`, a COCO file, or a folder of `rtsmap simulate`; scenes that
    are `made` come after them. Raises InputError for other sources and for outputs that exist, OptionsError
    for an empty side and where there is nothing to pack.
    """
    if not from_where and not made:
        raise OptionsError("nothing to pack; name folders or COCO files, or say how many scenes to simulate")
    sides = [out, out.with_name(f"{out.stem}_held_out{out.suffix}")] if options.hold_out else [out]
    for path in sides:
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists already; choose another name, or replace it with --overwrite")
        refuse_inputs(path, [*from_where, options.groups, options.reviewed])
    images: list[TrainingImage] = []
    told: list[str] = []
    rejected = RejectedPlaces.read(options.reviewed) if options.reviewed else None
    total = len(from_where) + len(made)
    for number, source in enumerate(from_where):
        progress("sources", number, total)
        images += read_source(source, options, told.append, rejected)
    for number, scene in enumerate(made, start=len(from_where)):
        progress("sources", number, total)
        images += _made_image(scene, options)
    progress("sources", total, total)
    held = [image for image in images if options.hold_out and is_held_out(image.group, options.hold_out)]
    aside = {image.group for image in held}
    kept = [image for image in images if image.group not in aside]
    if not kept or (options.hold_out and not held):
        names = sorted({image.group for image in images})
        raise OptionsError(
            f"hold_out={options.hold_out} puts {len(held)} of {len(images)} images aside, of the groups "
            f"{', '.join(names[:8])}; one side is empty. Pack the held-out sources on their own instead"
        )
    if rejected:
        told.append(_rejected_note(rejected, images, options))
    if options.groups:
        there = {*(source.name for source in from_where), *(image.name for image in images)}
        told += _groups_notes(options.groups, there)
    notes = (*_notes(from_where, options), *told)
    reports = []
    for path, side in zip(sides, (kept, held), strict=False):
        write_pack(path, side)
        reports.append(_report(path, side, notes))
        notes = ()
    return reports


def _report(path: Path, images: Sequence[TrainingImage], notes: tuple[str, ...]) -> PackReport:
    return PackReport(
        path,
        len(images),
        sum(len(np.unique(image.labels[image.labels > 0])) for image in images),
        len({image.group for image in images}),
        sum(image.terrain is not None for image in images),
        notes,
    )


def _rejected_note(rejected: RejectedPlaces, images: Sequence[TrainingImage], options: PackOptions) -> str:
    places = sum(len(image.hard) for image in images)
    said = f"{options.reviewed}: {len(rejected.polygons)} rejected footprints"
    if not places:
        return f"{said}, of which none lies on these images away from labelled slumps; pictures have no place"
    return f"{said}, packed as {places} places; chips.hard_negative_share says how often they are learnt from"


def _groups_notes(groups: Path, there: Collection[str]) -> list[str]:
    """Which names of a file of groups are not `there`."""
    named = read_groups(groups)
    absent = sorted(set(named).difference(there))
    told = f"{', '.join(absent[:5])}{', ...' if absent[5:] else ''}"
    note = f"{groups}: {len(absent)} of its {len(named)} names are no pictures or folders here: {told}"
    return [note] if absent else []


def _notes(from_where: Sequence[Path], options: PackOptions) -> tuple[str, ...]:
    pictures = [source for source in from_where if source.is_file() or _is_without_place(source)]
    plain = ", ".join(source.name for source in pictures)
    unscaled = ", ".join(source.name for source in pictures if not _knows_metres(source))
    notes = []
    if plain and not (options.group or options.groups):
        notes.append(
            f"{plain}: every picture is a group of its own; give --groups where pictures overlap, "
            "or the same ground may be learnt from and held out"
        )
    if unscaled and options.resolution_m is None:
        notes.append(
            f"{unscaled}: pictures do not say how many metres a pixel shows; give --resolution-m, "
            "so that train can refuse pictures of another scale"
        )
    return tuple(notes)


def read_source(
    source: Path,
    options: PackOptions,
    tell: Callable[[str], None] = lambda _: None,
    rejected: RejectedPlaces | None = None,
) -> Iterator[TrainingImage]:
    """The labelled images of a folder or of a COCO file; `tell` hears what was decided on the way."""
    if (source / INDEX).is_file():
        if _is_without_place(source):
            return loose_images(source, options)
        return tile_images(source, _grouping(options)(source.name), rejected)
    if (source / SCENE).is_file() and (source / TRUTH).is_file():
        return simulated_images(source, options, rejected)
    if source.is_file() and source.suffix == ".json":
        return picture_images(source, options, tell)
    raise InputError(
        f"{source}: wanted a folder of `rtsmap tile --labels` (with {INDEX}), a folder of `rtsmap simulate` "
        f"(with {SCENE} and {TRUTH}), or a COCO file (.json)"
    )


def _is_without_place(source: Path) -> bool:
    """True for a folder of chips that `rtsmap tile` has made of .npz chips."""
    index = source / INDEX
    return index.is_file() and "source" in pyarrow.parquet.read_schema(index).names


def _knows_metres(source: Path) -> bool:
    index = source / INDEX
    if not index.is_file():
        return False
    metres = pyarrow.parquet.read_table(index, columns=["resolution_m"])["resolution_m"]
    return bool(metres.null_count == 0)


def _grouping(options: PackOptions) -> Callable[[str], str]:
    """What tells the group of a name."""
    groups = read_groups(options.groups) if options.groups else {}
    return lambda name: options.group or groups.get(name, name)


def simulated_images(
    folder: Path, options: PackOptions, rejected: RejectedPlaces | None = None
) -> Iterator[TrainingImage]:
    """The scene of `rtsmap simulate`, whose look-alikes are known."""
    lookalikes = folder / LOOKALIKES
    yield training_image(
        folder / SCENE,
        folder / DEM if (folder / DEM).is_file() else None,
        folder / TRUTH,
        options.resolution_m or SCENE_RESOLUTION_M,
        group=_grouping(options)(folder.name),
        lookalikes=lookalikes if lookalikes.is_file() else None,
        rejected=rejected,
    )


def _made_image(scene: MadeScene, options: PackOptions) -> list[TrainingImage]:
    with tempfile.TemporaryDirectory(prefix="rtsmap-") as folder:
        place = Path(folder) / scene.name
        scene.write(place)
        return list(simulated_images(place, options))


def tile_images(folder: Path, group: str, rejected: RejectedPlaces | None = None) -> Iterator[TrainingImage]:
    """Chips of `rtsmap tile --labels`; all chips of a scene are one group."""
    if not (folder / ANNOTATIONS).is_file():
        raise LabelError(f"{folder}: no {ANNOTATIONS}; cut the chips with `rtsmap tile --labels`")
    document = json.loads((folder / ANNOTATIONS).read_text(encoding="utf-8"))
    annotations = _by_image(document)
    columns = read_polygons(folder / INDEX).columns
    terrain = columns.get("terrain") or [None] * len(columns["chip"])
    for chip, optical, relief in zip(columns["chip"], columns["optical"], terrain, strict=True):
        info = sources.probe(folder / optical)
        pixels, valid = _optical(info)
        labels = label_numbers(annotations.get(int(chip), []), valid.shape)
        yield TrainingImage(
            name=f"{group}/{Path(optical).stem}",
            group=group,
            optical=pixels,
            optical_valid=valid,
            labels=labels,
            terrain=_relief(folder / relief) if relief else None,
            resolution_m=abs(info.geobox.resolution.x),
            hard=rejected.windows(info.geobox, labels) if rejected else (),
        )


def loose_images(folder: Path, options: PackOptions) -> Iterator[TrainingImage]:
    """Chips of `rtsmap tile chips/*.npz --labels`, which have no place; a group each unless told."""
    if not (folder / ANNOTATIONS).is_file():
        raise LabelError(f"{folder}: no {ANNOTATIONS}; cut the chips with `rtsmap tile --labels`")
    document = json.loads((folder / ANNOTATIONS).read_text(encoding="utf-8"))
    annotations = _by_image(document)
    group_of = _grouping(options)
    for row in pyarrow.parquet.read_table(folder / INDEX).to_pylist():
        _, colours, valid = reading.read_picture(folder / row["optical"])
        names, heights, measured = reading.read_picture(folder / row["terrain"])
        others, others_pixels, known = reading.read_picture(folder / row["spectral"])
        relative, measured = (part[names.index("relative_elevation")] for part in (heights, measured))
        known = np.logical_and.reduce(known)
        yield TrainingImage(
            name=row["source"],
            group=group_of(row["source"]),
            optical=colours.astype(np.uint8),
            optical_valid=valid[0],
            labels=label_numbers(annotations.get(row["chip"], []), valid.shape[1:]),
            terrain=Terrain(None, relative, measured) if measured.any() else None,
            resolution_m=row["resolution_m"] or options.resolution_m,
            spectral=Spectral(others, others_pixels * known, known) if known.any() else None,
        )


def _optical(info: sources.RasterInfo) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    bands = sources.optical_bands(info, OPTICAL_RGB.band_names)
    patch = reading.read_native(info, tuple(bands.values()))
    return np.rint(patch.pixels * patch.valid).astype(np.uint8), patch.valid


def _relief(path: Path) -> Terrain | None:
    """None where the chip has no elevation at all."""
    info = sources.probe(path)
    wanted = ("relative_elevation", *GRADIENT_BANDS)
    missing = [name for name in wanted if name not in info.band_names]
    if missing:
        raise InputError(
            f"{path}: no band {', '.join(missing)}; these chips are of an older rtsmap tile. Cut them again"
        )
    patch = reading.read_native(info, [info.band_names.index(name) + 1 for name in wanted])
    if not patch.valid.any():
        return None
    pixels = np.where(patch.valid, patch.pixels, np.float32(0))
    return Terrain(pixels[1:], pixels[0], patch.valid)


def picture_images(
    path: Path, options: PackOptions, tell: Callable[[str], None] = lambda _: None
) -> Iterator[TrainingImage]:
    """Pictures or chips of eight bands (.npz) with COCO labels."""
    chips = LabelledChips.read(path, options.images, options.groups)
    annotations = _by_image(chips.document)
    images = [(image, file_of_chip(chips.images / image["file_name"])) for image in chips.document["images"]]
    many = [file for _, file in images if file.suffix == NPZ]
    # each is read twice: all of them in memory are too much
    scale = infrared_scale(read_eight_bands(file) for file in many)
    if many:
        tell(f"{path.name}: {_NPZ_NOTE}")
    if scale:
        tell(f"{path.name}: {Radiometry((scale,)).note}")
    for image, file in images:
        if file.suffix == NPZ:
            shown = _from_eight_bands(read_eight_bands(file), scale)
        else:
            pixels = read_rgb(file)
            shown = _Shown(pixels, np.ones(pixels.shape[1:], np.bool_))
        shape = shown.valid.shape
        if shape != (image["height"], image["width"]):
            raise LabelError(
                f"{path}: {file.name} is {shape}, its entry says {image['height'], image['width']}"
            )
        yield TrainingImage(
            name=image["file_name"],
            group=options.group or chips.group_of[image["id"]],
            optical=shown.optical,
            optical_valid=shown.valid,
            labels=label_numbers(annotations.get(image["id"], []), shape),
            terrain=shown.terrain,
            resolution_m=options.resolution_m,
            spectral=shown.spectral,
        )


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a picture shows, as TrainingImage has it."""

    optical: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.bool_]
    terrain: Terrain | None = None
    spectral: Spectral | None = None


def _from_eight_bands(chip: EightBands, scale: Stretch | None) -> _Shown:
    """Natural colour, spectral bands with the infrared on the 8-bit scale, and heights without gradients."""
    colours, valid = chip.bands(OPTICAL_RGB.band_names)
    others, known = chip.bands(SPECTRAL.band_names)
    nir = SPECTRAL.band_names.index("nir")
    if scale:
        others[nir] = np.where(known, scale.apply(others[nir]), np.float32(0))
    heights, measured = chip.bands(["relative_elevation"])
    return _Shown(
        np.rint(colours).astype(np.uint8),
        valid,
        Terrain(None, heights[0], measured) if measured.any() else None,
        Spectral(SPECTRAL.band_names, others, known) if known.any() else None,
    )


def _by_image(document: Mapping[str, Any]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for annotation in document["annotations"]:
        found.setdefault(annotation["image_id"], []).append(annotation)
    return found


def label_numbers(annotations: Sequence[Mapping[str, Any]], shape: tuple[int, ...]) -> npt.NDArray[np.int16]:
    """Numbers from 1 in order of falling area, so that small slumps keep their place; crowds are -1."""
    labels = np.zeros(shape, np.int16)
    ordered = sorted(annotations, key=lambda a: -float(a["area"]))
    for crowd in (a for a in ordered if a.get("iscrowd")):
        labels[_burned(crowd["segmentation"], shape)] = -1
    for number, annotation in enumerate((a for a in ordered if not a.get("iscrowd")), start=1):
        labels[_burned(annotation["segmentation"], shape)] = number
    return labels


def _burned(segmentation: Any, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Pixels of a COCO segmentation: polygons, or run lengths as lists or compressed."""
    if isinstance(segmentation, list):
        runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, *shape))
    elif isinstance(segmentation["counts"], list):
        runs = coco_mask.frPyObjects(segmentation, *shape)
    else:
        runs = segmentation
    with warnings.catch_warnings():
        # pycocotools' array type is older than numpy's `copy` keyword
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(coco_mask.decode(runs), np.bool_)

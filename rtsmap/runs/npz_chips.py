"""Slumps on chips of eight bands (.npz), which have no place on Earth: COCO results instead of a map."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtsmap.atomic import refuse_existing, refuse_inputs, whole_file
from rtsmap.errors import BandError, InputError, OptionsError, why
from rtsmap.instances.chip_labels import coco_document
from rtsmap.models import ModelCard
from rtsmap.rasters.bands import InputSpec
from rtsmap.rasters.eight_bands import EIGHT_BANDS, NPZ, read_eight_bands
from rtsmap.runs.chip_journal import ChipJournal
from rtsmap.runs.chip_scores import find_on_files, write_results
from rtsmap.runs.engine import Engine, engine_of
from rtsmap.runs.progress import Progress, silent
from rtsmap.runs.scene_lists import RASTERS

IMAGES = "_images.json"
"""What is put behind the stem of the results: which image id is which file."""


@dataclass(frozen=True, slots=True)
class NpzReport:
    """What was found on chips; `images` is the file that says which id is which chip, if one was needed."""

    out: Path
    images: Path | None
    chips: int
    slumps: int
    min_score: float
    notes: tuple[str, ...]


def npz_files(given: Sequence[Path | str]) -> list[Path]:
    """Chips of eight bands that are named by files, folders and patterns, sorted; none for other inputs.

    Raises InputError where there are chips and scenes, which are mapped in other ways.
    """
    found: set[Path] = set()
    others = []
    for one in given:
        chips = _chips_of(Path(one))
        found.update(chips)
        if not chips:
            others.append(str(one))
    if found and others:
        raise InputError(
            f"{others[0]}: is no chip ({NPZ}), but {min(found)} is; map scenes and chips by two commands"
        )
    return sorted(found)


def _chips_of(path: Path) -> list[Path]:
    if path.is_dir():
        is_of_scenes = any(file.suffix.lower() in RASTERS for file in path.iterdir())
        return [] if is_of_scenes else sorted(path.glob(f"*{NPZ}"))
    if glob.has_magic(str(path)) and not path.exists():
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - a pattern may be absolute
        return [Path(match) for match in matches if Path(match).suffix.lower() == NPZ]
    return [path] if path.suffix.lower() == NPZ else []


def predict_chips(
    given: Sequence[Path | str],
    *,
    out: Path | str,
    model: Engine | ModelCard | str | Path | None = None,
    min_score: float | None = None,
    image_ids: Path | None = None,
    without: Collection[str] = (),
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    views: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> NpzReport:
    """Find slumps on chips of eight bands and write them as COCO results with compressed run lengths.

    Image ids are those that the COCO file `image_ids` gives to files of the same stem; without it the stems,
    where they are whole numbers, else numbers from 1 in the order of names, and a file beside the results
    says which. The model gets its bands by name; where one is missing, BandError says which, unless its
    modality stands in `without`. `device` to `views` are those of `rtsmap.runs.engine.engine_of`. Detections
    that score less than `min_score` (default: the model's threshold) are left out.

    What was found before the command was stopped stands in a file beside `out`, and is not sought again.
    """
    out = Path(out)
    if out.suffix.lower() != ".json":
        raise InputError(
            f"{out}: chips ({NPZ}) have no place on Earth, so that there is no map of them, only COCO "
            "results; name a .json file"
        )
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; create it first")
    files = npz_files(given)
    if not files:
        raise InputError(f"no chips ({NPZ}) are named by {', '.join(map(str, given))}")
    listing = None if image_ids else out.with_name(out.stem + IMAGES)
    for path in (out, *([listing] if listing else [])):
        refuse_existing(path, overwrite=overwrite)
        refuse_inputs(path, [image_ids])
    ids, notes = _ids_of(files) if image_ids is None else _ids_from(image_ids, files)
    document = _document(files, ids)
    engine = engine_of(model, device, precision, batch_size, views=views)
    check_chip_bands(engine.spec, without)
    lowest = engine.min_score if min_score is None else min_score
    images = [(ids[file], file) for file in files]
    journal = ChipJournal(out, _asked(engine, images, without))
    notes = (*notes, *_resumed(journal))
    found = find_on_files(images, engine, without=without, journal=journal, progress=progress)
    kept = [result for result in found if result["score"] >= lowest]
    if listing:
        with whole_file(listing, overwrite=overwrite) as temporary:
            temporary.write_text(json.dumps(document), encoding="utf-8")
    write_results(out, kept, overwrite=overwrite)
    journal.remove()
    metres = engine.spec.resolution_m
    scale = f"chips do not say how many metres a pixel shows; the model takes it for {metres:g}"
    hidden = [f"without {name}, as asked" for name in without]
    return NpzReport(out, listing, len(files), len(kept), lowest, (*notes, scale, *hidden))


def _asked(engine: Engine, images: Sequence[tuple[int, Path]], without: Collection[str]) -> dict[str, Any]:
    """All that decides what is found; files are told apart by size and time of change."""
    states = {image_id: file.stat() for image_id, file in images}
    return {
        "model": dict(engine.identity),
        "temperature": engine.temperature,
        "mask_threshold": engine.mask_threshold,
        "without": sorted(without),
        "chips": {image_id: [state.st_size, state.st_mtime_ns] for image_id, state in states.items()},
    }


def _resumed(journal: ChipJournal) -> tuple[str, ...]:
    if journal.was_of_another:
        return (f"{journal.path}: was of other chips or another model; begun anew",)
    count = len(journal.found)
    return (f"{journal.path}: goes on after {count} chips",) if count else ()


def check_chip_bands(spec: InputSpec, without: Collection[str] = ()) -> None:
    """Refuse a model that wants bands which chips of eight bands lack, but for modalities left out."""
    strangers = sorted(set(without) - set(spec.names))
    if strangers:
        raise OptionsError(f"the model has no modality {', '.join(strangers)}, only {', '.join(spec.names)}")
    if spec.names[0] in without:
        raise OptionsError(f"the model cannot go without {spec.names[0]}, which leads")
    for modality in spec.modalities:
        missing = [name for name in modality.band_names if name not in EIGHT_BANDS]
        if missing and modality.name not in without:
            may = modality.name != spec.names[0]
            way = f"; --without {modality.name} maps without it" if may else ""
            raise BandError(
                f"the model wants {', '.join(missing)} in its modality {modality.name}, and chips of eight "
                f"bands hold only {', '.join(EIGHT_BANDS)}{way}"
            )


def _ids_of(files: Sequence[Path]) -> tuple[dict[Path, int], tuple[str, ...]]:
    stems = [file.stem for file in files]
    if all(stem.isascii() and stem.isdecimal() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return dict(zip(files, numbers, strict=True)), ()
    note = "image ids are numbers from 1 in the order of names; --image-ids FILE takes those of a COCO file"
    return {file: number for number, file in enumerate(files, 1)}, (note,)


def _ids_from(path: Path, files: Sequence[Path]) -> tuple[dict[Path, int], tuple[str, ...]]:
    by_stem = ids_by_stem(path)
    missing = [file.name for file in files if file.stem not in by_stem]
    if missing:
        raise InputError(f"{path}: lists no image for {len(missing)} chips, first {missing[0]}")
    refuse_twins(files)
    absent = len(by_stem) - len(files)
    note = (f"{path}: {absent} of its {len(by_stem)} images are not among the chips",) if absent else ()
    return {file: by_stem[file.stem] for file in files}, note


def refuse_twins(files: Sequence[Path]) -> None:
    """Refuse chips of the same name, where a COCO file knows them by name."""
    twins = [stem for stem, count in Counter(file.stem for file in files).items() if count > 1]
    if twins:
        raise InputError(f"several chips are called {twins[0]}{NPZ}; a COCO file cannot tell them apart")


def ids_by_stem(path: Path) -> dict[str, int]:
    """Image ids of a COCO file by the stem of the file name; InputError for what is no such file."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["images"]
        ids = [(Path(image["file_name"]).stem, int(image["id"])) for image in listed]
    except (OSError, ValueError, LookupError, TypeError) as exc:
        said = why(exc) if isinstance(exc, OSError) else repr(exc)
        raise InputError(f"{path}: cannot be read as a COCO file with images ({said})") from exc
    by_stem = dict(ids)
    if len(by_stem) != len(ids) or len(set(by_stem.values())) != len(ids):
        raise InputError(f"{path}: gives a file name or an id to several images")
    return by_stem


def _document(files: Sequence[Path], ids: Mapping[Path, int]) -> dict[str, Any]:
    shapes = {file: read_eight_bands(file).pixels.shape for file in files}
    rows = [
        {"id": ids[file], "file_name": file.name, "height": shape[1], "width": shape[2]}
        for file, shape in shapes.items()
    ]
    return coco_document(rows, [])

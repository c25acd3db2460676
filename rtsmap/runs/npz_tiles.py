"""Chips of eight bands (.npz) as the chips that `rtsmap tile` makes of scenes, but for a place on Earth."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet
from affine import Affine
from odc.geo.geobox import GeoBox

from rtsmap.atomic import refuse_inputs
from rtsmap.errors import InputError, LabelError
from rtsmap.instances.chip_labels import CATEGORY, coco_document
from rtsmap.instances.coco_scores import mask_of
from rtsmap.rasters.bands import OPTICAL_RGB, SPECTRAL
from rtsmap.rasters.eight_bands import EIGHT_BANDS, NPZ, EightBands, infrared_scale, read_eight_bands
from rtsmap.rasters.radiometry import Radiometry, Stretch
from rtsmap.rasters.writing import write_geotiff
from rtsmap.runs.chipping import ANNOTATIONS, INDEX, RUN, ChipReport
from rtsmap.runs.npz_chips import ids_by_stem, npz_files, refuse_twins
from rtsmap.runs.progress import Progress, silent

GROUPS = {
    "optical": OPTICAL_RGB.band_names,
    "terrain": ("relative_elevation", "shaded_relief"),
    "spectral": SPECTRAL.band_names,
}
"""Folders and their bands."""

_INDEX = pa.schema(
    {
        "chip": pa.int64(),
        "source": pa.string(),
        "resolution_m": pa.float64(),
        "height": pa.int64(),
        "width": pa.int64(),
        **{name: pa.string() for name in GROUPS},
        **{f"{name}_valid_share": pa.float64() for name in GROUPS},
    }
)


@dataclass(frozen=True, slots=True)
class _Labels:
    """Annotations by the stem of a chip, with the shape that their image is said to have."""

    path: Path
    shapes: Mapping[str, tuple[int, int]]
    annotations: Mapping[str, Sequence[Mapping[str, Any]]]


def cut_chips(
    given: Sequence[Path | str],
    *,
    out: Path | str,
    labels: Path | str | None = None,
    resolution_m: float | None = None,
    min_valid_share: float = 0.5,
    overwrite: bool = False,
    progress: Progress = silent,
) -> ChipReport:
    """Write chips of eight bands below the folder `out`, as GeoTIFF without a place, with an index.

    The folders are those of `GROUPS`; colours are 8 bit with a mask, all else float32 with NaN where nothing
    is known, near infrared on the 8-bit scale by the percentiles of the whole set. `labels` is a COCO file
    whose images have the chips' names (suffixes may differ). `resolution_m` is what a pixel shows, if that
    is known. The folder appears whole or not at all; of one that is overwritten, what is not of chips stays.
    Chips are not cut smaller.
    """
    out = Path(out)
    files = npz_files(given)
    _refuse_other_folders(out, overwrite=overwrite)
    refuse_inputs(out / ANNOTATIONS, [labels])
    known = None if labels is None else _read_labels(Path(labels), files)
    scale = infrared_scale(read_eight_bands(file) for file in files)
    rows: list[dict[str, Any]] = []
    left_out = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name[:40]}.", suffix=".part", dir=out.parent))
    try:
        for number, file in enumerate(files):
            progress("chips", number, len(files))
            chip = read_eight_bands(file)
            if chip.bands(GROUPS["optical"])[1].mean() < max(min_valid_share, 1e-9):
                left_out += 1
                continue
            _refuse_other_shape(known, file, chip)
            row = {"chip": number, "source": file.name, "resolution_m": resolution_m}
            rows.append(row | _write_chip(folder, number, chip, scale))
        annotations = [] if known is None else _annotate(folder / ANNOTATIONS, known, rows)
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema=_INDEX), folder / INDEX)
        _put_in_place(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    progress("chips", len(files), len(files))
    note = (f"{files[0].parent}: {Radiometry((scale,)).note}",) if scale else ()
    return ChipReport(out, len(rows), left_out, (), len(annotations), note)


def _refuse_other_folders(out: Path, *, overwrite: bool) -> None:
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / INDEX).is_file() or (out / RUN).exists():
        raise InputError(f"{out} is not empty; name a new folder for the chips")
    if not overwrite:
        raise InputError(f"{out} holds finished chips already; name another folder, or give --overwrite")


def _put_in_place(folder: Path, out: Path) -> None:
    """Move the new folder to its place, and the old one, if any, to where its chips are removed."""
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=".old.", suffix=".part", dir=out.parent))
        out.rename(old / out.name)
        folder.chmod(0o755)
        folder.rename(out)
        for other in (old / out.name).iterdir():
            if other.name not in {INDEX, ANNOTATIONS, *GROUPS}:
                other.rename(out / other.name)
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.chmod(0o755)
        folder.rename(out)


def _write_chip(folder: Path, number: int, chip: EightBands, scale: Stretch | None) -> dict[str, Any]:
    """One GeoTIFF a group; the index' columns about them."""
    columns: dict[str, Any] = {}
    columns["height"], columns["width"] = chip.pixels.shape[1:]
    geobox = GeoBox(chip.pixels.shape[1:], Affine.identity(), None)
    for name, bands in GROUPS.items():
        pixels, valid = chip.bands(bands)
        path = folder / name / f"{number:06d}.tif"
        path.parent.mkdir(exist_ok=True)
        if name == "optical":
            write_geotiff(path, np.rint(pixels).astype(np.uint8), geobox, valid=valid, band_names=bands)
        else:
            if scale and scale.band in bands:
                pixels[bands.index(scale.band)] = scale.apply(pixels[bands.index(scale.band)])
            each = chip.valid[[EIGHT_BANDS.index(band) for band in bands]]
            gaps = np.where(each, pixels, np.float32(np.nan))
            write_geotiff(path, gaps, geobox, nodata=float("nan"), band_names=bands)
        columns[name] = f"{name}/{path.name}"
        columns[f"{name}_valid_share"] = float(valid.mean())
    return columns


def _read_labels(path: Path, files: Sequence[Path]) -> _Labels:
    if path.suffix.lower() != ".json":
        raise LabelError(f"{path}: chips ({NPZ}) have no place, so that their labels are a COCO file (.json)")
    ids = ids_by_stem(path)
    refuse_twins(files)
    missing = [file.name for file in files if file.stem not in ids]
    if missing:
        raise LabelError(
            f"{path}: lists no image for {len(missing)} of {len(files)} chips, first {missing[0]}; what is "
            "not listed is not labelled, which is not the same as without slumps"
        )
    document = json.loads(path.read_text(encoding="utf-8"))
    stems = {number: stem for stem, number in ids.items()}
    found: dict[str, list[Mapping[str, Any]]] = {}
    try:
        shapes = {stems[i["id"]]: (int(i["height"]), int(i["width"])) for i in document["images"]}
        for annotation in document["annotations"]:
            found.setdefault(stems[annotation["image_id"]], []).append(annotation)
    except (LookupError, TypeError, ValueError) as exc:
        raise LabelError(f"{path}: is no COCO dataset with annotations ({exc!r})") from exc
    return _Labels(path, shapes, found)


def _refuse_other_shape(labels: _Labels | None, file: Path, chip: EightBands) -> None:
    shape = chip.pixels.shape[1:]
    if labels and labels.shapes[file.stem] != shape:
        raise LabelError(f"{labels.path}: {file.name} is {shape}, its entry says {labels.shapes[file.stem]}")


def _annotate(path: Path, labels: _Labels, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write the annotations of these chips as a COCO document of their own."""
    images: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for row in rows:
        shape = (row["height"], row["width"])
        images.append({"id": row["chip"], "file_name": row["optical"], "height": shape[0], "width": shape[1]})
        for annotation in labels.annotations.get(Path(row["source"]).stem, ()):
            own = {"iscrowd": 0, **annotation, "category_id": CATEGORY["id"]}
            own |= {"id": len(found) + 1, "image_id": row["chip"]}
            if "area" not in own:
                own["area"] = int(_mask(own, shape, labels.path).sum())
            found.append(own)
    document = coco_document(images, found, {"description": f"of {labels.path.name}"})
    path.write_text(json.dumps(document), encoding="utf-8")
    return found


def _mask(annotation: Mapping[str, Any], shape: tuple[int, int], path: Path) -> npt.NDArray[np.bool_]:
    try:
        return mask_of(annotation["segmentation"], shape)
    except (LookupError, TypeError, ValueError) as exc:
        raise LabelError(f"{path}: annotation {annotation['id']} has no outline ({exc!r})") from exc

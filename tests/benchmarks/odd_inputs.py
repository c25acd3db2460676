"""Every file of the shared data as scene, as elevation model and as labels: what rtsmap says to each.

    python -m tests.benchmarks.odd_inputs [--only NAME] [--csv FILE]

Each file goes through `info`, `predict` (with a detector by threshold), `evaluate map` and `tile`, in a
child process with a limit of 30 s. Prints outcome and message of each; ends with 1 when there
was a bug, a hang, a death or a partial output.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox

from rtsmap.errors import InputError
from rtsmap.rasters.sources import probe, run_grid
from rtsmap.rasters.writing import write_geotiff
from tests.benchmarks.worker import Told, Worker
from tests.runs.blob_scenes import blob_labels, write_dem, write_scene
from tests.shared_data import SHARED_DATA

FOLDERS = ("odd_rasters", "scenes", "rts_inventories")


@dataclass(frozen=True, slots=True)
class Row:
    file: str
    role: str
    told: Told
    left_over: str = ""


class Trial:
    """Tries files in every role, beside a small scene of our own."""

    def __init__(self, folder: Path, worker: Worker) -> None:
        self.folder, self.worker = folder, worker
        scene = write_scene(folder / "ours.tif", blob_labels((300, 300), 3, 12))
        self.scene = str(scene.path)
        self.dem = str(write_dem(folder / "our_dem.tif", scene.geobox))
        self.map = str(folder / "ours.gpkg")
        told = worker.run(["predict", self.scene, "--dem", self.dem, "-o", self.map], folder)
        assert told.outcome == "done", told

    def rows(self, name: str, path: Path):
        """The file as scene, as elevation model (under a scene on it, where one can lie) and as labels."""
        file, on_it = str(path), self._scene_on(path)
        yield self._row(name, "scene: info", ["info", file])
        yield self._map(name, "scene: predict", ["predict", file, "--no-second-look"])
        yield self._row(name, "dem: info", ["info", on_it, "--dem", file])
        yield self._map(name, "dem: predict", ["predict", on_it, "--dem", file, "--no-second-look"])
        yield self._row(name, "labels: evaluate", ["evaluate", "map", self.map, file])
        chips = self.folder / "chips"
        told = self.worker.run(["tile", self.scene, "--labels", file, "--out", str(chips)], self.folder)
        found = _remove(chips) if told.outcome != "done" else _remove(chips) and ""
        yield Row(name, "labels: tile", told, "" if told.outcome == "done" else found)

    def _row(self, name: str, role: str, arguments: list[str]) -> Row:
        return Row(name, role, self.worker.run(arguments, self.folder))

    def _map(self, name: str, role: str, arguments: list[str]) -> Row:
        out = self.folder / "out" / "map.gpkg"
        out.parent.mkdir()
        told = self.worker.run([*arguments, "-o", str(out)], self.folder)
        files = [f.name for f in out.parent.rglob("*") if f.is_file() and ".rtsrun" not in str(f.parent)]
        whole = ["map.gpkg"] if told.outcome in {"done", "partial"} else []
        left = "" if files == whole else f"left: {files}"
        _remove(out.parent)
        return Row(name, role, told, left)

    def _scene_on(self, dem: Path) -> str:
        """A small scene in the middle of a raster, or ours."""
        try:
            info = probe(dem)
            box = run_grid(info, 4.0).geobox
        except (InputError, rasterio.errors.RasterioError):
            return self.scene
        size = min(300, *box.shape)
        row, col = (box.shape[0] - size) // 2, (box.shape[1] - size) // 2
        here: GeoBox = box[row : row + size, col : col + size]
        red = np.where(blob_labels((size, size), 3, 12) > 0, 200, 90).astype(np.uint8)
        pixels = np.stack([red, np.full_like(red, 100), np.full_like(red, 80)])
        path = self.folder / "on_it.tif"
        write_geotiff(path, pixels, here, band_names=("red", "green", "blue"))
        return str(path)


def _remove(folder: Path) -> str:
    """Remove a folder; says what was in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()
    if folder.is_dir():
        folder.rmdir()
    return f"left: {[file.name for file in files]}" if files else ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="only files with this in their name")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    files = [p for name in FOLDERS for p in sorted((SHARED_DATA / name).rglob("*")) if p.is_file()]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, closing(Worker()) as worker:
        trial = Trial(Path(folder), worker)
        for path in files:
            name = str(path.relative_to(SHARED_DATA))
            if options.only not in name:
                continue
            for row in trial.rows(name, path):
                rows.append(row)
                message = row.told.message.replace(str(path), "FILE").replace(folder, "")
                print(
                    f"{name:70} {row.role:17} {row.told.outcome:8} {row.told.seconds:5.1f} s "
                    f"{row.told.peak_mb:5.0f} MB  {message[:300]} {row.left_over}",
                    flush=True,
                )
        started = worker.started
    if options.csv:
        with options.csv.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("file", "role", "outcome", "seconds", "peak_mb", "message", "left"))
            for row in rows:
                t = row.told
                writer.writerow(
                    (
                        row.file,
                        row.role,
                        t.outcome,
                        f"{t.seconds:.2f}",
                        f"{t.peak_mb:.0f}",
                        t.message,
                        row.left_over,
                    )
                )
    print(dict(Counter(row.told.outcome for row in rows)), f"worker started {started} times")
    bad = [row for row in rows if row.told.bad or row.left_over]
    for row in bad:
        print("BAD", row.file, row.role, row.told.outcome, row.left_over, row.told.text[-1500:])
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""Mutated files through rtsmap: bit flips, truncation, edited headers of GeoTIFFs, GeoPackages and bundles.

    python -m tests.benchmarks.mutations [--count 300] [--seed 1] [--keep FOLDER]

Each goes through one command in a child process (30 s, 2 GiB of resident memory; a new child when one dies).
Prints how many ended how, by kind of file; ends with 1 when rtsmap crashed, hung, or took more memory.
Mutants that did so are kept.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from rtsmap.models import write_bundle
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from rtsmap.vectors.labels import Polygons, read_polygons, write_polygons
from tests.benchmarks.worker import Told, Worker
from tests.runs.blob_scenes import blob_labels, write_dem, write_scene

EVIL = (0, 1, 0x7F, 0x80, 0xFF)
WORDS = (
    b"-9999",
    b"NaN",
    b"1e999",
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"../../x",
    b"%s",
)


def flip(data: bytearray, dice: random.Random) -> None:
    """Some bits anywhere."""
    for _ in range(dice.choice((1, 4, 32))):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def cut(data: bytearray, dice: random.Random) -> None:
    """The end is missing."""
    del data[dice.randrange(len(data)) :]


def edit_head(data: bytearray, dice: random.Random) -> None:
    """Bytes and words in the first part, where headers are."""
    head = min(len(data), dice.choice((64, 512, 4096)))
    for _ in range(dice.choice((1, 3, 8))):
        at = dice.randrange(head)
        if dice.random() < 0.5:
            data[at] = dice.choice(EVIL)
        else:
            word = dice.choice(WORDS)
            data[at : at + len(word)] = word


def edit_tags(data: bytearray, dice: random.Random) -> None:
    """Values of a TIFF's tags; of another file its middle."""
    if data[:4] != b"II*\x00":
        at = dice.randrange(len(data))
        data[at : at + 4] = dice.choice(WORDS)[:4]
        return
    directory = struct.unpack_from("<I", data, 4)[0]
    if directory + 2 > len(data):
        return
    count = struct.unpack_from("<H", data, directory)[0]
    for _ in range(dice.choice((1, 2, 4))):
        at = directory + 2 + 12 * dice.randrange(max(1, count)) + dice.choice((2, 4, 8))
        if at + 4 <= len(data):
            struct.pack_into(
                "<I",
                data,
                at,
                dice.choice((0, 1, 7, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, dice.randrange(1 << 32))),
            )


def repeat(data: bytearray, dice: random.Random) -> None:
    """A piece stands where another one was."""
    size = dice.randrange(1, 400)
    start, end = dice.randrange(len(data)), dice.randrange(len(data))
    data[end : end + size] = data[start : start + size]


MUTATIONS = (flip, cut, edit_head, edit_tags, repeat)


class Originals:
    """Whole files to mutate, and the command that each kind goes through."""

    def __init__(self, folder: Path, worker: Worker) -> None:
        self.folder = folder
        blobs = write_scene(folder / "scene.tif", blob_labels((300, 300), 3, 12))
        self.scene, self.dem = blobs.path, write_dem(folder / "dem.tif", blobs.geobox)
        self.map = folder / "map.gpkg"
        told = worker.run(["predict", str(self.scene), "--dem", str(self.dem), "-o", str(self.map)], folder)
        assert told.outcome == "done", told
        self.labels = {
            suffix: folder / f"labels{suffix}" for suffix in (".gpkg", ".geojson", ".shp", ".fgb", ".kml")
        }
        drawn = read_polygons(self.map)
        for path in self.labels.values():
            write_polygons(path, Polygons(drawn.geometries, drawn.crs))
        self.bundle = folder / "bundle"
        self._write_bundle()

    def _write_bundle(self) -> None:
        weights = self.folder / "weights.safetensors"
        save_file({"layer.weight": np.zeros((40, 30), np.float32)}, weights)
        write_bundle(
            self.bundle,
            weights=weights,
            network={"embed_dim": 32, "stage_blocks": [1, 2, 3, 1]},
            spec=InputSpec(4.0, (OPTICAL_RGB, TERRAIN)),
            name="bundle",
            version="1",
            description="for mutations",
            licence="none",
            training_data="none",
            parameters=1200,
            chip_px=256,
            overlap_px=64,
        )

    def mutate(self, dice: random.Random, place: Path) -> tuple[str, list[str], Path]:
        """(kind, command, mutated file)."""
        kind = dice.choice(("scene", "scene", "dem", "map", "labels", "labels", "bundle"))
        if kind == "bundle":
            target = place / "bundle"
            shutil.copytree(self.bundle, target)
            file = target / dice.choice(("card.toml", "model.json", "weights.safetensors"))
            _mutate(file, dice)
            return kind, ["models", "verify", str(target)], file
        if kind == "labels":
            suffix = dice.choice(list(self.labels))
            for part in self.folder.glob("labels.*"):
                if part.stem == "labels" and suffix in {part.suffix, ".shp"}:
                    shutil.copy(part, place)
            file = place / f"labels{suffix}"
            _mutate(dice.choice(list(place.iterdir())) if suffix == ".shp" else file, dice)
            return f"labels{suffix}", ["evaluate", "map", str(self.map), str(file)], file
        original = {"scene": self.scene, "dem": self.dem, "map": self.map}[kind]
        file = Path(shutil.copy(original, place))
        _mutate(file, dice)
        out = ["-o", str(place / "out.gpkg"), "--no-second-look"]
        command = {
            "scene": ["predict", str(file), "--dem", str(self.dem), *out],
            "dem": ["predict", str(self.scene), "--dem", str(file), *out],
            "map": dice.choice(
                (
                    ["evaluate", "map", str(file), str(self.labels[".gpkg"])],
                    ["export", str(file), str(place / "m.geojson")],
                )
            ),
        }[kind]
        return kind, command, file


def _mutate(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(dice.choice((1, 1, 2))):
        if data:
            dice.choice(MUTATIONS)(data, dice)
    path.write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="begin with this one, up to --count")
    parser.add_argument("--keep", type=Path, default=Path("mutants"))
    parser.add_argument("--limit-s", type=float, default=30)
    options = parser.parse_args()
    tally: Counter[tuple[str, str]] = Counter()
    bad: list[tuple[int, Told]] = []
    largest = slowest = 0.0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, closing(Worker(120)) as worker:
        originals = Originals(Path(folder), worker)
        worker.limit_s = options.limit_s
        for number in range(options.first, options.count):
            dice = random.Random(f"{options.seed} {number}")
            place = Path(folder) / "mutant"
            place.mkdir()
            kind, command, file = originals.mutate(dice, place)
            told = worker.run(command, place)
            left = [path.name for path in place.rglob("*.part")]
            made = (place / "out.gpkg").exists() and told.outcome not in {"done", "partial"}
            tally[kind, told.outcome] += 1
            largest, slowest = max(largest, told.peak_mb), max(slowest, told.seconds)
            if told.bad or left or made:
                bad.append((number, told))
                options.keep.mkdir(exist_ok=True)
                shutil.copy(file, options.keep / f"{options.seed}-{number}-{file.name}")
                print(f"BAD {number} {kind} {told.outcome} {told.message[:200]} {left}", flush=True)
                print(told.text[-1500:], flush=True)
            shutil.rmtree(place)
        starts = worker.started
    for kind in sorted({kind for kind, _ in tally}):
        print(f"{kind:16}", {outcome: n for (k, outcome), n in sorted(tally.items()) if k == kind})
    print(
        json.dumps(
            {
                "mutants": options.count - options.first,
                "outcomes": dict(Counter(outcome for (_, outcome), n in tally.items() for _ in range(n))),
                "bad": len(bad),
                "children": starts,
                "slowest_s": round(slowest, 1),
                "largest_mb": round(largest),
                "minutes": round((time.monotonic() - started) / 60, 1),
            }
        )
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

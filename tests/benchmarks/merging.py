"""Time and memory of making the map, by the number of detections on disk; a line through their logarithms.

    python -m tests.benchmarks.merging [--detections 100000 1000000] [--folder PLACE]

The ground is a lattice of ellipses; each tile of 256 pixels sees those in its read window, cut off at its
edges, as a network would give them, about 64 a tile. The shards are written first and not timed. Then, in a
process of its own, `rtsmap merge` does what users wait for: two passes over the shards, outlines, areas,
coverage, GeoPackage. The merge alone (two passes, slumps joined and let go) is told apart. Peaks are
those of the kernel (VmHWM), from which the state before the merge is told, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from math import log10
from pathlib import Path

import numpy as np

from rtsmap.instances.coverage import MAPPED, TileCoverage
from rtsmap.instances.detections import Detection, crop_mask, touched_sides
from rtsmap.instances.seams import TileMap
from rtsmap.rasters.tiling import Tile, Window
from rtsmap.runs.mapping import PredictOptions
from rtsmap.runs.merging import merge_shards
from rtsmap.runs.plan import ShardPlan
from rtsmap.runs.reopening import reopen
from rtsmap.runs.shards import Shard, TileResult, write_shard
from rtsmap.runs.spreading import merge_run, plan_run
from rtsmap.runs.working import read_shard_of
from rtsmap.timing import Ledger, measuring
from tests.benchmarks.memory import status_mib
from tests.runs.blob_scenes import engine, write_scene

CELL_PX = 32
CHIP_PX, OVERLAP_PX = 256, 64
OPTIONS = PredictOptions(second_look=False, shard_tiles=8)
ENGINE = engine(CHIP_PX, OVERLAP_PX)


def write_vrt(path: Path, side_px: int) -> Path:
    """A scene of any size in a few bytes: a small one, stretched."""
    small = write_scene(path.with_name("small.tif"), np.zeros((256, 256), int))
    box = small.geobox
    affine = ", ".join(str(value) for value in box.affine.to_gdal())
    band = (
        '<VRTRasterBand dataType="Byte" band="{n}"><ColorInterp>{color}</ColorInterp><SimpleSource>'
        '<SourceFilename relativeToVRT="1">small.tif</SourceFilename><SourceBand>{n}</SourceBand>'
        '<SrcRect xOff="0" yOff="0" xSize="256" ySize="256"/>'
        '<DstRect xOff="0" yOff="0" xSize="{side}" ySize="{side}"/></SimpleSource></VRTRasterBand>'
    )
    colors = enumerate(("Red", "Green", "Blue"), 1)
    bands = "".join(band.format(n=n, color=color, side=side_px) for n, color in colors)
    path.write_text(
        f'<VRTDataset rasterXSize="{side_px}" rasterYSize="{side_px}"><SRS>{box.crs}</SRS>'
        f"<GeoTransform>{affine}</GeoTransform>{bands}</VRTDataset>"
    )
    return path


@lru_cache(maxsize=1024)
def slump(a: int, b: int) -> np.ndarray:
    """The mask of an ellipse with these half axes."""
    rows, cols = np.ogrid[-a : a + 1, -b : b + 1]
    inside = (rows / a) ** 2 + (cols / b) ** 2 <= 1
    return np.where(inside, 220, 0).astype(np.uint8)


def parts_of(tile: Tile) -> list[Detection]:
    """What a tile sees of the lattice."""
    read, parts = tile.read, []
    for i in range(read.row0 // CELL_PX, -(-read.row1 // CELL_PX)):
        for j in range(read.col0 // CELL_PX, -(-read.col1 // CELL_PX)):
            dice = hash((i, j, 7)) & 0xFFFF
            mask = slump(6 + dice % 9, 6 + dice // 16 % 9)
            row, col = i * CELL_PX + 1 + dice // 256 % 3, j * CELL_PX + 1 + dice // 1024 % 3
            whole = Window(row, col, row + mask.shape[0], col + mask.shape[1])
            common = whole.intersection(read)
            cropped = (
                None if common.empty else crop_mask(mask[common.slices(whole)], (common.row0, common.col0))
            )
            if cropped:
                window, own = cropped
                score = 0.5 + dice / (1 << 17)
                sides = touched_sides(window, tile)
                parts.append(Detection(score, window, own, tile.index, sides, ("optical",)))
    return parts


def prepare(folder: Path, wanted: int) -> int:
    """A run whose shards hold about as many detections as wanted; gives how many they are."""
    tiles_a_side = max(2, round((wanted / 64) ** 0.5))
    side_px = tiles_a_side * (CHIP_PX - OVERLAP_PX) + OVERLAP_PX
    scene = write_vrt(folder / "scene.vrt", side_px)
    run = plan_run(scene, None, folder / "run", model=ENGINE, options=OPTIONS).run
    count = 0
    for shard in run.plan.shards():
        parts = [part for tile in shard.tiles for part in parts_of(tile)]
        results = tuple(
            TileResult(tile.index, TileCoverage(MAPPED), {"optical": 1.0}) for tile in shard.tiles
        )
        write_shard(
            run.shard_path(shard.index), Shard(shard.index, results, tuple(parts)), run.plan.fingerprint
        )
        count += len(parts)
    return count


def merge_alone(folder: Path) -> dict[str, float]:
    """Two passes over the shards; slumps are counted and let go."""
    scene_run = reopen(folder / "run", lambda _: ENGINE)
    task = scene_run.task
    tiles = TileMap(tile for shard in task.shards for tile in shard.tiles)

    def read(shard: ShardPlan) -> Shard:
        return read_shard_of(task.run, shard, scene_run.merge.min_part_score)

    before, wall, used = status_mib("VmRSS"), time.perf_counter(), time.process_time()
    slumps = sum(1 for _ in merge_shards(read, task.shards, tiles, scene_run.merge))
    return {
        "slumps": slumps,
        "seconds": time.perf_counter() - wall,
        "cpu_s": time.process_time() - used,
        "before_mib": before,
        "peak_mib": status_mib("VmHWM"),
    }


def merge_whole(folder: Path) -> dict[str, float]:
    """All of `rtsmap merge`, from the run directory to the GeoPackage."""
    before, wall, used = status_mib("VmRSS"), time.perf_counter(), time.process_time()
    ledger = Ledger()
    with measuring(ledger):
        report = merge_run(folder / "run", folder / "map.gpkg", model=ENGINE, overwrite=True)
    print("\n".join(ledger.lines()), file=sys.stderr)
    return {
        "slumps": report.footprints,
        "seconds": time.perf_counter() - wall,
        "cpu_s": time.process_time() - used,
        "before_mib": before,
        "peak_mib": status_mib("VmHWM"),
    }


def measured(way: str, folder: Path) -> dict[str, float]:
    """One way of merging in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.merging", "--once", way, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--detections", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--ways", nargs="+", default=["alone", "whole"], choices=["alone", "whole"])
    parser.add_argument("--folder", type=Path, help="where runs lie; kept")
    parser.add_argument(
        "--once", choices=["alone", "whole"], help="merge the run of --folder in this process"
    )
    options = parser.parse_args()
    if options.once:
        print(json.dumps({"alone": merge_alone, "whole": merge_whole}[options.once](options.folder)))
        return
    rows: list[tuple[str, int, dict[str, float]]] = []
    for wanted in options.detections:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            began = time.perf_counter()
            count = prepare(Path(name), wanted)
            size = sum(path.stat().st_size for path in Path(name).glob("run/*.arrow"))
            print(f"{count:,} detections, {size / 1e6:.0f} MB, made in {time.perf_counter() - began:.0f} s")
            for way in options.ways:
                found = measured(way, Path(name))
                rows.append((way, count, found))
                print(
                    f"  {way:5}: {found['slumps']:,} slumps, {found['seconds']:.1f} s, "
                    f"{found['cpu_s']:.1f} s CPU, {1e6 * found['cpu_s'] / count:.0f} us a detection; "
                    f"peak {found['peak_mib']:.0f} MiB, {found['before_mib']:.0f} before",
                    flush=True,
                )
    for way in options.ways:
        own = [(count, found) for mode, count, found in rows if mode == way]
        if len(own) > 1:
            sizes = [log10(count) for count, _ in own]
            time_slope = np.polyfit(sizes, [log10(found["cpu_s"]) for _, found in own], 1)[0]
            added = [log10(max(1.0, found["peak_mib"] - found["before_mib"])) for _, found in own]
            memory_slope = np.polyfit(sizes, added, 1)[0]
            print(f"{way}: CPU time grows as n^{time_slope:.2f}, added memory as n^{memory_slope:.2f}")


if __name__ == "__main__":
    main()

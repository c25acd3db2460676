"""Peak memory of mapping with a thresholding detector, by size of the scene; what grows, by stage.

    python -m tests.benchmarks.memory SIMULATED_FOLDER [--sizes-px 4096 10000] [--probability]

The folder is what `rtsmap simulate` wrote; its scene and elevation model are repeated up to each size, so the
number of slumps grows with the ground. Each map is made in a process of its own, whose peak is that of the
kernel (VmHWM); that of it and its children together is sampled (resident pages, shared ones counted once a
process). The slope is that of these sums between the smallest and the largest scene. `--looks` maps with
second looks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from rtsmap.runs.engine import Engine
from rtsmap.runs.mapping import PredictOptions, predict
from tests.benchmarks.large_scenes import repeat_scene


def status_mib(field: str) -> float:
    """A figure of the kernel about this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def finder(low: int) -> Engine:
    """An engine around the thresholding detector."""
    return Engine(
        spec=InputSpec(4.0, (OPTICAL_RGB, TERRAIN)),
        chip_px=256,
        overlap_px=64,
        identity={"detector": f"red from {low}"},
        load=partial(ThresholdDetector, low=low, high=255, min_px=40),
    )


def resident_mib(pid: int) -> float:
    """Resident memory of a process and all that it started."""
    total = 0.0
    with suppress(OSError, StopIteration, ValueError):
        total = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            total += sum(resident_mib(int(child)) for child in children.read_text().split())
    return total


def peak_mib(process: subprocess.Popen[bytes]) -> float:
    """The greatest sum of resident memory until a process has ended."""
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, resident_mib(process.pid))
        time.sleep(0.05)
    return peak


def map_once(scene: Path, dem: Path, low: int, *, looks: bool, probability: bool) -> None:
    """Map, and print the peak after each stage."""
    start = status_mib("VmRSS")
    peaks: dict[str, float] = {}

    def progress(stage: str, _done: int, _total: int) -> None:
        peaks[stage] = status_mib("VmHWM")

    wall, used = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "m.gpkg"
        report = predict(
            scene,
            dem,
            out=out,
            model=finder(low),
            options=PredictOptions(second_look=looks),
            probability=Path(folder) / "p.tif" if probability else None,
            progress=progress,
        )
        size_mb = out.stat().st_size / 1e6
    wall, used = time.perf_counter() - wall, time.process_time() - used
    stages = ", ".join(f"{stage} {peak:.0f}" for stage, peak in peaks.items())
    print(
        f"{report.tiles} tiles, {report.footprints} footprints ({size_mb:.0f} MB), {wall:.0f} s, "
        f"{used:.0f} s of CPU; MiB: start {start:.0f}, {stages}, at the end {status_mib('VmHWM'):.0f}",
        flush=True,
    )


def main() -> None:
    """Make the scenes, map each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes-px", type=int, nargs="+", default=[4096, 10_000])
    parser.add_argument("--cache-mb", type=int, default=256)
    parser.add_argument("--low", type=int, default=150, help="red from which a pixel is a slump")
    parser.add_argument("--looks", action="store_true", help="with second looks")
    parser.add_argument("--once", action="store_true", help="map scene.tif of the folder in this process")
    parser.add_argument("--probability", action="store_true", help="write that raster, too")
    arguments = parser.parse_args()
    if arguments.once:
        scene, dem = arguments.folder / "scene.tif", arguments.folder / "dem.tif"
        map_once(scene, dem, arguments.low, looks=arguments.looks, probability=arguments.probability)
        return
    peaks: dict[int, float] = {}
    for size_px in arguments.sizes_px:
        with tempfile.TemporaryDirectory() as name:
            repeat_scene(arguments.folder, Path(name), size_px)
            print(f"{size_px} x {size_px} pixels ({size_px**2 / 1e9:.3f} Gpx): ", end="", flush=True)
            command = [sys.executable, "-m", "tests.benchmarks.memory", name, "--once"]
            command += ["--probability"] if arguments.probability else []
            environment = os.environ | {"GDAL_CACHEMAX": str(arguments.cache_mb)}
            command += ["--low", str(arguments.low), *(["--looks"] if arguments.looks else [])]
            process = subprocess.Popen(command, env=environment)
            peaks[size_px] = peak_mib(process)
            if process.returncode:
                raise SystemExit(process.returncode)
            print(f"    peak of all processes together: {peaks[size_px]:.0f} MiB", flush=True)
    smallest, largest = min(peaks), max(peaks)
    if smallest < largest:
        slope = (peaks[largest] - peaks[smallest]) / ((largest**2 - smallest**2) / 1e9)
        print(f"slope: {slope:.0f} MiB per Gpx")


if __name__ == "__main__":
    main()

"""The whole command with the shipped model beside its network alone on the same chips, in turns.

    python -m tests.benchmarks.whole_command SIMULATED_FOLDER [--size-px 4096] [--turns 5] [--no-second-look]

The folder is what `rtsmap simulate` wrote; its scene and elevation model are repeated up to the size. One
run keeps all chips that the network was shown, batch by batch, those of second looks as well. Then, in turns
and each in a process of its own: `rtsmap predict --timings` from files to GeoPackage; the detector alone on
these chips, held in memory, with its lanes, one batch to a core; and the bare network, which torch runs on
batches of 8 as it likes. Second looks count as network on all sides, or are left out of all.

Two ratios are told: to the run of the network alone, from the start of its process to its end but for the
time in which it reads the kept chips; and to the network in it, without imports and the reading of weights,
which the command has in. CPU outside of the network is what the command used beyond that of the network; by
stage it is that of the threads that work there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np
import torch
from odc.geo.geobox import GeoBox
from threadpoolctl import threadpool_limits

from rtsmap.instances.detections import Detection, Detector
from rtsmap.mm.detector import stack
from rtsmap.rasters.chips import Chip, Layer
from rtsmap.rasters.tiling import Tile, Window
from rtsmap.runs.engine import engine_of
from rtsmap.runs.mapping import PredictOptions, predict
from tests.benchmarks.large_scenes import repeat_scene

_ROW = re.compile(r"^(\S.*?)\s+([\d.]+)\s+([\d.]+)%\s+([\d.]+)\s+(\d+)$")
_BATCH = 8
_NETWORK = ("inference", "inference again", "network", "network again", "waiting", "waiting again")


@dataclass
class Keeper:
    """A detector that keeps what it is shown, a file a call."""

    inner: Detector
    folder: Path
    calls: count

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        """What the inner one says."""
        kept = {
            f"{i}/{name}/{part}": getattr(layer, part)
            for i, chip in enumerate(chips)
            for name, layer in chip.layers.items()
            for part in ("pixels", "valid")
        }
        np.savez(self.folder / f"{next(self.calls):06d}.npz", **kept)
        return self.inner.detect(chips)


def keep_chips(scene: Path, dem: Path, folder: Path, *, looks: bool) -> None:
    """Map once, and keep the chips."""
    engine = engine_of(None)
    kept = replace(engine, load=partial(_keeper, engine.load, folder))
    predict(scene, dem, out=folder / "m.gpkg", model=kept, options=PredictOptions(second_look=looks))


def _keeper(load: partial[Detector], folder: Path) -> Keeper:
    return Keeper(load(), folder, count())


def network_alone(folder: Path) -> dict[str, float]:
    """The detector on all kept chips, as they came."""
    read = time.perf_counter()
    calls = [_chips(path) for path in sorted(folder.glob("*.npz"))]
    read = time.perf_counter() - read
    detector = engine_of(None).load()
    detector.detect(calls[0][:1])
    wall, cpu = time.perf_counter(), time.process_time()
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(getattr(detector, "calls_at_once", 1)) as callers:
        list(callers.map(detector.detect, calls))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"s": wall, "cpu": cpu, "read_s": read, "chips": sum(map(len, calls))}


def bare_network(folder: Path) -> dict[str, float]:
    """Nothing but torch: the network on all kept chips in batches, without masks brought to the grid."""
    read = time.perf_counter()
    chips = [chip for path in sorted(folder.glob("*.npz")) for chip in _chips(path)]
    read = time.perf_counter() - read
    network = engine_of(None).load().network
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for start in range(0, len(chips), _BATCH):
            network.detect(stack(chips[start : start + _BATCH], network.spec, "cpu"))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"s": wall, "cpu": cpu, "read_s": read, "chips": len(chips)}


def _chips(path: Path) -> list[Chip]:
    with np.load(path) as kept:
        names = list(kept.files)
        parts = {name: kept[name] for name in names}
    chips = []
    for i in range(1 + max(int(name.partition("/")[0]) for name in names)):
        own = {name.split("/")[1] for name in names if name.startswith(f"{i}/")}
        layers = {name: Layer(parts[f"{i}/{name}/pixels"], parts[f"{i}/{name}/valid"]) for name in own}
        shape = next(iter(layers.values())).valid.shape
        window = Window(0, 0, *shape)
        chips.append(Chip(layers, GeoBox.from_bbox((0, 0, 1, 1), shape=shape), Tile(i, window, window)))
    return chips


def whole_command(scene: Path, dem: Path, *, looks: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds, CPU and footprints of the command; CPU by stage."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "m.gpkg"
        command = [
            sys.executable,
            "-m",
            "rtsmap",
            "predict",
            str(scene),
            "--dem",
            str(dem),
            "--out",
            str(out),
        ]
        before, wall = _children_cpu(), time.perf_counter()
        done = subprocess.run(
            [*command, "--out", str(out), "--timings", *([] if looks else ["--no-second-look"])],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"COLUMNS": "200"},
        )
        wall = time.perf_counter() - wall
        if done.returncode:
            raise SystemExit(done.stderr)
    rows = [_ROW.match(line.strip()) for line in (done.stdout + done.stderr).splitlines()]
    stages = {row[1]: float(row[2]) for row in rows if row}
    return {"s": wall, "cpu": _children_cpu() - before}, stages


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


_ONLY = {"detector": network_alone, "bare network": bare_network}
_OF = {"run_s": "the run of the", "s": "the working time of the"}


def _in_a_process(name: str, kept: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.whole_command", str(kept), "--only", name]
    wall = time.perf_counter()
    told: dict[str, float] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return told | {"run_s": time.perf_counter() - wall - told["read_s"]}


def main() -> None:
    """Keep chips, take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size-px", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--no-second-look", action="store_true")
    parser.add_argument("--against", nargs="+", choices=_ONLY, default=list(_ONLY))
    parser.add_argument("--only", choices=_ONLY, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(_ONLY[arguments.only](arguments.folder)))
        return
    looks = not arguments.no_second_look
    with tempfile.TemporaryDirectory() as name:
        scene, dem = repeat_scene(arguments.folder, Path(name), arguments.size_px)
        kept = Path(name) / "chips"
        kept.mkdir()
        keep_chips(scene, dem, kept, looks=looks)
        compare(scene, dem, kept, arguments.turns, looks=looks, against=arguments.against)


def compare(scene: Path, dem: Path, kept: Path, turns: int, *, looks: bool, against: Sequence[str]) -> None:
    """Take turns and print each, then medians."""
    ratios: dict[tuple[str, str], list[float]] = {(name, of): [] for name in against for of in _OF}
    outside: dict[str, list[float]] = {name: [] for name in against}
    by_stage = []
    for turn in range(turns):
        whole, stages = whole_command(scene, dem, looks=looks)
        told = [f"command {whole['s']:.1f} s ({whole['cpu']:.1f} s of CPU)"]
        for name in against:
            only = _in_a_process(name, kept)
            for of in _OF:
                ratios[name, of].append(whole["s"] / only[of])
            told.append(
                f"{name} {only['run_s']:.1f} s, in it the network {only['s']:.1f} ({only['cpu']:.1f}), "
                f"ratios {ratios[name, 'run_s'][-1]:.3f} and {ratios[name, 's'][-1]:.3f}"
            )
            outside[name].append(whole["cpu"] - only["cpu"])
        by_stage.append(stages)
        print(f"turn {turn + 1}, {only['chips']} chips: {'; '.join(told)}", flush=True)
    print(f"second looks {'counted as network' if looks else 'left out'}; median ratios:")
    for (name, of), found in ratios.items():
        print(f"  to {_OF[of]} {name} alone: {median(found):.3f}")
    for name, seconds in outside.items():
        print(f"CPU beyond that of the {name}: {median(seconds):.1f} s (median)")
    print("CPU in named stages (median):")
    for stage in sorted(by_stage[0], key=lambda name: -by_stage[0][name]):
        if stage not in _NETWORK:
            print(f"  {stage:<22}{median(stages.get(stage, 0.0) for stages in by_stage):8.2f} s")


if __name__ == "__main__":
    main()

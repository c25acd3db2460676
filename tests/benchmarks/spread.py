"""What spreading out costs: overhead per tile on a Dask cluster, and the speed of two workers beside one.

    python -m tests.benchmarks.spread overhead [--tiles 100000] [--workers 8]
    python -m tests.benchmarks.spread scaling [--scenes 8] [--rounds 3] [--turn-s 1] [--unbound]

`overhead`: tiles of 16 pixels and a network that finds nothing, on a scheduler and workers in processes of
their own. Told are seconds of CPU of each kind of process by tile, which do not depend on what else the
machine does, and peaks of memory.

`scaling`: the shipped network, bare in one process, bare in two at once, with one worker of a run, with two
workers of a run. Chips, their batches and their number are the same in all; each process has one thread for
the network and, unless `--unbound`, one core to itself, with what it reads and writes. Loading is not timed:
all get ready, then the four take turns of a second while the others are stopped (SIGSTOP), so that a machine
whose speed changes changes it for all; told are the seconds of their own turns, until the last process is
done.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import pstdev
from typing import Any

from rtsmap.instances.detections import Detection
from rtsmap.rasters.chips import Chip, cut_chip
from rtsmap.runs.engine import engine_of
from rtsmap.runs.mapping import PredictOptions
from rtsmap.runs.on_dask import OnDask
from rtsmap.runs.reopening import reopen
from rtsmap.runs.spreading import plan_run
from rtsmap.runs.workers import Job, Worker, tell_nobody
from tests.benchmarks.merging import write_vrt
from tests.benchmarks.worker import ROOT
from tests.runs.blob_scenes import blob_labels, engine, write_dem, write_scene

_TICKS = os.sysconf("SC_CLK_TCK")

Work = Callable[[Any], Callable[[], None]]
"""Gets ready for a share, and gives what does it."""


@dataclass(frozen=True, slots=True)
class NoNetwork:
    """Sees nothing, at once."""

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        return [[] for _ in chips]


# --- overhead --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Process:
    """A process of the cluster, by its number."""

    name: str
    pid: int
    cpu_before_s: float = 0.0

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS - self.cpu_before_s

    def peak_mib(self) -> float:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def overhead(tiles: int, workers: int) -> None:
    """Map a scene of so many small tiles on a cluster of its own."""
    from distributed import Client

    side = round(tiles**0.5)
    finder = engine(16, 0, NoNetwork())
    options = PredictOptions(second_look=False, read_threads=1)
    children: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = plan_run(
            write_vrt(folder / "scene.vrt", 16 * side), None, folder / "run", model=finder, options=options
        )
        shards = run.run.plan.count_shards()
        start = partial(subprocess.Popen, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
        where = folder / "scheduler.json"
        try:
            children.append(
                start(
                    [
                        *dask_command("scheduler"),
                        "--scheduler-file",
                        str(where),
                        "--port",
                        "0",
                        "--no-dashboard",
                    ]
                )
            )
            worker = [
                *dask_command("worker"),
                "--scheduler-file",
                str(where),
                "--nthreads",
                "1",
                "--no-nanny",
            ]
            children += [start([*worker, "--no-dashboard"]) for _ in range(workers)]
            while not where.exists():
                time.sleep(0.1)
            with Client(scheduler_file=str(where)) as client:
                client.wait_for_workers(workers, timeout=300)
                address = client.scheduler.address
                # imports of the workers count for no tile
                client.run(_import)
            cluster = [Process("scheduler", children[0].pid), Process("client", os.getpid())]
            cluster += [Process("worker", child.pid) for child in children[1:]]
            before = {process.pid: process.peak_mib() for process in cluster}
            for process in cluster:
                process.cpu_before_s = process.cpu_s()
            began = time.perf_counter()
            done = OnDask(address).run(Job((folder / "run",), finder), tell_nobody)
            seconds = time.perf_counter() - began
            print(
                f"{side * side:,} tiles in {done.computed:,} of {shards:,} shards, {workers} workers on "
                f"{os.cpu_count()} cores: {seconds:.0f} s, {1e3 * seconds / side**2:.2f} ms a tile"
            )
            for kind in ("scheduler", "client", "worker"):
                own = [process for process in cluster if process.name == kind]
                cpu_s = sum(process.cpu_s() for process in own)
                peak = max(process.peak_mib() for process in own)
                first = max(before[process.pid] for process in own)
                print(
                    f"{kind:10} {cpu_s:7.1f} s of CPU, {1e6 * cpu_s / side**2:7.1f} us a tile; "
                    f"peak {peak:.0f} MiB, {first:.0f} before",
                    flush=True,
                )
        finally:
            for child in children:
                child.terminate()
            for child in children:
                child.wait()


def dask_command(kind: str) -> list[str]:
    """What starts a scheduler or a worker."""
    return [sys.executable, "-m", f"distributed.cli.dask_{kind}"]


def _import() -> None:
    importlib.import_module("tests.benchmarks.spread")


# --- scaling ---------------------------------------------------------------------------------------------


def scaling(scenes: int, side_px: int, rounds: int, turn_s: float, *, bound: bool) -> None:
    """Time bare networks and workers that take turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finder = engine_of(None, "cpu", "fp32")
        options = PredictOptions(second_look=False, read_threads=1, device="cpu", precision="fp32")
        inputs = []
        for number in range(scenes):
            made = write_scene(folder / f"s{number}.tif", blob_labels((side_px, side_px), number, 40))
            inputs.append((made.path, write_dem(folder / f"d{number}.tif", made.geobox)))
        chips = 0
        told: dict[str, list[float]] = {}
        for number_of_round in range(rounds):
            runs = {}
            for workers in (1, 2):
                runs[workers] = tuple(folder / f"run{number_of_round}-{workers}-{n}" for n in range(scenes))
                for (scene, dem), directory in zip(inputs, runs[workers], strict=True):
                    planned = plan_run(scene, dem, directory, model=finder, options=options).run
                    chips = scenes * sum(len(shard.tiles) for shard in planned.plan.shards())
            crews = {}
            for processes in (1, 2):
                shares = [runs[1][slot::processes] for slot in range(processes)]
                crews[f"bare {processes}"] = Crew(_bare, shares, bound=bound)
                ways = [(runs[processes], slot, processes) for slot in range(processes)]
                crews[f"rtsmap {processes}"] = Crew(_work, ways, bound=bound)
            row = take_turns(crews, turn_s)
            for way, seconds in row.items():
                told.setdefault(way, []).append(seconds)
            bare, ours = scalings(row)
            figures = ", ".join(f"{way} {seconds:.1f} s" for way, seconds in row.items())
            print(
                f"round {number_of_round + 1}, {chips} chips: {figures}; with two bare {bare:.3f}, "
                f"rtsmap {ours:.3f} times as fast: {ours / bare:.3f} of it",
                flush=True,
            )
            for directories in runs.values():
                for directory in directories:
                    shutil.rmtree(directory)
    bare, ours = scalings({name: sum(seconds) for name, seconds in told.items()})
    print(
        f"all rounds together: with two bare {bare:.3f}, rtsmap {ours:.3f} times as fast: "
        f"{ours / bare:.3f} of it{_without_each(told)}"
    )


def scalings(seconds: Mapping[str, float]) -> tuple[float, float]:
    """How many times as fast two are as one: bare networks, and workers."""
    return seconds["bare 1"] / seconds["bare 2"], seconds["rtsmap 1"] / seconds["rtsmap 2"]


def _without_each(told: Mapping[str, Sequence[float]]) -> str:
    """The standard error of the share, by leaving out one round after another (jackknife)."""
    rounds = len(told["bare 1"])
    if rounds < 3:
        return ""
    shares = []
    for left_out in range(rounds):
        bare, ours = scalings({name: sum(seconds) - seconds[left_out] for name, seconds in told.items()})
        shares.append(ours / bare)
    return f", standard error {(rounds - 1) ** 0.5 * pstdev(shares):.3f}"


class Crew:
    """Processes that work at once, and are stopped together while others have their turn.

    Made, they get ready; the work begins with the first turn.
    """

    def __init__(
        self, work: Callable[[Any], Callable[[], None]], shares: Sequence[Any], *, bound: bool
    ) -> None:
        context = get_context("spawn")
        self.seconds = 0.0
        self._busy: dict[Connection, BaseProcess] = {}
        self._pipes: list[Connection] = []
        self._children: list[BaseProcess] = []
        self._has_begun = False
        for slot, share in enumerate(shares):
            ours, theirs = context.Pipe()
            child = context.Process(target=_child, args=(work, share, slot if bound else None, theirs))
            child.start()
            theirs.close()
            self._pipes.append(ours)
            self._children.append(child)
            self._busy[ours] = child

    @property
    def is_done(self) -> bool:
        """True when the last of them has done its share."""
        return not self._busy

    def get_ready(self) -> None:
        """Wait until all are. Raises EOFError where one ended instead."""
        for pipe in self._pipes:
            pipe.recv()

    def take_turn(self, seconds: float) -> None:
        """Work so long, or until all is done."""
        began = time.monotonic()
        for pipe, child in self._busy.items():
            if self._has_begun:
                os.kill(child.pid or 0, signal.SIGCONT)
            else:
                pipe.send("begin")
        self._has_begun = True
        while self._busy and (left := began + seconds - time.monotonic()) > 0:
            for pipe in [pipe for pipe in wait(list(self._busy), left) if isinstance(pipe, Connection)]:
                pipe.recv()
                del self._busy[pipe]
        self.seconds += time.monotonic() - began
        for child in self._busy.values():
            os.kill(child.pid or 0, signal.SIGSTOP)

    def go_home(self) -> None:
        """End the processes, done or not."""
        for child in self._children:
            child.kill()
            child.join()


def take_turns(crews: Mapping[str, Crew], turn_s: float) -> dict[str, float]:
    """Seconds that each needed of its own time, while they work in turn so many seconds each."""
    try:
        for crew in crews.values():
            crew.get_ready()
        order = list(crews.values())
        while any(not crew.is_done for crew in order):
            for crew in order:
                if not crew.is_done:
                    crew.take_turn(turn_s)
            order.reverse()
        return {name: crew.seconds for name, crew in crews.items()}
    finally:
        for crew in crews.values():
            crew.go_home()


def _child(work: Any, share: Any, core: int | None, pipe: Connection) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)
    run = work(share)
    pipe.send("ready")
    pipe.recv()
    run()
    pipe.send("done")
    # what its end costs is nobody's work
    signal.pause()


def _bare(directories: Sequence[Path]) -> Callable[[], None]:
    """Chips of some runs in memory, shown to the network in the batches that a worker makes."""
    finder = engine_of(None, "cpu", "fp32")
    detector = finder.load()
    blocks = []
    for directory in directories:
        task = reopen(directory, lambda _: finder).task
        for shard in task.shards:
            layers = task.reader.read_block(shard.window)
            grid = task.run.plan.geobox
            blocks.append([cut_chip(layers, shard.window, tile, grid) for tile in shard.tiles])
    detector.detect(blocks[0][:1])

    def run() -> None:
        for chips in blocks:
            detector.detect(chips)

    return run


def _work(way: tuple[tuple[Path, ...], int, int]) -> Callable[[], None]:
    """A worker as `--workers` starts it, with its network loaded and its runs not yet opened."""
    directories, slot, slots = way
    start = slot * len(directories) // slots
    job = Job((*directories[start:], *directories[:start]))
    loaded = engine_of(None, "cpu", "fp32").loaded_once()
    task = reopen(directories[0], lambda _: loaded).task
    shard = task.shards[0]
    layers = task.reader.read_block(shard.window)
    loaded.load().detect([cut_chip(layers, shard.window, shard.tiles[0], task.run.plan.geobox)])
    worker = Worker(replace(job, model=loaded), slot)
    return lambda: _hold_finished(worker.do(replace(job, model=loaded)).unfinished)


def _hold_finished(unfinished: tuple[Path, ...]) -> None:
    if unfinished:
        raise RuntimeError(f"{len(unfinished)} scenes were not finished")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ways = parser.add_subparsers(dest="way", required=True)
    tiles = ways.add_parser("overhead")
    tiles.add_argument("--tiles", type=int, default=100_000)
    tiles.add_argument("--workers", type=int, default=8)
    speed = ways.add_parser("scaling")
    speed.add_argument("--scenes", type=int, default=8)
    speed.add_argument("--side-px", type=int, default=832, help="of a scene; 832 are one shard of 16 tiles")
    speed.add_argument("--rounds", type=int, default=3)
    speed.add_argument("--turn-s", type=float, default=1.0)
    speed.add_argument("--unbound", action="store_true")
    options = parser.parse_args()
    if options.way == "overhead":
        overhead(options.tiles, options.workers)
    else:
        scaling(options.scenes, options.side_px, options.rounds, options.turn_s, bound=not options.unbound)


if __name__ == "__main__":
    # by its name, under which other processes find what is sent to them
    importlib.import_module("tests.benchmarks.spread").main()

"""Faults as they come: a full disk, a read-only folder, a vanished scene, a server that drops connections.

    python -m tests.benchmarks.faults [full] [read-only] [vanished] [server]

Each maps a small scene in a process of its own (with a detector by threshold), prints what the user sees,
mends the fault, runs the same command again, and compares the map with that of an undisturbed run. The first
two mount a small tmpfs, and are skipped where that is not allowed. Ends with 1 when a map differs.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rtsmap.vectors.geopackage import read_layers
from tests.benchmarks.worker import ROOT, plain
from tests.runs.blob_scenes import blob_labels, write_dem, write_scene
from tests.runs.map_content import rows

PROGRAM = """
import sys
from rtsmap.runs import mapping
from tests.runs.blob_scenes import engine
mapping.engine_of = lambda *_, **__: engine()
from rtsmap.cli.main import run
run()
"""
COMMON = ("--shard-tiles", "2", "--simplify-m", "0", "--min-speck-px", "1")


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scene = write_scene(folder / "scene.tif", blob_labels((330, 330), 3, 40))
        self.scene = scene.path
        self.dem = write_dem(folder / "dem.tif", scene.geobox, share=0.7)
        self.whole = folder / "whole.gpkg"
        self.predict(self.scene, self.dem, self.whole, quiet=True)

    def command(self, scene, dem, out):
        # a script of its own, since Path would spoil an address
        arguments = ["predict", str(scene), "--dem", str(dem), "-o", str(out), *COMMON]
        return [sys.executable, "-c", PROGRAM, *arguments]

    def start(self, scene, dem, out):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "400"}
        return subprocess.Popen(
            self.command(scene, dem, out),
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def predict(self, scene, dem, out, *, quiet=False) -> int:
        child = self.start(scene, dem, out)
        text, _ = child.communicate(timeout=300)
        if not quiet:
            self.show(text, child.returncode)
        return child.returncode

    def show(self, text: str, code: int) -> None:
        lines = [line for line in plain(text).splitlines() if line.strip() and "━" not in line]
        lines = [line for line in lines if not line.startswith("Note:")]
        for line in [*lines[:3], *(["..."] if len(lines) > 9 else []), *lines[3:][-6:]]:
            print("   |", line.replace(str(self.folder), "")[:300])
        print(f"   exit code {code}")

    def same(self, out: Path) -> bool:
        """The same slumps and coverage; ids and the record go by where the scene lies, if on a server."""
        mine, theirs = read_layers(out), read_layers(self.whole)
        same = rows(mine.footprints, ("id",)) == rows(theirs.footprints, ("id",))
        same &= rows(mine.coverage) == rows(theirs.coverage)
        print("   the map is", "that of an undisturbed run" if same else "DIFFERENT", flush=True)
        return same


@contextmanager
def mounted(folder: Path, options: str):
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def full(bench: Bench) -> bool:
    """Small disks: for no plan, for some shards, for no map; then they grow, and the run goes on."""
    right = True
    for size in ("8k", "40k", "120k", "200k"):
        print(f"-- a disk of {size}")
        disk = bench.folder / "disk"
        with mounted(disk, f"size={size}"):
            out = disk / "m.gpkg"
            code = bench.predict(bench.scene, bench.dem, out)
            left = sorted(p.name for p in disk.rglob("*") if ".part" in p.name)
            print(f"   map there: {out.exists()}, half files: {left}")
            right &= code == 1 and not out.exists() and not left
            remount(disk, "size=50m")
            right &= bench.predict(bench.scene, bench.dem, out, quiet=True) == 0 and bench.same(out)
    return right


def read_only(bench: Bench) -> bool:
    print("-- a read-only folder")
    disk = bench.folder / "disk"
    with mounted(disk, "size=10m"):
        remount(disk, "ro")
        code = bench.predict(bench.scene, bench.dem, disk / "m.gpkg")
        remount(disk, "rw")
        again = bench.predict(bench.scene, bench.dem, disk / "m.gpkg", quiet=True)
        return code == 1 and again == 0 and bench.same(disk / "m.gpkg")


def vanished(bench: Bench) -> bool:
    print("-- a scene that vanishes")
    out, away = bench.folder / "v.gpkg", bench.folder / "away.tif"
    child = bench.start(bench.scene, bench.dem, out)
    run_dir = out.with_suffix(".rtsrun")
    while child.poll() is None and len(list(run_dir.glob("shard-*.arrow"))) < 3:
        time.sleep(0.01)
    bench.scene.rename(away)
    text, _ = child.communicate(timeout=120)
    bench.show(text, child.returncode)
    away.rename(bench.scene)
    right = child.returncode == 1 and not out.exists()
    return bench.predict(bench.scene, bench.dem, out, quiet=True) == 0 and bench.same(out) and right


class Unreliable(BaseHTTPRequestHandler):
    """Serves ranges of files below `root`; some answers are 500, some break off, some never come."""

    root = Path()
    share = 0.0
    dice = random.Random(5)
    counts: dict[str, int] = {}  # noqa: RUF012 - one server at a time
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body: bool):
        path = self.root / self.path.lstrip("/")
        kind = self.dice.choice(("500", "dropped", "cut")) if self.dice.random() < self.share else "good"
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind == "dropped":
            self.close_connection = True
            self.connection.close()
            return
        if kind == "500" or not path.is_file():
            self.send_error(500 if kind == "500" else 404)
            return
        data = path.read_bytes()
        start, end = 0, len(data) - 1
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start + 1))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.end_headers()
        if body:
            part = data[start : end + 1]
            self.wfile.write(part[: len(part) // 2] if kind == "cut" else part)
            if kind == "cut":
                self.close_connection = True
                self.connection.close()

    def handle(self):
        try:
            super().handle()
        except (OSError, ValueError):
            self.close_connection = True

    def log_message(self, *_):
        pass


def server(bench: Bench) -> bool:
    right = True
    Unreliable.root = bench.folder
    for share in (0.0, 0.1, 0.3, 0.6):
        Unreliable.share, Unreliable.counts = share, {}
        httpd = ThreadingHTTPServer(("127.0.0.1", 0), Unreliable)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        print(f"-- a server that fails {share:.0%} of its answers")
        address = f"http://127.0.0.1:{httpd.server_address[1]}"
        out = bench.folder / f"s{share:.0%}.gpkg"
        scene, dem = f"{address}/scene.tif", f"{address}/dem.tif"
        started = time.monotonic()
        code = bench.predict(scene, dem, out)
        print(f"   {time.monotonic() - started:.0f} s, answers: {Unreliable.counts}")
        if code:
            Unreliable.share = 0.0
            code = subprocess.run(
                [*bench.command(scene, dem, out), "--overwrite"],
                cwd=bench.folder,
                check=False,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
            ).returncode
        right &= code == 0 and bench.same(out)
        httpd.shutdown()
        httpd.server_close()
    return right


CASES = {"full": full, "read-only": read_only, "vanished": vanished, "server": server}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help="of: " + ", ".join(CASES))
    cases = parser.parse_args().cases or list(CASES)
    right = True
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for name in cases:
            try:
                right &= CASES[name](bench)
            except subprocess.CalledProcessError as exc:  # noqa: PERF203 - a few cases
                print(f"{name}: skipped ({exc})")
    print("all right" if right else "NOT RIGHT")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())

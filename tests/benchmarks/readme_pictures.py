"""The pictures of the README, of simulated data and the shipped model: a map and its report.

    python -m tests.benchmarks.readme_pictures [--out docs]

Writes map.jpg, and report.jpg where playwright and Chromium are installed. Takes a few minutes on a CPU.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from rtsmap.runs.mapping import predict
from rtsmap.runs.preview import draw_preview
from rtsmap.runs.report import write_report
from rtsmap.simulate.scenes import write_scene

SEED, SIZE_PX = 21, 512
WIDTH_PX = 1200


def main(out: Path) -> None:
    """Simulate, map, and draw."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_scene("benchmark-1", SEED, folder / "simulated", size_px=SIZE_PX)
        scene, dem = files.scene, files.dem
        report = predict(scene, dem, out=folder / "slumps.gpkg")
        title = f"{report.footprints} slumps found by rtsmap on a simulated scene"
        draw_preview(report.out, scene, dem, folder / "map.png", truth=files.truth, title=title)
        keep(folder / "map.png", out / "map.jpg")
        write_report(report.out, folder / "report.html", scene=scene, dem=dem)
        if photograph(folder / "report.html", folder / "report.png"):
            keep(folder / "report.png", out / "report.jpg")


def photograph(page: Path, png: Path) -> bool:
    """The top of a page and its gallery as Chromium shows them; False where there is no browser."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        browser = None
    if browser is None:
        print("report.jpg: not drawn, it takes playwright and Chromium")
        return False
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = started.new_page(viewport={"width": WIDTH_PX, "height": 1260})
        tab.goto(page.as_uri())
        tab.screenshot(path=str(png))
        started.close()
    return True


def keep(png: Path, jpg: Path) -> None:
    """A picture small enough for a repository."""
    with Image.open(png) as picture:
        height = round(picture.height * WIDTH_PX / picture.width)
        picture.convert("RGB").resize((WIDTH_PX, height), Image.Resampling.LANCZOS).save(jpg, quality=82)
    print(f"{jpg}: {jpg.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    main(parser.parse_args().out)

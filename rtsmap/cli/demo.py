"""`rtsmap demo`: simulate, map, export, draw."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def command(
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for everything that the demo makes.")
    ] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another landscape.")] = 7,
    size_px: Annotated[int | None, typer.Option(min=128, help="Side of the scene at 4 m per pixel.")] = None,
    model: Annotated[str | None, typer.Option(help="Shipped model or folder of a bundle.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
) -> None:
    """Simulate a tundra scene with its elevation model, map it, export the map and draw the picture.

    Examples:
      rtsmap demo
      rtsmap demo --out somewhere --seed 12 --overwrite
    """
    from rtsmap.cli.console import progress_bars, tell
    from rtsmap.instances.evaluate import evaluate
    from rtsmap.rasters.sources import probe
    from rtsmap.runs.mapping import predict
    from rtsmap.runs.preview import draw_preview
    from rtsmap.simulate.scenes import write_scene
    from rtsmap.vectors.export import export_map
    from rtsmap.vectors.geopackage import read_map
    from rtsmap.vectors.labels import read_polygons
    from rtsmap.wording import count_of

    tell(f"1/4 Simulating a scene with its elevation model (seed {seed})")
    simulated = write_scene("demo", seed, out, size_px=size_px, overwrite=overwrite)
    tell("2/4 Mapping it")
    gpkg = out / "slumps.gpkg"
    with progress_bars() as progress:
        report = predict(
            simulated.scene,
            simulated.dem,
            out=gpkg,
            model=model,
            overwrite=overwrite,
            discard_run=True,
            progress=progress,
        )
    for note in report.kept:
        tell(f"Note: {note}")
    tell("3/4 Exporting the map")
    export_map(gpkg, out / "slumps.geojson", overwrite=overwrite)
    export_map(gpkg, out / "slumps.shp", overwrite=overwrite)
    tell("4/4 Drawing the picture")
    found = read_map(gpkg)
    truth = read_polygons(simulated.truth).to_crs(probe(simulated.scene).crs)
    matches = evaluate(list(found.geometry), truth.geometries, list(found["score"]), (0.3,))[0]
    title = (
        f"{count_of(report.footprints, 'slump')} mapped; of {matches.n_truth} true ones "
        f"{matches.true_positives} found "
        f"(precision {matches.precision:.2f}, recall {matches.recall:.2f} at IoU 0.3)"
    )
    draw_preview(
        gpkg, simulated.scene, simulated.dem, out / "preview.png", truth=simulated.truth, title=title
    )
    tell(title)
    tell(f"Next: `rtsmap report {shlex.quote(str(gpkg))}` makes a page of it; QGIS opens {gpkg}")
    typer.echo(out / "preview.png")

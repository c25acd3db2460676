"""`rtsmap doctor`: what is installed, what is broken, and how to mend it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import typer


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `remedy` says how to mend it; an `essential` one stops rtsmap from mapping."""

    subject: str
    state: str
    remedy: str = ""
    essential: bool = True

    @property
    def broken(self) -> bool:
        """True when there is something to mend."""
        return bool(self.remedy)


def command() -> None:
    """Say which versions are installed, whether a GPU is seen, and what is broken and how to mend it.

    Exit code 1 if rtsmap cannot map with what is there.

    Example: rtsmap doctor
    """
    findings = list(examine())
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = "ok  " if not finding.broken else "FAIL" if finding.essential else "note"
        typer.echo(f"{mark}  {finding.subject:<{width}}  {finding.state}")
        if finding.broken:
            typer.echo(f"{'':6}{'':<{width}}  -> {finding.remedy}")
    if any(finding.broken and finding.essential for finding in findings):
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """Look at everything rtsmap stands on, the most basic first."""
    import platform

    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    for subject, look in {
        "rtsmap": _rtsmap,
        "arrays": _arrays,
        "rasters": _rasters,
        "projections": _projections,
        "vectors": _vectors,
        "network": _network,
        "models": _models,
    }.items():
        yield from _look(subject, look)


def _look(subject: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except Exception as exc:  # noqa: BLE001 - whatever a broken package throws is a finding too
        first = (str(exc).strip() or "no message").splitlines()[0]
        yield Finding(subject, f"broken: {type(exc).__name__}: {first}", _REINSTALL)


_REINSTALL = f"{sys.executable} -m pip install --force-reinstall rtsmap"


def _rtsmap() -> Iterator[Finding]:
    from rtsmap import __file__, __version__

    yield Finding("rtsmap", f"{__version__} in {Path(__file__).parent}")


def _arrays() -> Iterator[Finding]:
    from importlib import import_module, metadata

    names = ("numpy", "scipy", "shapely", "pyarrow", "odc-geo")
    for name in ("numpy", "scipy.ndimage", "shapely", "pyarrow", "odc.geo.geobox"):
        import_module(name)
    yield Finding("arrays", ", ".join(f"{name} {metadata.version(name)}" for name in names))


def _rasters() -> Iterator[Finding]:
    """A raster written and read again: this needs GDAL, and PROJ's database as GDAL finds it."""
    import tempfile

    import numpy as np
    import rasterio
    from odc.geo.geobox import GeoBox

    from rtsmap.rasters.reading import read_native
    from rtsmap.rasters.sources import probe
    from rtsmap.rasters.writing import write_geotiff

    pixels = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    geobox = GeoBox.from_bbox((500_000, 7_700_000, 500_016, 7_700_012), "EPSG:32608", shape=(3, 4))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.tif"
        write_geotiff(path, pixels, geobox)
        info = probe(path)
        same = info.crs.epsg == 32608 and np.array_equal(read_native(info, [1]).pixels, pixels)
    remedy = f"a GeoTIFF does not read back as written; unset GDAL_DATA and PROJ_DATA, or {_REINSTALL}"
    state = f"rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}"
    yield Finding("rasters", state, "" if same else remedy)


def _projections() -> Iterator[Finding]:
    import pyproj

    # on its true-scale parallel a polar stereographic radius is the parallel's own:
    # a cos(70) / sqrt(1 - e2 sin(70)^2)
    transformer = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3413", always_xy=True)
    x, y = transformer.transform(-45.0, 70.0)
    works = abs(x) < 1 and abs(y + 2_187_928) < 1
    remedy = f"PROJ gives wrong coordinates ({x:.0f}, {y:.0f}); unset PROJ_DATA, or {_REINSTALL}"
    state = f"pyproj {pyproj.__version__}, PROJ {pyproj.proj_version_str}"
    yield Finding("projections", state, "" if works else remedy)


def _vectors() -> Iterator[Finding]:
    """Polygons written to a GeoPackage and read again."""
    import tempfile
    from importlib import metadata

    import shapely
    from odc.geo.crs import CRS

    from rtsmap.vectors.labels import Polygons, read_polygons, write_polygons

    box = shapely.box(500_000, 7_700_000, 500_016, 7_700_012)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.gpkg"
        write_polygons(path, Polygons((box,), CRS("EPSG:32608")))
        back = read_polygons(path)
    same = back.crs.epsg == 32608 and back.geometries[0].equals(box)
    state = f"pyogrio {metadata.version('pyogrio')}, geopandas {metadata.version('geopandas')}"
    yield Finding("vectors", state, "" if same else f"a GeoPackage does not read back; {_REINSTALL}")


def _network() -> Iterator[Finding]:
    from rtsmap.mm import health

    yield Finding("torch", *health.torch_works())
    yield Finding("torchvision", *health.torchvision_works())
    yield Finding("gpu", *health.gpu_works(), essential=False)
    yield Finding("mmdet", *health.mmdet_works())
    yield Finding("nms", *health.operators())


def _models() -> Iterator[Finding]:
    from rtsmap.models import DEFAULT_BUNDLE, list_bundles

    names = list_bundles()
    if DEFAULT_BUNDLE not in names:
        remedy = f"{_REINSTALL}, or map with --model FOLDER"
        yield Finding("models", f"the default model '{DEFAULT_BUNDLE}' is missing", remedy)
    yield from map(_model, names)


def _model(name: str) -> Finding:
    from rtsmap.errors import ModelError
    from rtsmap.models import DEFAULT_BUNDLE, load_bundle

    try:
        card = load_bundle(name)
    except ModelError as exc:
        return Finding(f"model {name}", str(exc), _REINSTALL, essential=name == DEFAULT_BUNDLE)
    return Finding(f"model {name}", f"{card.version}, whole")

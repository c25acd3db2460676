"""What tells a raster's content from that of another, without reading it whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rasterio.windows import Window as RasterioWindow

from rtsmap.rasters.opening import (
    archive_of,
    local_path,
    opened,
    patiently,
)
from rtsmap.rasters.radiometry import lattice
from rtsmap.rasters.sources import probe

_SAMPLE_BYTES = 65_536
_SAMPLES = 16
_PIECES = 4


def fingerprint(path: Path | str) -> dict[str, Any]:
    """What identifies a raster's content: header fields, sizes, a hash of sampled bytes.

    Neither name, place nor time of the file count, so copies agree. Sources of a VRT, external overviews
    and masks belong to it; statistics that viewers leave beside a file do not. Of an archive all counts, and
    of what lies in one, on a server, or is a part of a file, sampled pixels.
    """
    info = probe(path)
    digest = hashlib.sha256()
    sizes = []
    for size, sampled in _samples(info.path, set()):
        digest.update(sampled)
        sizes += [] if size is None else [size]
    return {
        "shape": list(info.geobox.shape),
        "transform": [float(v) for v in tuple(info.geobox.affine)[:6]],
        "crs": info.crs.to_wkt(),
        "count": info.count,
        "dtype": info.dtype,
        "nodata": None if info.nodata is None else repr(info.nodata),
        "band_names": list(info.band_names),
        "overviews": list(info.overviews),
        "sizes_bytes": sorted(sizes),
        "sha256_of_samples": digest.hexdigest(),
    }


def _samples(name: str, seen: set[str]) -> Iterator[tuple[int | None, bytes]]:
    """Size and sampled bytes of each file that a raster is made of; where one is no file, None and pixels."""
    with opened(name) as src:
        files = [file for file in src.files if not file.endswith(".aux.xml")]
    for file in files:
        path = local_path(file) or archive_of(file)
        if file in seen or path is None or not path.is_file():
            continue
        seen.add(file)
        is_virtual = path.suffix.lower() == ".vrt"
        yield 0 if is_virtual else path.stat().st_size, _sampled_bytes(path)
        if is_virtual:
            yield from _samples(file, seen)
    if any(local_path(one) != Path(one) for one in (name, *files)):
        yield None, _sampled_pixels(name)


def _sampled_pixels(name: str) -> bytes:
    """Evenly spread pieces of the coarsest overview."""

    def read() -> bytes:
        with opened(name) as src:
            count = len(src.overviews(1))
        with opened(name, **({"overview_level": count - 1} if count else {})) as src:
            places = [RasterioWindow.from_slices(*w.slices()) for w in lattice(src.shape, _PIECES)]
            return b"".join(src.read(window=place).tobytes() for place in places)

    return patiently(read, name, name)


def _sampled_bytes(path: Path) -> bytes:
    """Head, tail and evenly spread pieces of a file; of a VRT its text without the folders in it."""
    if path.suffix.lower() == ".vrt":
        text = re.sub(r"(<SourceFilename[^>]*>)(?:[^<]*[/\\])?", "<SourceFilename>", path.read_text())
        return text.encode()
    size = path.stat().st_size
    last = max(0, size - _SAMPLE_BYTES)
    pieces = []
    with path.open("rb") as stream:
        for i in range(_SAMPLES):
            stream.seek(last * i // (_SAMPLES - 1))
            pieces.append(stream.read(_SAMPLE_BYTES))
    return b"".join(pieces)

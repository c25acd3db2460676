"""A first reading of a vector file, in a process of its own; called through `rtsmap.sandbox`."""

from __future__ import annotations

import warnings
from contextlib import suppress


def look(source: str, layer: str | None) -> None:
    """Read all of a layer, as `rtsmap.vectors` will do; what it raises as an error, it will raise there."""
    warnings.simplefilter("ignore")
    if source.lower().endswith((".parquet", ".geoparquet")):
        import pyarrow as pa
        from pyarrow import parquet

        with suppress(OSError, ValueError, pa.ArrowException):
            parquet.read_table(source)
        return
    import pyogrio

    with suppress(pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError, RuntimeError):
        names = [layer] if layer else [str(name) for name, kind in pyogrio.list_layers(source) if kind]
        for name in names:
            pyogrio.raw.read(source, layer=name)

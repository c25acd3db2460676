"""Columns that people add to a map, of the kinds that they gave them: dates, numbers and flags with gaps."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import geopandas
import pandas as pd
import pyarrow as pa
import pyogrio

DATE = pd.ArrowDtype(pa.date32())
"""A day without a time, for which pandas has no kind of its own."""

_KINDS: Mapping[str, tuple[pa.DataType, Any]] = {
    "datetime64[D]": (pa.date32(), DATE),
    "bool": (pa.bool_(), pd.BooleanDtype()),
    "int16": (pa.int16(), pd.Int16Dtype()),
    "int32": (pa.int32(), pd.Int32Dtype()),
    "int64": (pa.int64(), pd.Int64Dtype()),
}
"""By kind of a column in its file: that of Arrow, and that of pandas which has all its values, and gaps."""


def with_kinds(
    frame: geopandas.GeoDataFrame, path: Path, layer: str, but: Collection[str]
) -> geopandas.GeoDataFrame:
    """The frame that was read of a layer, with all columns `but` these of the kind that the file says.

    As pandas reads them, dates have a time, and whole numbers and flags with gaps are fractions.
    """
    info = pyogrio.read_info(path, layer=layer)
    stored = {name: str(kind) for name, kind in zip(info["fields"], info["dtypes"], strict=True)}
    changed = [
        name
        for name, kind in stored.items()
        if kind in _KINDS and name in frame and name not in but and str(frame[name].dtype) != kind
    ]
    if not changed:
        return frame
    kinds = dict(_KINDS.values())
    with warnings.catch_warnings():
        # all has been said when the layer was read first
        warnings.simplefilter("ignore")
        columns = pyogrio.read_dataframe(
            path,
            layer=layer,
            columns=changed,
            read_geometry=False,
            use_arrow=True,
            arrow_to_pandas_kwargs={"types_mapper": kinds.get},
        )
    return frame.assign(**{name: columns[name].set_axis(frame.index) for name in changed})


def needs_arrow(frame: pd.DataFrame) -> bool:
    """True for a frame with kinds that pyogrio writes by Arrow alone: dates, and bytes."""
    return any(
        kind == DATE or (kind == "object" and pd.api.types.infer_dtype(frame[name], skipna=True) == "bytes")
        for name, kind in frame.dtypes.items()
    )

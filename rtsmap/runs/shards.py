"""Shards: what a block of tiles gave, in one Arrow IPC file that appears whole or not at all.

One row a detection, sorted, its mask zlib-compressed. What became of each tile, and where it had data,
stands in the schema's metadata, with a sha256 over all of it. The same content gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rtsmap.atomic import whole_file
from rtsmap.errors import RtsmapError, ShardError
from rtsmap.instances.coverage import FAILED, TileCoverage
from rtsmap.instances.detections import Detection, Side
from rtsmap.rasters.tiling import Tile, Window
from rtsmap.runs.plan import ShardPlan

MAX_SHARD_BYTES = 1 << 30
_BROKEN = (pa.ArrowException, zlib.error, ArithmeticError, AttributeError)
_ALL_SIDES = int(Side.TOP | Side.RIGHT | Side.BOTTOM | Side.LEFT)
_SCHEMA = pa.schema(
    [
        pa.field("tile", pa.int64(), nullable=False),
        pa.field("row0", pa.int64(), nullable=False),
        pa.field("col0", pa.int64(), nullable=False),
        pa.field("row1", pa.int64(), nullable=False),
        pa.field("col1", pa.int64(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("sides", pa.uint8(), nullable=False),
        pa.field("modalities", pa.list_(pa.string()), nullable=False),
        pa.field("mask", pa.binary(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class TileResult:
    """What became of one tile; `shares` is the share of its read window with data, 0..1, by modality."""

    tile: int
    coverage: TileCoverage
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shard:
    """Detections and tile results of one block of tiles, both in the order of tiles.

    `halvings` counts how often the detector halved its batches, being short of memory.
    """

    index: int
    tiles: tuple[TileResult, ...]
    detections: tuple[Detection, ...]
    halvings: int = 0

    @property
    def failed(self) -> tuple[TileResult, ...]:
        """Tiles that could not be mapped."""
        return tuple(tile for tile in self.tiles if tile.coverage.status == FAILED)


def write_shard(path: Path, shard: Shard, plan_fingerprint: str) -> None:
    """Write a shard: fsynced, then renamed into place. Raises ShardError when the disk refuses."""
    head = {
        "shard": shard.index,
        "plan": plan_fingerprint,
        "tiles": [_tile_to_dict(result) for result in sorted(shard.tiles, key=lambda t: t.tile)],
    }
    if shard.halvings:
        head["halvings"] = shard.halvings
    text = json.dumps(head, sort_keys=True)
    rows = sorted((_row(detection) for detection in shard.detections), key=_order)
    schema = _SCHEMA.with_metadata({"rtsmap": text, "sha256": _digest(text, rows)})
    try:
        with (
            whole_file(path, overwrite=True) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
        ):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    except (OSError, RtsmapError) as exc:
        raise ShardError(
            f"shard {path} cannot be written: {exc}. Free some space or name another run directory with "
            "--run-dir; finished shards stay"
        ) from exc


def read_shard(path: Path, plan: ShardPlan, plan_fingerprint: str, min_score: float = 0.0) -> Shard:
    """Read a shard and check it against its plan; raises ShardError for anything that does not fit.

    Detections that score less than `min_score` are left out, their masks not unpacked.
    """
    try:
        head, rows = _read_rows(path)
        return _checked(head, rows, plan, plan_fingerprint, min_score)
    except (RtsmapError, OSError, MemoryError, ValueError, LookupError, TypeError, *_BROKEN) as exc:
        raise ShardError(
            f"shard {path} is damaged ({type(exc).__name__}: {exc}). "
            "Delete it and run the same command again: only this shard is computed again"
        ) from exc


def _read_rows(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    size = path.stat().st_size
    if size > MAX_SHARD_BYTES:
        raise ValueError(f"{size} bytes, wanted at most {MAX_SHARD_BYTES}")
    with pa.OSFile(str(path), "rb") as source, pa.ipc.open_file(source) as reader:
        if not reader.schema.equals(_SCHEMA):
            raise ValueError(f"columns {reader.schema.names}, wanted {_SCHEMA.names}")
        text = reader.schema.metadata[b"rtsmap"].decode()
        table = reader.read_all()
        # Arrow itself trusts the file: a damaged offset would be read outside of memory
        table.validate(full=True)
        rows = table.to_pylist()
        if _digest(text, rows) != reader.schema.metadata[b"sha256"].decode():
            raise ValueError("its sha256 does not fit its content")
        head: dict[str, Any] = json.loads(text)
        return head, rows


def _checked(
    head: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    plan: ShardPlan,
    fingerprint: str,
    min_score: float,
) -> Shard:
    if head["plan"] != fingerprint or head["shard"] != plan.index:
        raise ValueError(f"it is shard {head['shard']} of another plan, wanted {plan.index}")
    tiles = {tile.index: tile for tile in plan.tiles}
    if [entry["tile"] for entry in head["tiles"]] != list(tiles):
        raise ValueError("its tiles are not those of the plan")
    results = tuple(_tile_from_dict(entry, tiles[entry["tile"]]) for entry in head["tiles"])
    if not all(0 <= row["score"] <= 1 for row in rows):
        raise ValueError("a detection scores outside of 0..1")
    halvings = int(head.get("halvings", 0))
    detections = tuple(_detection(row, tiles) for row in rows if row["score"] >= min_score)
    return Shard(plan.index, results, detections, halvings)


def _digest(head: str, rows: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256(head.encode())
    for row in rows:
        digest.update(repr([row[name] for name in _SCHEMA.names]).encode())
    return digest.hexdigest()


def _row(detection: Detection) -> dict[str, Any]:
    window = detection.window
    return {
        "tile": detection.tile,
        "row0": window.row0,
        "col0": window.col0,
        "row1": window.row1,
        "col1": window.col1,
        "score": float(detection.score),
        "sides": int(detection.sides),
        "modalities": list(detection.modalities),
        "mask": zlib.compress(np.ascontiguousarray(detection.mask).tobytes(), 3),
    }


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    keys = ("tile", "row0", "col0", "row1", "col1")
    return (*(row[key] for key in keys), -row["score"], row["mask"])


def _detection(row: Mapping[str, Any], tiles: Mapping[int, Tile]) -> Detection:
    window = Window(row["row0"], row["col0"], row["row1"], row["col1"])
    # checked before anything is unpacked: it also bounds the mask's size
    if window.empty or not tiles[row["tile"]].read.contains(window):
        raise ValueError(f"a detection at {window} lies outside its tile {row['tile']}")
    if not 0 <= row["sides"] <= _ALL_SIDES:
        raise ValueError(f"a detection in tile {row['tile']} touches unknown sides {row['sides']}")
    height, width = window.shape
    mask = np.frombuffer(_unpack(row["mask"], height * width), dtype=np.uint8)
    return Detection(
        score=row["score"],
        window=window,
        mask=mask.reshape(height, width),
        tile=row["tile"],
        sides=Side(row["sides"]),
        modalities=tuple(row["modalities"]),
    )


def _tile_to_dict(result: TileResult) -> dict[str, Any]:
    coverage = result.coverage
    return {
        "tile": result.tile,
        "status": coverage.status,
        "reason": coverage.reason,
        "shares": dict(result.shares),
        "stride": coverage.stride,
        "cells": None if coverage.valid is None else _pack_bits(coverage.valid),
    }


def _tile_from_dict(entry: Mapping[str, Any], tile: Tile) -> TileResult:
    stride, cells = int(entry["stride"]), entry["cells"]
    shape = (-(-tile.core.height // stride), -(-tile.core.width // stride))
    valid = None if cells is None else _unpack_bits(cells, shape)
    coverage = TileCoverage(entry["status"], str(entry["reason"]), valid, stride)
    return TileResult(tile.index, coverage, {str(name): float(v) for name, v in entry["shares"].items()})


def _pack_bits(cells: npt.NDArray[np.bool_]) -> str:
    return base64.b64encode(zlib.compress(np.packbits(cells).tobytes(), 3)).decode("ascii")


def _unpack_bits(text: str, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    size = shape[0] * shape[1]
    packed = np.frombuffer(_unpack(base64.b64decode(text), -(-size // 8)), dtype=np.uint8)
    return np.unpackbits(packed, count=size).astype(np.bool_).reshape(shape)


def _unpack(data: bytes, size: int) -> bytes:
    """Decompress to exactly `size` bytes, never more."""
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(data, size + 1)
    if len(unpacked) != size:
        raise ValueError(f"a mask holds {len(unpacked)} bytes, wanted {size}")
    return unpacked

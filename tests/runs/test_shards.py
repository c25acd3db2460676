from __future__ import annotations

import json
import random
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsmap.errors import ShardError
from rtsmap.instances.coverage import FAILED, MAPPED, NO_DATA, TileCoverage, core_cells
from rtsmap.instances.detections import Detection, touched_sides
from rtsmap.rasters.tiling import Tile, Window
from rtsmap.runs import shards as shards_module
from rtsmap.runs.shards import Shard, TileResult, read_shard, write_shard
from tests.runs.test_plan import some_plan

PLAN = some_plan().shards()[0]
KEY = some_plan().fingerprint


def detection(tile: Tile, rng: np.random.Generator) -> Detection:
    r0, r1 = np.sort(rng.choice(np.arange(tile.read.row0, tile.read.row1 + 1), 2, replace=False))
    c0, c1 = np.sort(rng.choice(np.arange(tile.read.col0, tile.read.col1 + 1), 2, replace=False))
    window = Window(int(r0), int(c0), int(r1), int(c1))
    mask = rng.integers(0, 256, window.shape, dtype=np.uint8)
    modalities = ("optical", "terrain")[: int(rng.integers(1, 3))]
    return Detection(float(rng.random()), window, mask, tile.index, touched_sides(window, tile), modalities)


def some_shard(seed: int = 0, count: int = 6) -> Shard:
    rng = np.random.default_rng(seed)
    results = []
    for tile in PLAN.tiles:
        status = (MAPPED, NO_DATA, FAILED)[int(rng.integers(3))]
        cells = core_cells(rng.random(tile.read.shape) < 0.5, tile, 4)
        coverage = TileCoverage(status, "cloud ☁" if status == FAILED else "", cells, 4)
        results.append(TileResult(tile.index, coverage, {"optical": float(rng.random())}))
    tiles = [PLAN.tiles[int(i)] for i in rng.integers(len(PLAN.tiles), size=count)]
    return Shard(0, tuple(results), tuple(detection(tile, rng) for tile in tiles))


def key(d: Detection):
    return d.tile, d.window, -d.score


def same(a: Shard, b: Shard) -> bool:
    rows = zip(sorted(a.detections, key=key), sorted(b.detections, key=key), strict=True)
    tiles = zip(a.tiles, b.tiles, strict=True)
    return all(
        (x.score, x.window, x.tile, x.sides, x.modalities)
        == (y.score, y.window, y.tile, y.sides, y.modalities)
        and np.array_equal(x.mask, y.mask)
        for x, y in rows
    ) and all(
        (x.tile, x.shares, x.coverage.status, x.coverage.reason, x.coverage.stride)
        == (y.tile, y.shares, y.coverage.status, y.coverage.reason, y.coverage.stride)
        and np.array_equal(x.coverage.valid, y.coverage.valid)
        for x, y in tiles
    )


@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_write_then_read_is_the_same(tmp_path_factory, seed, count):
    path = tmp_path_factory.mktemp("shard") / "s.arrow"
    shard = some_shard(seed, count)
    write_shard(path, shard, KEY)
    assert same(read_shard(path, PLAN, KEY), shard)


def test_the_same_content_gives_the_same_bytes_in_any_order(tmp_path):
    shard = some_shard()
    shuffled = list(shard.detections)
    random.Random(1).shuffle(shuffled)
    write_shard(tmp_path / "a", shard, KEY)
    write_shard(tmp_path / "b", Shard(0, shard.tiles[::-1], tuple(shuffled)), KEY)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    rows = [key(d)[:2] for d in read_shard(tmp_path / "b", PLAN, KEY).detections]
    assert rows == sorted(rows)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards_module.pa, "OSFile", full)
    with pytest.raises(ShardError, match="No space left"):
        write_shard(tmp_path / "s.arrow", some_shard(), KEY)
    assert list(tmp_path.iterdir()) == []


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=80, deadline=None)
def test_a_changed_byte_is_noticed_or_without_effect(tmp_path_factory, place, flip):
    """Arrow pads its files: a byte there may change, but never what is read."""
    path = tmp_path_factory.mktemp("shard") / "s.arrow"
    write_shard(path, some_shard(count=3), KEY)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= flip
    path.write_bytes(data)
    try:
        shard = read_shard(path, PLAN, KEY)
    except ShardError:
        return
    assert same(shard, some_shard(count=3))


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_shard_is_refused(tmp_path, keep):
    path = tmp_path / "s.arrow"
    write_shard(path, some_shard(), KEY)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ShardError, match="damaged"):
        read_shard(path, PLAN, KEY)


def test_a_shard_of_another_plan_or_place_is_refused(tmp_path):
    path = tmp_path / "s.arrow"
    write_shard(path, some_shard(), KEY)
    with pytest.raises(ShardError, match="another plan"):
        read_shard(path, PLAN, "0" * 64)
    with pytest.raises(ShardError, match="another plan"):
        read_shard(path, some_plan().shards()[1], KEY)


def rewrite(path, **column):
    """The shard with one value of its first row replaced, and signed again, as a hostile hand might."""
    with pa.ipc.open_file(str(path)) as reader:
        table = reader.read_all()
    rows = table.to_pylist()
    rows[0].update(column)
    text = table.schema.metadata[b"rtsmap"].decode()
    schema = table.schema.with_metadata({"rtsmap": text, "sha256": shards_module._digest(text, rows)})
    with pa.ipc.new_file(str(path), schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))


@pytest.mark.parametrize(
    "column",
    [
        {"row1": 2**40},
        {"row0": -5},
        {"score": 7.0},
        {"score": float("nan")},
        {"tile": 99_999},
        {"mask": zlib.compress(bytes(50_000_000))},
        {"mask": b"\x00"},
        {"mask": b""},
        {"sides": 255},
    ],
)
def test_rows_that_do_not_fit_the_plan_are_refused(tmp_path, column):
    path = tmp_path / "s.arrow"
    write_shard(path, some_shard(), KEY)
    rewrite(path, **column)
    with pytest.raises(ShardError):
        read_shard(path, PLAN, KEY)


def test_a_bomb_is_not_unpacked(tmp_path):
    """A mask of 64 MiB of zeros is refused after as many bytes as the window holds."""
    path = tmp_path / "s.arrow"
    write_shard(path, some_shard(), KEY)
    bomb = zlib.compressobj()
    chunks = [bomb.compress(bytes(1 << 20)) for _ in range(64)]
    rewrite(path, mask=b"".join([*chunks, bomb.flush()]))
    with pytest.raises(ShardError, match="holds"):
        read_shard(path, PLAN, KEY)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "s.arrow"
    path.write_bytes(b"ARROW1\x00\x00" + struct.pack("<i", 2**31 - 1) + b"ARROW1")
    with pytest.raises(ShardError):
        read_shard(path, PLAN, KEY)
    with pa.ipc.new_file(str(path), pa.schema([("a", pa.int8())])) as writer:
        writer.write_table(pa.table({"a": pa.array([1], pa.int8())}))
    with pytest.raises(ShardError, match="columns"):
        read_shard(path, PLAN, KEY)


def test_metadata_is_plain_json(tmp_path):
    path = tmp_path / "s.arrow"
    write_shard(path, some_shard(), KEY)
    with pa.ipc.open_file(str(path)) as reader:
        head = json.loads(reader.schema.metadata[b"rtsmap"])
    assert [t["tile"] for t in head["tiles"]] == [t.index for t in PLAN.tiles]
    assert head["plan"] == KEY

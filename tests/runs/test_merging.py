from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rtsmap.instances.detections import Detection, crop_mask, touched_sides
from rtsmap.instances.seams import MergeOptions, TileMap, instance_key, merge_detections
from rtsmap.rasters.tiling import Tile, TileOptions, Window
from rtsmap.runs.merging import _link, merge_shards
from rtsmap.runs.plan import Plan, ShardPlan
from rtsmap.runs.shards import Shard
from tests.runs.test_plan import some_plan


def blobs(shape, rng, count, radius) -> np.ndarray:
    labels = np.zeros(shape, int)
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    for label in range(1, count + 1):
        r, c = rng.integers(shape[0]), rng.integers(shape[1])
        a, b = rng.integers(1, radius, 2)
        labels[((rows - r) / a) ** 2 + ((cols - c) / b) ** 2 <= 1] = label
    return labels


def parts_of(tile: Tile, labels: np.ndarray, rng, jitter: int) -> list[Detection]:
    """What a detector with a shaky hand would give: each blob apart, its edge moved a little."""
    seen = labels[tile.read.slices()]
    parts = []
    for label in np.unique(seen[seen > 0]):
        mask = seen == label
        if jitter and rng.random() < 0.7:
            grow = ndimage.binary_dilation if rng.random() < 0.5 else ndimage.binary_erosion
            mask = grow(mask, iterations=int(rng.integers(1, jitter + 1)))
        probability = np.where(mask, 128 + rng.integers(0, 128), 0).astype(np.uint8)
        cropped = crop_mask(probability, (tile.read.row0, tile.read.col0))
        if cropped:
            window, cut = cropped
            score = float(rng.random())
            parts.append(Detection(score, window, cut, tile.index, touched_sides(window, tile), ("optical",)))
    return parts


def stored(plan: Plan, labels: np.ndarray, seed: int, jitter: int) -> dict[int, Shard]:
    rng = np.random.default_rng(seed)
    shards = {}
    for shard in plan.shards():
        found = [part for tile in shard.tiles for part in parts_of(tile, labels, rng, jitter)]
        shards[shard.index] = Shard(shard.index, (), tuple(found))
    return shards


def content(instance):
    return (*instance_key(instance), instance.seam_unconfirmed, instance.oversized, instance.modalities)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(5, 100), st.integers(5, 100)),
    chip=st.integers(12, 48),
    share=st.floats(0, 0.5),
    block=st.integers(1, 4),
    jitter=st.integers(0, 3),
    skipped=st.floats(0, 0.3),
)
@settings(max_examples=40, deadline=None)
def test_streaming_over_shards_gives_what_merging_in_memory_gives(
    *, seed, shape, chip, share, block, jitter, skipped
):
    rng = np.random.default_rng(seed)
    labels = blobs(shape, rng, int(rng.integers(0, 25)), 40)
    plan = some_plan(shape, block, tiles=TileOptions(chip, int(share * chip)))
    shards = stored(plan, labels, seed, jitter)
    looked_at = [t for s in plan.shards() for t in s.tiles if rng.random() >= skipped]
    indices = {t.index for t in looked_at}
    shards = {i: Shard(i, (), tuple(d for d in s.detections if d.tile in indices)) for i, s in shards.items()}
    options = MergeOptions(min_score=0.4, min_part_score=0.1, min_shared_px=4)
    together = [d for s in shards.values() for d in s.detections]
    expected = merge_detections(together, looked_at, options)
    streamed = list(merge_shards(lambda s: shards[s.index], plan.shards(), TileMap(looked_at), options))
    assert sorted(map(content, streamed)) == sorted(map(content, expected))


def test_an_object_across_all_shards_comes_out_once():
    labels = np.zeros((200, 200), int)
    labels[90:110] = 1
    labels[:, 90:110] = 1
    plan = some_plan((200, 200), 2, tiles=TileOptions(32, 8))
    shards = stored(plan, labels, 0, 0)
    shards = {
        i: Shard(i, (), tuple(Detection(0.9, d.window, d.mask, d.tile, d.sides) for d in s.detections))
        for i, s in shards.items()
    }
    tiles = TileMap(t for s in plan.shards() for t in s.tiles)
    (instance,) = merge_shards(lambda s: shards[s.index], plan.shards(), tiles, MergeOptions())
    assert instance.window == Window(0, 0, 200, 200)
    assert np.array_equal(instance.inside, labels > 0)


def test_linking_remembers_one_row_of_shards_and_not_the_scene():
    """A tall scene needs no more memory than a short one of the same width."""

    def peak(rows: int) -> int:
        plan = some_plan((rows, 256), 2, tiles=TileOptions(64, 16))

        def read(shard: ShardPlan) -> Shard:
            found = []
            for tile in shard.tiles:
                mask = np.full(tile.read.shape, 200, np.uint8)
                found.append(Detection(0.9, tile.read, mask, tile.index))
            return Shard(shard.index, (), tuple(found))

        tiles = TileMap(t for s in plan.shards() for t in s.tiles)
        shards = plan.shards()
        tracemalloc.start()
        _link(read, shards, tiles, MergeOptions())
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    assert peak(4000) < 2 * peak(800)

"""From shards to slumps, in two passes, so that memory does not grow with the scene.

The first pass links parts of neighbouring tiles; it remembers only parts that reach into tiles still to
come. The second pass reads the shards again and lets every slump go as soon as its last part was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rtsmap.instances.detections import Detection
from rtsmap.instances.seams import (
    Instance,
    MergeOptions,
    PartLinks,
    TileMap,
    is_wanted,
    join_parts,
    link_parts,
    matters_to,
    suppress_duplicates,
)
from rtsmap.rasters.tiling import Tile
from rtsmap.runs.plan import ShardPlan
from rtsmap.runs.shards import Shard


@dataclass(frozen=True, slots=True)
class _Parts:
    """Parts of one tile and their numbers in the run."""

    tile: Tile
    parts: tuple[Detection, ...]
    numbers: tuple[int, ...]


def merge_shards(
    read: Callable[[ShardPlan], Shard],
    shards: Sequence[ShardPlan],
    tiles: TileMap,
    options: MergeOptions,
) -> Iterator[Instance]:
    """Slumps of a run, in the order in which their last part comes in `shards`.

    `read` is called twice for each shard and must give the same both times. `tiles` are those that were
    looked at. Same slumps as `rtsmap.instances.seams.merge_detections`.
    """
    links = _link(read, shards, tiles, options)
    sizes = {members[0]: len(members) for members in links.components()}
    rims = links.only_rims()
    waiting: dict[int, list[Detection]] = {}
    for parts in _numbered(read, shards, options):
        for part, number in zip(parts.parts, parts.numbers, strict=True):
            root = links.find(number)
            together = waiting.setdefault(root, [])
            together.append(part)
            if len(together) == sizes.get(root, 1):
                members = waiting.pop(root)
                if root in rims:
                    continue
                instance = join_parts(members, tiles, options)
                if is_wanted(instance, options):
                    yield instance


def _link(
    read: Callable[[ShardPlan], Shard], shards: Sequence[ShardPlan], tiles: TileMap, options: MergeOptions
) -> PartLinks:
    """Numbers of parts that show the same slump."""
    turn = {tile.index: i for i, shard in enumerate(shards) for tile in shard.tiles}
    links = PartLinks()
    kept: dict[int, _Parts] = {}
    expiring: dict[int, list[int]] = {}
    for parts in _numbered(read, shards, options):
        here = (turn[parts.tile.index], parts.tile.index)
        _forget(kept, expiring, before=here[0])
        neighbours = tiles.neighbours(parts.tile)
        for other in neighbours:
            if other.index in kept:
                _link_tiles(links, kept[other.index], parts, options)
        to_come = [other for other in neighbours if (turn[other.index], other.index) > here]
        reaching = _reaching(parts, to_come, options)
        if reaching.parts:
            kept[parts.tile.index] = reaching
            last = max(turn[other.index] for other in to_come)
            expiring.setdefault(last, []).append(parts.tile.index)
    return links


def _forget(kept: dict[int, _Parts], expiring: dict[int, list[int]], *, before: int) -> None:
    """Drop parts whose last neighbour had its turn."""
    for turn in [turn for turn in expiring if turn < before]:
        for tile in expiring.pop(turn):
            del kept[tile]


def _link_tiles(links: PartLinks, a: _Parts, b: _Parts, options: MergeOptions) -> None:
    # the lower tile first: the rule decides ties by order, and shards come in another order than tiles
    a, b = sorted((a, b), key=lambda parts: parts.tile.index)
    links.add(a.numbers, b.numbers, link_parts(a.parts, b.parts, a.tile, b.tile, options))


def _reaching(parts: _Parts, tiles: Sequence[Tile], options: MergeOptions) -> _Parts:
    """Those parts that may be linked with parts of one of the tiles."""
    reach = [
        (part, number)
        for part, number in zip(parts.parts, parts.numbers, strict=True)
        if any(matters_to(part, tile, options) for tile in tiles)
    ]
    return _Parts(parts.tile, tuple(part for part, _ in reach), tuple(number for _, number in reach))


def _numbered(
    read: Callable[[ShardPlan], Shard], shards: Sequence[ShardPlan], options: MergeOptions
) -> Iterator[_Parts]:
    """Parts of every tile that has any, without duplicates, numbered in the order of shards."""
    number = 0
    for shard in shards:
        tiles = {tile.index: tile for tile in shard.tiles}
        for index, group in groupby(read(shard).detections, key=lambda part: part.tile):
            parts = suppress_duplicates(list(group), options)
            yield _Parts(tiles[index], tuple(parts), tuple(range(number, number + len(parts))))
            number += len(parts)

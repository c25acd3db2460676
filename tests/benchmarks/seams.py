"""Which rule joins slumps across tiles best, measured: `python -m tests.benchmarks.seams --help`.

The scene: 12,000 x 12,000 px, 400 objects of 15-900 px radius, 82 of them larger than 256 px, 40 cut
into abutting halves with gaps of 6, 2 and 0.02 px in turn. A stand-in detector gives, for every tile,
each object clipped to the tile, with a boundary that wanders by 2, 4 or 8 px (one standard deviation,
fresh for every tile) and a score that grows with the visible share. Every rule gets the same parts.

Rules: ours; our links with masks united, and with every pixel decided by the tile whose core holds it,
instead of averaged; the oracle, which joins what belongs together and so shows what no links can mend;
box NMS at IoU .25 (mmdet's large image demo) and .5; SAHI's GREEDYNMM (box IOS .5, masks united; the
`sahi` package does the matching where it is installed); FTW's union of masks with IoU .2 or containment
.8. All work on pixel masks cropped to boxes, so that no rule pays for converting polygons.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from rasterio import features
from scipy import ndimage

from rtsmap.instances.detections import Detection, crop_mask, touched_sides
from rtsmap.instances.evaluate import Matches, Pair, match_pairs
from rtsmap.instances.seams import (
    MergeOptions,
    PartLinks,
    TileMap,
    UnionFind,
    join_parts,
    link_parts,
    merge_detections,
)
from rtsmap.rasters.tiling import Tile, TileOptions, Window, plan_tiles

SCENE_PX = 12_000
OBJECTS, LARGE, SPLIT = 400, 82, 40
LARGE_RADIUS_PX = 256.0
GAPS_PX = (6.0, 2.0, 0.02)
PAD_PX = 48
NOISE_PX = 4096
NOISE_CORRELATION_PX = 16
COARSE_PX = 8
SMALLEST_PART_PX = 16
ANY_SCORE = MergeOptions(min_score=0, min_part_score=0)


@dataclass(frozen=True, slots=True)
class Truth:
    """One object: signed distance to its outline on a padded window, positive inside, in pixels."""

    window: Window
    distance: npt.NDArray[np.float32]
    large: bool

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        return self.distance > 0


@dataclass(frozen=True, slots=True)
class Found:
    """One object that a rule reports."""

    window: Window
    inside: npt.NDArray[np.bool_]
    score: float


@dataclass(frozen=True, slots=True)
class Marks:
    """How good a rule is: shares of the truth, number of objects, processor seconds."""

    f1: float
    panoptic_quality: float
    large_found: float
    area_ratio: float
    found: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What the stand-in detector saw on all tiles; `objects` says of which object each part is."""

    tiles: Sequence[Tile]
    parts: Sequence[Detection]
    objects: Sequence[int]


Rule = Callable[[Seen], list[Found]]


def make_truth(seed: int) -> list[Truth]:
    """Blobs that do not touch, some of them then cut in two."""
    rng = np.random.default_rng(seed)
    blobs = list(_place(rng, _radii(rng)))
    cuttable = [i for i, (radius, _) in enumerate(blobs) if radius > 2 * max(GAPS_PX)]
    cut = {int(i): k for k, i in enumerate(rng.choice(cuttable, SPLIT, replace=False))}
    truth = []
    for i, (radius, blob) in enumerate(blobs):
        pieces = _halves(rng, blob, GAPS_PX[cut[i] % len(GAPS_PX)]) if i in cut else [blob]
        truth += [_truth(piece, large=radius > LARGE_RADIUS_PX) for piece in pieces]
    return truth


def _radii(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Large radii thin out with their cube (else they would not fit), small ones are log-uniform."""
    shares = (np.arange(LARGE) + rng.random(LARGE)) / LARGE
    low, high = LARGE_RADIUS_PX**-2.0, 900.0**-2.0
    large = (low - shares * (low - high)) ** -0.5
    small = np.exp(rng.uniform(np.log(15.0), np.log(LARGE_RADIUS_PX), OBJECTS - LARGE))
    return np.sort(np.concatenate([large, small]))[::-1]


def _place(
    rng: np.random.Generator, radii: npt.NDArray[np.float64]
) -> Iterator[tuple[float, shapely.Polygon]]:
    """Largest first, each where its outline with a margin meets no other."""
    taken = np.zeros((SCENE_PX // COARSE_PX,) * 2, np.uint8)
    for radius in radii:
        for _ in range(20_000):
            outline = _outline(rng, radius)
            coarse = shapely.transform(outline.buffer(24), lambda xy: xy / COARSE_PX)
            col0, row0, col1, row1 = (int(v) for v in coarse.bounds)
            if min(col0, row0) < 0 or max(col1, row1) >= len(taken) - 1:
                continue
            view = taken[row0 : row1 + 1, col0 : col1 + 1]
            there = features.rasterize(
                [coarse], view.shape, transform=(1, 0, col0, 0, 1, row0), all_touched=True, dtype=np.uint8
            )
            if not (view & there).any():
                view |= there
                yield float(radius), outline
                break
        else:
            raise RuntimeError(f"no room left for an object of radius {radius:.0f} px")


def _outline(rng: np.random.Generator, radius_px: float) -> shapely.Polygon:
    angles = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    waves = np.arange(2, 7)
    heights = rng.normal(0, 0.25, len(waves)) / waves
    phases = rng.uniform(0, 2 * np.pi, len(waves))
    r = radius_px * (1 + (heights * np.cos(np.outer(angles, waves) + phases)).sum(axis=1))
    x, y = rng.uniform(0, SCENE_PX, 2)
    stretch, turn = np.exp(rng.uniform(0, 0.35)), rng.uniform(0, np.pi)
    along, across = r * np.cos(angles) * stretch, r * np.sin(angles) / stretch
    return shapely.Polygon(
        np.column_stack(
            [
                x + along * np.cos(turn) - across * np.sin(turn),
                y + along * np.sin(turn) + across * np.cos(turn),
            ]
        )
    ).buffer(0)


def _halves(rng: np.random.Generator, blob: shapely.Polygon, gap_px: float) -> list[shapely.Polygon]:
    turn = rng.uniform(0, np.pi)
    along, far = np.array([np.cos(turn), np.sin(turn)]), 4000.0
    middle = np.array([blob.centroid.x, blob.centroid.y])
    knife = shapely.LineString([middle - far * along, middle + far * along]).buffer(
        gap_px / 2, cap_style="flat"
    )
    pieces = shapely.get_parts(blob.difference(knife))
    return sorted(pieces, key=shapely.area)[-2:]


def _truth(shape: shapely.Polygon, *, large: bool) -> Truth:
    col0, row0, col1, row1 = shape.bounds
    window = Window(
        int(row0) - PAD_PX, int(col0) - PAD_PX, int(row1) + PAD_PX, int(col1) + PAD_PX
    ).intersection(Window(0, 0, SCENE_PX, SCENE_PX))
    inside = features.rasterize(
        [shape], window.shape, transform=(1, 0, window.col0, 0, 1, window.row0), dtype=np.uint8
    ).astype(bool)
    distance = np.where(
        inside,
        ndimage.distance_transform_edt(inside) - 0.5,
        0.5 - ndimage.distance_transform_edt(~inside),
    )
    return Truth(window, distance.astype(np.float32), large)


def look(truth: Sequence[Truth], tiles: Sequence[Tile], jitter_px: float, seed: int) -> Seen:
    """Every tile's parts; probabilities ramp over four pixels."""
    rng = np.random.default_rng(seed + 1)
    noise = ndimage.gaussian_filter(
        rng.normal(size=(NOISE_PX, NOISE_PX)).astype(np.float32), NOISE_CORRELATION_PX, mode="wrap"
    )
    noise *= jitter_px / noise.std()
    tree = shapely.STRtree([shapely.box(*_xyxy(t.window)) for t in truth])
    areas = [np.count_nonzero(t.inside) for t in truth]
    parts, objects = [], []
    for tile in tiles:
        for i in sorted(tree.query(shapely.box(*_xyxy(tile.read)))):
            seen = truth[i].window.intersection(tile.read)
            if seen.empty:
                continue
            row, col = rng.integers(0, NOISE_PX - np.array(seen.shape) + 1)
            wander = noise[row : row + seen.height, col : col + seen.width]
            distance = truth[i].distance[seen.slices(truth[i].window)] + wander
            mask = np.rint(255 * np.clip(0.5 + distance / 4, 0, 1)).astype(np.uint8)
            share = np.count_nonzero(mask >= 128) / areas[i]
            score = float(np.clip(0.35 + 0.6 * share + rng.normal(0, 0.02), 0, 1))
            cropped = crop_mask(mask, (seen.row0, seen.col0), 128)
            if cropped is not None and np.count_nonzero(cropped[1] >= 128) >= SMALLEST_PART_PX:
                window, mask = cropped
                parts.append(Detection(score, window, mask, tile.index, touched_sides(window, tile)))
                objects.append(int(i))
    return Seen(tiles, parts, objects)


def ours(seen: Seen) -> list[Found]:
    return [Found(i.window, i.inside, i.score) for i in merge_detections(seen.parts, seen.tiles, ANY_SCORE)]


def oracle(seen: Seen) -> list[Found]:
    belonging: dict[int, list[Detection]] = {}
    for part, index in zip(seen.parts, seen.objects, strict=True):
        belonging.setdefault(index, []).append(part)
    tiles = TileMap(seen.tiles)
    joined = [join_parts(parts, tiles, ANY_SCORE) for parts in belonging.values()]
    return [Found(i.window, i.inside, i.score) for i in joined]


def our_links_united(seen: Seen) -> list[Found]:
    return [_united(parts) for parts in _our_groups(seen)]


def our_links_by_core(seen: Seen) -> list[Found]:
    cores = {tile.index: tile.core for tile in seen.tiles}
    return [_by_core(parts, cores) for parts in _our_groups(seen)]


def _our_groups(seen: Seen) -> list[list[Detection]]:
    links = PartLinks()
    rows: dict[int, list[int]] = {}
    for i, part in enumerate(seen.parts):
        rows.setdefault(part.tile, []).append(i)
    for a, b in TileMap(seen.tiles).pairs():
        of_a, of_b = rows.get(a.index, []), rows.get(b.index, [])
        parts_a, parts_b = [seen.parts[k] for k in of_a], [seen.parts[k] for k in of_b]
        links.add(of_a, of_b, link_parts(parts_a, parts_b, a, b, ANY_SCORE))
    return _groups(seen.parts, links, links.only_rims())


def box_nms(iou: float) -> Rule:
    def rule(seen: Seen) -> list[Found]:
        parts, pairs = seen.parts, _box_overlaps(seen.parts)
        kept: list[int] = []
        for i in sorted(range(len(parts)), key=lambda i: -parts[i].score):
            if not any(pairs[i].get(j, (0.0, 0.0))[0] > iou for j in kept):
                kept.append(i)
        return [_united([parts[i]]) for i in kept]

    return rule


def sahi_greedy_nmm(seen: Seen) -> list[Found]:
    """Boxes matched by SAHI's rule, masks united, the highest score kept."""
    parts = seen.parts
    try:
        from sahi.postprocess.combine import greedy_nmm
    except ImportError:
        matches = _greedy_nmm_as_described(parts)
    else:
        boxes = np.array([[*_xyxy(p.window), p.score, 0] for p in parts], dtype=np.float64)
        matches = {int(k): [int(v) for v in vs] for k, vs in greedy_nmm(boxes, "IOS", 0.5).items()}
    found = []
    for first, others in matches.items():
        box, members = parts[first].window, [parts[first]]
        for other in others:
            # The package asks again with the box grown so far, and drops what no longer matches.
            if _shared_box(box, parts[other].window) >= 0.5 * min(_px(box), _px(parts[other].window)):
                box = box.union(parts[other].window)
                members.append(parts[other])
        joined = _united(members)
        found.append(Found(joined.window, joined.inside, max(part.score for part in members)))
    return found


def _greedy_nmm_as_described(parts: Sequence[Detection]) -> dict[int, list[int]]:
    pairs = _box_overlaps(parts)
    keep: dict[int, list[int]] = {}
    gone: set[int] = set()
    for i in sorted(range(len(parts)), key=lambda i: -parts[i].score):
        if i not in gone:
            gone.add(i)
            keep[i] = [j for j, (_, ios) in pairs[i].items() if ios >= 0.5 and j not in gone]
            gone.update(keep[i])
    return keep


def ftw_union(seen: Seen) -> list[Found]:
    """Masks with IoU of .2 or a containment of .8 belong together."""
    parts, links = seen.parts, UnionFind()
    masks = [part.mask >= 128 for part in parts]
    areas = [int(np.count_nonzero(mask)) for mask in masks]
    for i, j in _box_pairs([part.window for part in parts]):
        if i < j:
            common = parts[i].window.intersection(parts[j].window)
            in_i, in_j = common.slices(parts[i].window), common.slices(parts[j].window)
            shared = int(np.count_nonzero(masks[i][in_i] & masks[j][in_j]))
            if shared >= 0.2 * (areas[i] + areas[j] - shared) or shared >= 0.8 * min(areas[i], areas[j]):
                links.union(i, j)
    return [_united(group) for group in _groups(parts, links)]


RULES: dict[str, Rule] = {
    "rtsmap": ours,
    "our links, masks united": our_links_united,
    "our links, cores decide": our_links_by_core,
    "oracle links": oracle,
    "box NMS IoU .25": box_nms(0.25),
    "box NMS IoU .5": box_nms(0.5),
    "SAHI GREEDYNMM box IOS .5": sahi_greedy_nmm,
    "FTW IoU .2 or containment .8": ftw_union,
}


def _groups(
    parts: Sequence[Detection], links: UnionFind, dropped: set[int] | None = None
) -> list[list[Detection]]:
    """Linked parts and single ones; `dropped` are the smallest numbers of those to leave out."""
    sets = links.components()
    sets += [[i] for i in set(range(len(parts))).difference(*sets)]
    return [[parts[i] for i in rows] for rows in sets if rows[0] not in (dropped or set())]


def _united(parts: Sequence[Detection]) -> Found:
    window = parts[0].window
    for part in parts:
        window = window.union(part.window)
    inside = np.zeros(window.shape, bool)
    for part in parts:
        inside[part.window.slices(window)] |= part.mask >= 128
    areas = [np.count_nonzero(part.mask >= 128) for part in parts]
    return Found(window, inside, float(np.average([part.score for part in parts], weights=areas)))


def _by_core(parts: Sequence[Detection], cores: dict[int, Window]) -> Found:
    joined = _united(parts)
    for tile in {part.tile for part in parts}:
        core = cores[tile].intersection(joined.window)
        own = _united([part for part in parts if part.tile == tile])
        seen = core.intersection(own.window)
        joined.inside[core.slices(joined.window)] = False
        joined.inside[seen.slices(joined.window)] = own.inside[seen.slices(own.window)]
    return joined


def _px(window: Window) -> int:
    return window.height * window.width


def _shared_box(a: Window, b: Window) -> int:
    return _px(a.intersection(b))


def _xyxy(window: Window) -> tuple[int, int, int, int]:
    return window.col0, window.row0, window.col1, window.row1


def _box_pairs(a: Sequence[Window], b: Sequence[Window] | None = None) -> list[tuple[int, int]]:
    """Pairs (place in a, place in b) whose boxes share pixels; b is a itself when left out."""
    others = a if b is None else b
    tree = shapely.STRtree([shapely.box(*_xyxy(w)) for w in others])
    pairs = tree.query([shapely.box(*_xyxy(w)) for w in a]).T.tolist()
    return sorted((i, j) for i, j in pairs if not a[i].intersection(others[j]).empty)


def _box_overlaps(parts: Sequence[Detection]) -> list[dict[int, tuple[float, float]]]:
    """For each part the others whose boxes meet its own: (IoU, intersection over smaller)."""
    windows = [part.window for part in parts]
    areas = [w.height * w.width for w in windows]
    pairs: list[dict[int, tuple[float, float]]] = [{} for _ in parts]
    for i, j in _box_pairs(windows):
        if i != j:
            common = windows[i].intersection(windows[j])
            shared = common.height * common.width
            pairs[i][j] = shared / (areas[i] + areas[j] - shared), shared / min(areas[i], areas[j])
    return pairs


def mark(truth: Sequence[Truth], found: Sequence[Found], seconds: float) -> Marks:
    """Greedy one-to-one matches by score at mask IoU .5."""
    masks = [t.inside for t in truth]
    true_px = [int(np.count_nonzero(mask)) for mask in masks]
    found_px = [int(np.count_nonzero(f.inside)) for f in found]
    overlaps = []
    for i, j in _box_pairs([f.window for f in found], [t.window for t in truth]):
        common = found[i].window.intersection(truth[j].window)
        in_found, in_truth = common.slices(found[i].window), common.slices(truth[j].window)
        shared = int(np.count_nonzero(found[i].inside[in_found] & masks[j][in_truth]))
        overlaps.append(Pair(i, j, shared / max(found_px[i] + true_px[j] - shared, 1)))
    pairs = tuple(match_pairs(overlaps, 0.5, [f.score for f in found]))
    matches = Matches(0.5, pairs, len(found), len(truth))
    large = {j for j, t in enumerate(truth) if t.large}
    return Marks(
        f1=matches.f1,
        panoptic_quality=matches.panoptic_quality,
        large_found=len(large.intersection(pair.truth for pair in pairs)) / len(large),
        area_ratio=sum(found_px) / sum(true_px),
        found=len(found),
        seconds=seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 202, 303])
    parser.add_argument("--jitter", type=float, nargs="+", default=[2.0, 4.0, 8.0])
    parser.add_argument("--tilings", nargs="+", default=["1024/256", "512/128"])
    args = parser.parse_args()
    marks: dict[tuple[str, float, str], list[Marks]] = {}
    for seed in args.seeds:
        truth = make_truth(seed)
        for tiling in args.tilings:
            chip, overlap = (int(v) for v in tiling.split("/"))
            tiles = plan_tiles((SCENE_PX, SCENE_PX), TileOptions(chip, overlap))
            for jitter in args.jitter:
                seen = look(truth, tiles, jitter, seed)
                print(
                    f"seed {seed}, {tiling}, jitter {jitter}: {len(truth)} objects, {len(seen.parts)} parts"
                )
                for name, rule in RULES.items():
                    start = time.process_time()
                    found = rule(seen)
                    seconds = time.process_time() - start
                    marks.setdefault((tiling, jitter, name), []).append(mark(truth, found, seconds))
    _print_table(marks)


def _print_table(marks: dict[tuple[str, float, str], list[Marks]]) -> None:
    fields = ("f1", "panoptic_quality", "large_found", "area_ratio", "found", "seconds")
    print(
        "\nmean over the seeds\ntiling    jitter rule                           "
        + " ".join(f"{name[:8]:>8}" for name in fields)
    )
    for (tiling, jitter, name), several in marks.items():
        means = [float(np.mean([getattr(m, f) for m in several])) for f in fields]
        print(f"{tiling:9} {jitter:6} {name:30} " + " ".join(f"{v:8.3f}" for v in means))


if __name__ == "__main__":
    main()

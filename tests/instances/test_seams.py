from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, sparse

from rtsmap.errors import GridMismatchError, OptionsError
from rtsmap.instances.detections import Detection
from rtsmap.instances.linking import Links, link_parts, matters_to, part_key, suppress_duplicates
from rtsmap.instances.seams import (
    MergeOptions,
    PartLinks,
    TileMap,
    UnionFind,
    join_parts,
    merge_detections,
)
from rtsmap.rasters.tiling import Tile, TileOptions, Window, plan_tiles
from tests.instances.tiled import (
    ANY_SCORE,
    detect_on_tiles,
    outlines,
    painted,
    part_on,
    whole_grid,
)
from tests.strategies import blobs, law, tilings


def two_tiles(overlap=40, side=100):
    return plan_tiles((side, 2 * side - overlap), TileOptions(side, overlap))


def rectangle(shape, row0, col0, row1, col1):
    mask = np.zeros(shape, bool)
    mask[row0:row1, col0:col1] = True
    return mask


class TestTiledEqualsUntiled:
    @law(150)
    @given(st.data(), blobs())
    def test_for_any_shapes_and_any_tiling(self, data, mask):
        tiles = plan_tiles(mask.shape, data.draw(tilings(mask.shape)))
        whole = [whole_grid(mask.shape)]
        tiled = merge_detections(detect_on_tiles(mask, tiles), tiles, ANY_SCORE)
        untiled = merge_detections(detect_on_tiles(mask, whole), whole, ANY_SCORE)
        assert outlines(tiled) == outlines(untiled)
        assert len(tiled) == len(untiled)
        assert {i.pixel for i in tiled} == {i.pixel for i in untiled}
        assert not any(i.seam_unconfirmed for i in tiled)

    @law(80)
    @given(st.data(), blobs(), st.integers(2, 40))
    def test_when_small_ones_are_left_out(self, data, mask, min_px):
        tiles = plan_tiles(mask.shape, data.draw(tilings(mask.shape)))
        whole = [whole_grid(mask.shape)]
        options = replace(ANY_SCORE, min_instance_px=min_px)
        tiled = merge_detections(detect_on_tiles(mask, tiles, min_px), tiles, options)
        untiled = merge_detections(detect_on_tiles(mask, whole, min_px), whole, options)
        assert outlines(tiled) == outlines(untiled)

    @law(80)
    @given(st.data(), blobs())
    def test_every_pixel_is_mapped_once(self, data, mask):
        tiles = plan_tiles(mask.shape, data.draw(tilings(mask.shape)))
        tiled = merge_detections(detect_on_tiles(mask, tiles), tiles, ANY_SCORE)
        assert (painted(tiled, mask.shape) == mask).all()

    @law(60)
    @given(st.data(), blobs(), st.randoms(use_true_random=False))
    def test_in_whatever_order_parts_and_tiles_come(self, data, mask, shuffler):
        tiles = plan_tiles(mask.shape, data.draw(tilings(mask.shape)))
        parts = detect_on_tiles(mask, tiles)
        expected = merge_detections(parts, tiles, ANY_SCORE)
        assert same(
            expected, merge_detections(shuffled(parts, shuffler), shuffled(tiles, shuffler), ANY_SCORE)
        )


def shuffled(items, shuffler):
    return shuffler.sample(list(items), len(items))


def same(a, b):
    """Equal in every field and in order."""
    return [fields(i) for i in a] == [fields(i) for i in b]


def fields(instance):
    return (
        instance.score,
        instance.window,
        instance.mask.tobytes(),
        instance.n_parts,
        instance.seam_unconfirmed,
        instance.oversized,
        instance.modalities,
        instance.pixel,
    )


class Wobbly:
    """Discs far enough from each other, whose outlines every tile draws up to `wobble_px` off."""

    def __init__(self, seed, wobble_px, chip_px, overlap_px):
        rng = np.random.default_rng(seed)
        self.wobble_px = wobble_px
        side = int(rng.integers(chip_px, 4 * chip_px))
        self.shape = (side, int(rng.integers(chip_px, 4 * chip_px)))
        self.tiles = plan_tiles(self.shape, TileOptions(chip_px, overlap_px))
        self.depths = [self._depth(*disc) for disc in self._discs(rng)]
        self.parts = [
            part
            for tile in self.tiles
            for depth in self.depths
            if (part := self._part(rng, tile, depth)) is not None
        ]

    def _discs(self, rng):
        discs = []
        for _ in range(60):
            radius = rng.uniform(3 * self.wobble_px, max(self.shape) / 3)
            row, col = rng.uniform(0, self.shape[0]), rng.uniform(0, self.shape[1])
            gap = 4 * self.wobble_px + 4
            if all(np.hypot(row - r, col - c) > radius + other + gap for r, c, other in discs):
                discs.append((row, col, radius))
        return discs

    def _depth(self, row, col, radius):
        rows, cols = np.ogrid[: self.shape[0], : self.shape[1]]
        return radius - np.hypot(rows - row, cols - col)

    def _part(self, rng, tile, depth):
        noise = ndimage.gaussian_filter(rng.normal(size=tile.read.shape), 2.5 * self.wobble_px)
        noise *= self.wobble_px / max(np.abs(noise).max(), 1e-9)
        inside = depth[tile.read.slices()] + noise > 0
        if not inside.any():
            return None
        return part_on(tile, inside, (tile.read.row0, tile.read.col0), score=rng.uniform(0.3, 1))


class TestWobblyOutlines:
    """Every tile draws another outline, at most a known distance off; then so much is certain."""

    @law(40)
    @given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(0, 24))
    def test_count_and_area_stay_within_bounds(self, seed, wobble_px, more_overlap):
        overlap = 10 * wobble_px + more_overlap
        scene = Wobbly(seed, wobble_px, chip_px=2 * overlap + 8 * wobble_px, overlap_px=overlap)
        found = merge_detections(scene.parts, scene.tiles, ANY_SCORE)
        for depth in scene.depths:
            surely, maybe = depth > wobble_px, depth > -wobble_px
            own = [i for i in found if maybe[i.window.slices()][i.inside].any()]
            main = max(own, key=lambda i: i.area_px)
            mapped = painted([main], scene.shape) > 0
            assert mapped[surely].all()
            assert maybe[mapped].all()
            for extra in own:
                assert extra is main or self.is_a_doubtful_rim(extra, depth, wobble_px)
        assert all(
            sum((depth > -wobble_px)[i.window.slices()][i.inside].any() for depth in scene.depths) == 1
            for i in found
        )

    def is_a_doubtful_rim(self, extra, depth, wobble_px):
        deep = depth[extra.window.slices()][extra.inside] > wobble_px
        return extra.seam_unconfirmed and 2 * np.count_nonzero(deep) <= extra.area_px

    @law(15)
    @given(st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
    def test_order_does_not_matter(self, seed, shuffler):
        scene = Wobbly(seed, wobble_px=2, chip_px=60, overlap_px=20)
        expected = merge_detections(scene.parts, scene.tiles, ANY_SCORE)
        again = merge_detections(shuffled(scene.parts, shuffler), shuffled(scene.tiles, shuffler), ANY_SCORE)
        assert same(expected, again)

    def test_most_slumps_come_out_in_one_piece(self):
        scenes = [Wobbly(seed, wobble_px=2, chip_px=96, overlap_px=24) for seed in range(12)]
        found = sum(len(merge_detections(s.parts, s.tiles, ANY_SCORE)) for s in scenes)
        there = sum(len(s.depths) for s in scenes)
        assert there <= found <= 1.03 * there

    def test_area_is_neither_gained_nor_lost(self):
        scenes = [Wobbly(seed, wobble_px=3, chip_px=96, overlap_px=32) for seed in range(12)]
        found = sum(i.area_px for s in scenes for i in merge_detections(s.parts, s.tiles, ANY_SCORE))
        there = sum(np.count_nonzero(depth > 0) for s in scenes for depth in s.depths)
        assert found == pytest.approx(there, rel=0.01)


class TestLinks:
    def links(self, mask_a, mask_b, tiles, options=ANY_SCORE):
        a, b = part_on(tiles[0], mask_a), part_on(tiles[1], mask_b)
        return link_parts([a], [b], *tiles, options).pairs

    def test_halves_of_a_slump_across_the_seam(self):
        tiles = two_tiles()
        slump = rectangle((100, 160), 30, 20, 60, 140)
        assert self.links(slump, slump, tiles) == ((0, 0),)

    def test_only_the_shared_band_counts(self):
        # Their IoU is tiny: each tile sees a long slump of which 40 px are shared.
        tiles = two_tiles()
        shape = (100, 160)
        assert self.links(rectangle(shape, 0, 0, 40, 100), rectangle(shape, 3, 60, 37, 160), tiles) == (
            (0, 0),
        )

    def test_abutting_neighbours_stay_apart(self):
        tiles = two_tiles()
        shape = (100, 160)
        upper, lower = rectangle(shape, 10, 0, 50, 160), rectangle(shape, 50, 0, 90, 160)
        upper_drawn_lower = rectangle(shape, 10, 0, 55, 160)
        a = [part_on(tiles[0], upper_drawn_lower), part_on(tiles[0], lower)]
        b = [part_on(tiles[1], upper), part_on(tiles[1], lower)]
        assert link_parts(a, b, *tiles, ANY_SCORE).pairs == ((0, 0), (1, 1))

    def test_a_sliver_of_a_neighbour_links_nothing(self):
        # Tile 1 sees nothing of the upper slump, and its lower slump wandered over the upper one's rim.
        tiles = two_tiles()
        shape = (100, 160)
        upper = rectangle(shape, 0, 0, 50, 70)
        lower = rectangle(shape, 50, 30, 95, 150)
        wandered = lower | rectangle(shape, 10, 60, 50, 72)
        a = [part_on(tiles[0], upper), part_on(tiles[0], lower)]
        assert link_parts(a, [part_on(tiles[1], wandered)], *tiles, ANY_SCORE).pairs == ((1, 0),)

    def test_a_part_that_two_claim_goes_to_the_one_that_has_more_of_it(self):
        tiles = two_tiles()
        shape = (100, 160)
        small = part_on(tiles[0], rectangle(shape, 20, 70, 50, 90))
        upper, lower = rectangle(shape, 0, 65, 40, 160), rectangle(shape, 28, 65, 80, 160)
        b = [part_on(tiles[1], upper), part_on(tiles[1], lower)]
        assert link_parts([small], b, *tiles, ANY_SCORE).pairs == ((0, 1),)

    def test_neighbours_whose_outlines_overlap_a_little_stay_apart(self):
        tiles = two_tiles()
        shape = (100, 160)
        assert self.links(rectangle(shape, 10, 0, 50, 160), rectangle(shape, 42, 0, 90, 160), tiles) == ()

    def test_few_shared_pixels_prove_nothing(self):
        tiles = two_tiles()
        shape = (100, 160)
        nosed = rectangle(shape, 10, 0, 40, 58) | rectangle(shape, 20, 58, 26, 62)
        assert self.links(nosed, rectangle(shape, 15, 60, 60, 150), tiles) == ()
        long_nosed = nosed | rectangle(shape, 20, 58, 26, 63)
        assert self.links(long_nosed, rectangle(shape, 15, 60, 60, 150), tiles) == ((0, 0),)

    def test_unless_that_is_all_the_smaller_one_has(self):
        tiles = two_tiles()
        shape = (100, 160)
        assert self.links(rectangle(shape, 30, 10, 60, 90), rectangle(shape, 31, 70, 34, 73), tiles) == (
            (0, 0),
        )

    def test_arms_that_meet_beyond_the_band(self):
        tiles = two_tiles()
        shape = (100, 160)
        arms = rectangle(shape, 10, 20, 30, 160) | rectangle(shape, 60, 20, 80, 160)
        bridge = rectangle(shape, 10, 130, 80, 160)
        upper, lower = (part_on(tiles[0], arms & rectangle(shape, r, 0, r + 50, 160)) for r in (0, 50))
        b = part_on(tiles[1], arms | bridge)
        assert link_parts([upper, lower], [b], *tiles, ANY_SCORE).pairs == ((0, 0), (1, 0))

    def test_a_rim_seen_at_the_edge_is_no_slump(self):
        # Tile 1 still sees three columns of a slump that ends, for tile 0, just short of tile 1.
        tiles = two_tiles()
        slump, rim = self.slump_and_rim(tiles, 60, 63)
        assert link_parts([slump], [rim], *tiles, ANY_SCORE) == Links((), (), (0,))
        (found,) = merge_detections([slump, rim], tiles, ANY_SCORE)
        assert (found.window, found.n_parts) == (slump.window, 1)

    def test_unless_another_tile_sees_more_of_it(self):
        links = PartLinks()
        links.add([10], [20], Links((), (0,), ()))
        links.add([10], [30], Links(((0, 0),), (), ()))
        links.add([11], [21], Links((), (0,), (0,)))
        assert links.only_rims() == {11, 21}

    def test_a_slump_of_its_own_in_the_halo_is_no_rim(self):
        tiles = two_tiles()
        slump, other = self.slump_and_rim(tiles, 60, 79)
        assert link_parts([slump], [other], *tiles, ANY_SCORE) == Links()
        assert len(merge_detections([slump, other], tiles, ANY_SCORE)) == 2

    def test_a_sliver_that_its_tile_sees_whole_is_no_rim(self):
        tiles = two_tiles()
        slump, other = self.slump_and_rim(tiles, 61, 64)
        assert link_parts([slump], [other], *tiles, ANY_SCORE) == Links()

    def test_a_sliver_far_from_any_slump_is_no_rim(self):
        tiles = two_tiles()
        slump, other = self.slump_and_rim(tiles, 60, 63, ends=43)
        assert link_parts([slump], [other], *tiles, ANY_SCORE) == Links()

    def slump_and_rim(self, tiles, col0, col1, ends=58):
        shape = (100, 160)
        slump = part_on(tiles[0], rectangle(shape, 20, 10, 70, ends))
        return slump, part_on(tiles[1], rectangle(shape, 30, col0, 60, col1))

    @law(60)
    @given(st.data(), blobs(40))
    def test_parts_that_do_not_matter_may_be_left_out(self, data, mask):
        tiles = plan_tiles(mask.shape, data.draw(tilings(mask.shape)))
        self.same_without_the_others(tiles, detect_on_tiles(mask, tiles))

    @law(15)
    @given(st.integers(0, 2**32 - 1))
    def test_also_where_outlines_wobble(self, seed):
        scene = Wobbly(seed, wobble_px=3, chip_px=80, overlap_px=30)
        self.same_without_the_others(scene.tiles, scene.parts)

    def same_without_the_others(self, tiles, parts):
        for a, b in TileMap(tiles).pairs():
            of_a, of_b = ([p for p in parts if p.tile == tile.index] for tile in (a, b))
            near_a = [i for i, p in enumerate(of_a) if matters_to(p, b, ANY_SCORE)]
            near_b = [j for j, p in enumerate(of_b) if matters_to(p, a, ANY_SCORE)]
            found = link_parts([of_a[i] for i in near_a], [of_b[j] for j in near_b], a, b, ANY_SCORE)
            assert link_parts(of_a, of_b, a, b, ANY_SCORE) == Links(
                tuple((near_a[i], near_b[j]) for i, j in found.pairs),
                tuple(near_a[i] for i in found.rims_a),
                tuple(near_b[j] for j in found.rims_b),
            )

    @law(15)
    @given(st.integers(0, 2**32 - 1))
    def test_the_two_tiles_are_treated_alike(self, seed):
        scene = Wobbly(seed, wobble_px=2, chip_px=60, overlap_px=20)
        for a, b in TileMap(scene.tiles).pairs():
            of_a, of_b = ([p for p in scene.parts if p.tile == tile.index] for tile in (a, b))
            there, back = link_parts(of_a, of_b, a, b, ANY_SCORE), link_parts(of_b, of_a, b, a, ANY_SCORE)
            assert sorted((i, j) for j, i in back.pairs) == list(there.pairs)
            assert (back.rims_b, back.rims_a) == (there.rims_a, there.rims_b)


@law(60)
@given(st.permutations(range(6)))
def test_parts_on_the_same_window_have_an_order_too(order):
    tile = whole_grid((20, 20))
    corner = np.tri(20, dtype=bool)
    masks = [corner, corner.T, corner[::-1], corner[:, ::-1], corner, corner]
    scores = [0.7, 0.7, 0.7, 0.7, 0.8, 0.9]
    parts = [part_on(tile, mask, score=score) for mask, score in zip(masks, scores, strict=True)]
    expected = [(p.score, p.mask.tobytes()) for p in sorted(parts, key=part_key)]
    again = sorted((parts[i] for i in order), key=part_key)
    assert [(p.score, p.mask.tobytes()) for p in again] == expected


class TestTilesThatAbut:
    def test_masks_that_touch_across_the_border_are_one(self):
        tiles = two_tiles(overlap=0)
        slump = rectangle((100, 200), 20, 60, 50, 140)
        merged = merge_detections(detect_on_tiles(slump, tiles), tiles, ANY_SCORE)
        assert [(i.n_parts, i.area_px) for i in merged] == [(2, 30 * 80)]

    def test_masks_that_meet_at_a_corner_are_two(self):
        tiles = two_tiles(overlap=0)
        mask = rectangle((100, 200), 20, 60, 50, 100) | rectangle((100, 200), 50, 100, 80, 140)
        assert len(merge_detections(detect_on_tiles(mask, tiles), tiles, ANY_SCORE)) == 2


class TestDuplicates:
    tile = whole_grid((100, 100))

    def detection(self, row0, col0, row1, col1, score):
        return part_on(self.tile, rectangle((100, 100), row0, col0, row1, col1), score=score)

    def test_the_better_scored_of_two_stays(self):
        worse, better = self.detection(10, 10, 50, 50, 0.6), self.detection(12, 8, 52, 48, 0.8)
        assert suppress_duplicates([worse, better], ANY_SCORE) == [better]

    def test_neighbours_with_a_common_rim_both_stay(self):
        pair = [self.detection(10, 10, 50, 50, 0.6), self.detection(45, 10, 90, 50, 0.8)]
        assert suppress_duplicates(pair, ANY_SCORE) == pair

    def test_one_that_lost_its_rival_stays(self):
        chain = [
            self.detection(0, 10, 40, 50, 0.9),
            self.detection(18, 10, 58, 50, 0.8),
            self.detection(36, 10, 76, 50, 0.7),
        ]
        assert suppress_duplicates(chain, ANY_SCORE) == [chain[0], chain[2]]

    def test_weak_and_empty_ones_go(self):
        weak = self.detection(10, 10, 50, 50, 0.2)
        faint = part_on(self.tile, rectangle((100, 100), 60, 60, 90, 90), value=90)
        assert suppress_duplicates([weak, faint], MergeOptions()) == []

    @law(100)
    @given(st.data(), st.randoms(use_true_random=False))
    def test_the_outcome_does_not_depend_on_order(self, data, shuffler):
        corners = st.tuples(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.5, 0.6, 0.7]))
        parts = [
            self.detection(row, col, row + 30, col + 30, score)
            for row, col, score in data.draw(st.lists(corners, max_size=12))
        ]
        expected = suppress_duplicates(parts, ANY_SCORE)
        again = suppress_duplicates(shuffled(parts, shuffler), ANY_SCORE)
        assert [(p.window, p.score) for p in again] == [(p.window, p.score) for p in expected]
        for i, a in enumerate(expected):
            for b in expected[i + 1 :]:
                common = a.window.intersection(b.window)
                assert 2 * common.height * common.width <= 900


class TestJoinedSlump:
    def test_a_slump_over_many_tiles(self):
        shape = (400, 400)
        rows, cols = np.ogrid[:400, :400]
        disc = (rows - 200) ** 2 + (cols - 190) ** 2 < 170**2
        tiles = plan_tiles(shape, TileOptions(64, 16))
        (slump,) = merge_detections(detect_on_tiles(disc, tiles), tiles, ANY_SCORE)
        assert (painted([slump], shape) == disc).all()
        assert slump.n_parts > 36

    def test_the_score_is_weighted_with_area(self):
        tiles = two_tiles()
        slump = rectangle((100, 160), 30, 50, 60, 160)
        parts = [part_on(tiles[0], slump, score=0.6), part_on(tiles[1], slump, score=0.9)]
        joined = join_parts(parts, TileMap(tiles), ANY_SCORE)
        assert joined.score == pytest.approx((0.6 * 50 + 0.9 * 100) / 150)

    def test_the_tile_that_sees_a_pixel_further_inside_decides(self):
        tiles = two_tiles()
        shape = (100, 160)
        wide, narrow = rectangle(shape, 20, 0, 80, 160), rectangle(shape, 30, 0, 70, 160)
        joined = join_parts([part_on(tiles[0], wide), part_on(tiles[1], narrow)], TileMap(tiles), ANY_SCORE)
        heights = joined.inside.sum(axis=0)
        seam = tiles[0].core.col1
        assert set(heights[: seam - 1]) == {60}
        assert set(heights[seam + 1 :]) == {40}

    def test_probabilities_are_kept(self):
        tile = whole_grid((50, 50))
        part = part_on(tile, rectangle((50, 50), 10, 10, 30, 30), value=170)
        assert set(np.unique(join_parts([part], TileMap([tile]), ANY_SCORE).mask)) == {170}

    def test_modalities_of_all_parts_are_named(self):
        tiles = two_tiles()
        slump = rectangle((100, 160), 30, 50, 60, 160)
        a, b = part_on(tiles[0], slump), replace(part_on(tiles[1], slump), modalities=("terrain", "optical"))
        assert join_parts([a, b], TileMap(tiles), ANY_SCORE).modalities == ("optical", "terrain")

    @law(100)
    @given(blobs(60))
    def test_the_pixel_is_the_slump_pixel_nearest_to_the_centroid(self, mask):
        whole = [whole_grid(mask.shape)]
        for slump in merge_detections(detect_on_tiles(mask, whole), whole, ANY_SCORE):
            rows, cols = np.nonzero(slump.inside)
            centre = ndimage.center_of_mass(slump.inside)
            nearest = np.hypot(rows - centre[0], cols - centre[1]).min()
            row, col = slump.pixel[0] - slump.window.row0, slump.pixel[1] - slump.window.col0
            assert slump.inside[row, col]
            assert np.hypot(row - centre[0], col - centre[1]) == pytest.approx(nearest)

    def test_the_nearest_pixel_may_lie_beyond_the_first_look(self):
        mask = np.zeros((41, 41), bool)
        mask[np.ix_([12, 28], [12, 28])] = True
        mask[[11, 29], 20] = True
        tile = whole_grid(mask.shape)
        assert join_parts([part_on(tile, mask)], TileMap([tile]), ANY_SCORE).pixel == (11, 20)

    def test_outvoted_parts_are_kept(self):
        # Two tiles agree on a few pixels, and a third, with the loudest voice there, says no.
        tiles = [
            Tile(0, Window(0, 0, 50, 40), Window(0, 0, 50, 60)),
            Tile(1, Window(0, 60, 50, 100), Window(0, 40, 50, 100)),
            Tile(2, Window(0, 40, 50, 60), Window(0, 20, 50, 80)),
        ]
        spot = rectangle((50, 100), 20, 48, 26, 52)
        parts = [part_on(tiles[0], spot), part_on(tiles[1], spot), part_on(tiles[2], np.roll(spot, 12, 0))]
        assert join_parts(parts[:2], TileMap(tiles), ANY_SCORE).area_px == 24
        assert join_parts(parts, TileMap(tiles), ANY_SCORE).area_px > 0

    def test_parts_without_slump_are_refused(self):
        tile = whole_grid((50, 50))
        part = part_on(tile, rectangle((50, 50), 10, 10, 30, 30), value=100)
        with pytest.raises(GridMismatchError, match="suppress_duplicates"):
            join_parts([part], TileMap([tile]), ANY_SCORE)


class TestFlags:
    def test_a_slump_that_the_neighbour_did_not_see_is_unconfirmed(self):
        tiles = two_tiles()
        halo_only = part_on(tiles[0], rectangle((100, 160), 40, 84, 70, 98))
        (slump,) = merge_detections([halo_only], tiles, ANY_SCORE)
        assert slump.seam_unconfirmed

    def test_a_slump_that_goes_on_where_the_neighbour_saw_none_is_unconfirmed(self):
        tiles = two_tiles()
        (slump,) = merge_detections(
            [part_on(tiles[0], rectangle((100, 160), 40, 10, 70, 100))], tiles, ANY_SCORE
        )
        assert slump.seam_unconfirmed

    def test_a_slump_in_a_core_needs_no_confirmation(self):
        tiles = two_tiles()
        (slump,) = merge_detections(
            [part_on(tiles[0], rectangle((100, 160), 40, 10, 70, 78))], tiles, ANY_SCORE
        )
        assert not slump.seam_unconfirmed

    def test_the_silence_of_a_tile_that_was_not_looked_at_says_nothing(self):
        tiles = two_tiles()
        halo_only = part_on(tiles[0], rectangle((100, 160), 40, 84, 70, 98))
        (slump,) = merge_detections([halo_only], tiles[:1], ANY_SCORE)
        assert not slump.seam_unconfirmed

    def test_an_oversized_slump_is_flagged_and_logged(self, caplog):
        tiles = two_tiles()
        slump = rectangle((100, 160), 40, 10, 70, 150)
        options = replace(ANY_SCORE, max_extent_px=139)
        (flagged,) = merge_detections(detect_on_tiles(slump, tiles), tiles, options)
        assert flagged.oversized
        assert "longer than max_extent_px" in caplog.text

    def test_a_slump_of_the_greatest_length_is_not(self, caplog):
        tiles = two_tiles()
        slump = rectangle((100, 160), 40, 10, 70, 150)
        options = replace(ANY_SCORE, max_extent_px=140)
        (fine,) = merge_detections(detect_on_tiles(slump, tiles), tiles, options)
        assert not fine.oversized
        assert not caplog.text


class TestThresholds:
    def test_parts_may_score_less_than_the_whole_must(self):
        tiles = two_tiles()
        slump = rectangle((100, 160), 30, 40, 60, 160)
        parts = [part_on(tiles[0], slump, score=0.35), part_on(tiles[1], slump, score=0.9)]
        assert [i.n_parts for i in merge_detections(parts, tiles, MergeOptions())] == [2]
        assert [i.n_parts for i in merge_detections(parts[:1], tiles, MergeOptions())] == []

    def test_the_mask_threshold_can_be_chosen_at_merge(self):
        tile = whole_grid((50, 50))
        part = part_on(tile, rectangle((50, 50), 10, 10, 30, 30), value=100)
        assert merge_detections([part], [tile], ANY_SCORE) == []
        (slump,) = merge_detections([part], [tile], replace(ANY_SCORE, mask_threshold=100))
        assert slump.area_px == 400

    @pytest.mark.parametrize(
        "numbers",
        [
            {"min_score": 1.1},
            {"min_part_score": -0.1},
            {"min_score": 0.4, "min_part_score": 0.5},
            {"min_overlap": 0.0},
            {"duplicate_overlap": 1.0},
            {"min_shared_px": 0},
            {"min_instance_px": 0},
            {"max_extent_px": 0},
            {"outline_tolerance_px": -1},
            {"mask_threshold": 0},
            {"mask_threshold": 256},
            {"min_score": float("nan")},
        ],
    )
    def test_impossible_numbers_are_refused(self, numbers):
        with pytest.raises(OptionsError):
            MergeOptions(**numbers)


class TestUnionFind:
    @law(200)
    @given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
    def test_it_finds_what_scipy_finds(self, links):
        sets = UnionFind()
        for a, b in links:
            sets.union(a, b)
        touched = sorted({item for link in links for item in link})
        graph = sparse.coo_matrix((np.ones(len(links)), np.array(links).reshape(-1, 2).T), shape=(31, 31))
        _, labels = sparse.csgraph.connected_components(graph, directed=False)
        expected = sorted([i for i in touched if labels[i] == label] for label in set(labels[touched]))
        assert sets.components() == expected
        assert all(sets.find(i) == members[0] for members in expected for i in members)

    def test_what_was_never_linked_is_alone(self):
        assert UnionFind().find(7) == 7
        assert UnionFind().components() == []

    def test_a_long_chain(self):
        sets, numbers = UnionFind(), list(range(20_000))
        random.Random(1).shuffle(numbers)
        for a, b in pairwise(numbers):
            sets.union(a, b)
        assert sets.components() == [sorted(numbers)]


class TestTileMap:
    @law(80)
    @given(st.data(), st.tuples(st.integers(1, 70), st.integers(1, 70)))
    def test_pairs_are_all_tiles_whose_reads_meet(self, data, shape):
        tiles = plan_tiles(shape, data.draw(tilings(shape)))
        found = {(a.index, b.index) for a, b in TileMap(tiles).pairs()}
        expected = {
            (a.index, b.index)
            for a in tiles
            for b in tiles
            if a.index < b.index
            and max(a.read.row0, b.read.row0) <= min(a.read.row1, b.read.row1)
            and max(a.read.col0, b.read.col0) <= min(a.read.col1, b.read.col1)
        }
        assert found == expected

    def test_every_tile_needs_its_own_index(self):
        tile = whole_grid((10, 10))
        with pytest.raises(OptionsError, match="same index"):
            TileMap([tile, tile])

    def test_no_tiles_no_slumps(self):
        assert merge_detections([], [], MergeOptions()) == []


def test_detections_are_not_changed():
    tiles = two_tiles()
    slump = rectangle((100, 160), 30, 40, 60, 160)
    parts = detect_on_tiles(slump, tiles)
    before = [(p.score, p.window, p.mask.tobytes()) for p in parts]
    merge_detections(parts, tiles, ANY_SCORE)
    assert [(p.score, p.window, p.mask.tobytes()) for p in parts] == before
    assert all(isinstance(p, Detection) for p in parts)
